"""Questions about held-out pictures: the share answered right, against the same model without seeing.

Rows: image (relative to the file), question, answer, kind. An answer is right when it is the expected text, apart from outer blanks and a
full stop. Asked three times, greedily, through the serving engine: with the picture, with a grey one in its place, and without any.
The difference is told with a paired bootstrap over pictures, since questions about one picture are not independent.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twllm.artifact import write_json, write_text
from twllm.errors import UserError, require_file
from twllm.evaluate.score import wilson
from twllm.tokens.pictures import read_picture

RESAMPLES = 2000
GREY = (128, 128, 128)
AT_ONCE = 32
NAMES = {"sees": "看圖 sees", "blank": "灰圖 grey picture", "text_only": "不給圖 no picture"}


def read_questions(file: Path) -> list[dict[str, Any]]:
    """The rows of a question file.

    Raises:
        UserError: no such file, or a row without image, question or answer.
    """
    rows = []
    lines = require_file(file, "找不到圖片題 (no such file)").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({**row, "image": row["image"], "question": row["question"], "answer": str(row["answer"])})
        except (ValueError, KeyError, TypeError) as error:
            what = f"圖片題要有 image、question、answer (bad row): {error}"
            raise UserError(what, f"{file}:{number}", "修正這一列") from error
    if not rows:
        raise UserError("沒有題目 (no questions)", file, "每列一題")
    return rows


def evaluate_pictures(model: Path, file: Path, out: Path, max_new_tokens: int = 32) -> dict[str, Any]:
    """Ask all questions three ways; writes `result.json` and `report.md` into `out` and returns the result.

    Raises:
        UserError: the model does not see, or a picture cannot be read.
    """
    from PIL import Image

    from twllm.serve.engines.torch.engine import TorchEngine

    rows = read_questions(file)
    pictures = [read_picture(row["image"], file.parent) for row in rows]
    grey = [Image.new("RGB", picture.size, GREY) for picture in pictures]
    engine = TorchEngine(model)
    try:
        if not engine.vision:
            raise UserError("這個模型看不懂圖片 (this model does not see)", model, "給 [vision] 訓練出來的模型")
        said = {
            "sees": _answers(engine, rows, pictures, max_new_tokens),
            "blank": _answers(engine, rows, grey, max_new_tokens),
            "text_only": _answers(engine, rows, None, max_new_tokens),
        }
    finally:
        engine.close()
    result = _score(rows, said) | {"fingerprint": engine.model_fingerprint, "questions": str(file.name)}
    write_json(out / "result.json", result)
    write_text(out / "report.md", report(result))
    return result


def _answers(engine: Any, rows: Sequence[dict[str, Any]], pictures: Sequence[Any] | None, limit: int) -> list[str]:
    """Greedy answers, AT_ONCE together."""
    from twllm.serve.engines.interface import Sampling
    from twllm.serve.engines.torch.pictures import picture_prompt

    said: list[str] = []
    for start in range(0, len(rows), AT_ONCE):
        running = []
        for number, row in enumerate(rows[start : start + AT_ONCE], start):
            text = {"type": "text", "text": row["question"]}
            if pictures is None:
                ids = engine.tokenizer.encode_chat(
                    [{"role": "user", "content": row["question"]}], add_generation_prompt=True
                ).ids
            else:
                seen = engine.see([pictures[number]])
                chat = [{"role": "user", "content": [{"type": "image"}, text]}]
                ids = picture_prompt(engine.tokenizer, chat, seen)
            running.append(engine.generate(ids, Sampling(max_tokens=limit)))
        said += ["".join(event.text for event in events).strip() for events in running]
    return said


def is_right(said: str, expected: str) -> bool:
    """Whether the answer is the expected text.

    >>> is_right(" 50 公里。", "50 公里"), is_right("150 公里。", "50 公里。")
    (True, False)
    """
    return said.strip().rstrip("。.") == expected.strip().rstrip("。.")


def _score(rows: Sequence[dict[str, Any]], said: dict[str, list[str]]) -> dict[str, Any]:
    marks = {
        name: [is_right(answer, row["answer"]) for answer, row in zip(answers, rows, strict=True)]
        for name, answers in said.items()
    }
    result: dict[str, Any] = {name: _share(found) for name, found in marks.items()}
    kinds = sorted({str(row.get("kind", "")) for row in rows})
    result["kinds"] = {
        kind: {name: _share([m for m, row in zip(found, rows, strict=True) if row.get("kind", "") == kind]) for name, found in marks.items()}
        for kind in kinds
    }  # fmt: skip
    unseeing = max(("blank", "text_only"), key=lambda name: result[name]["score"])
    result["difference"] = {"against": unseeing, **_difference(rows, marks["sees"], marks[unseeing])}
    result["items"] = [
        {**row, **{name: {"answer": said[name][i], "correct": marks[name][i]} for name in said}}
        for i, row in enumerate(rows)
    ]
    return result


def _share(marks: Sequence[bool]) -> dict[str, Any]:
    interval = [round(x, 4) for x in wilson(sum(marks), len(marks))]
    return {"score": round(sum(marks) / len(marks), 4), "correct": sum(marks), "n": len(marks), "interval": interval}


def _difference(rows: Sequence[dict[str, Any]], one: Sequence[bool], other: Sequence[bool]) -> dict[str, Any]:
    """Mean difference and its 95 % interval, pictures drawn with replacement."""
    groups: dict[str, list[int]] = {}
    for row, a, b in zip(rows, one, other, strict=True):
        groups.setdefault(str(row["image"]), []).append(int(a) - int(b))
    sums = [(sum(values), len(values)) for values in groups.values()]
    rng = random.Random(0)
    means = []
    for _ in range(RESAMPLES):
        drawn = rng.choices(sums, k=len(sums))
        means.append(sum(total for total, _ in drawn) / sum(count for _, count in drawn))
    means.sort()
    low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]
    mean = sum(total for total, _ in sums) / len(rows)
    return {"score": round(mean, 4), "interval": [round(low, 4), round(high, 4)], "pictures": len(sums)}


def report(result: dict[str, Any]) -> str:
    """The table for people."""
    lines = ["| 題型 kind | 題數 n | " + " | ".join(NAMES.values()) + " |", "|---" * (2 + len(NAMES)) + "|"]
    for kind, blocks in [*result["kinds"].items(), ("**全部 all**", result)]:
        cells = [_cell(blocks[name]) for name in NAMES]
        lines.append(f"| {kind} | {blocks['sees']['n']} | {' | '.join(cells)} |")
    difference = result["difference"]
    low, high = difference["interval"]
    lines += [
        "",
        f"看圖比{NAMES[difference['against']].split()[0]}多答對 {difference['score']:.1%}（95% 區間 {low:.1%} 到 {high:.1%}，"
        f"{difference['pictures']} 張圖成對比較，bootstrap）。",
        "",
    ]
    return "\n".join(lines)


def _cell(block: dict[str, Any]) -> str:
    low, high = block["interval"]
    return f"{block['score']:.1%}（{low:.0%}–{high:.0%}）"
