"""`twllm eval no-harm BEFORE AFTER`: did continued pretraining on zh-TW cost English or Simplified Chinese?

Both models read the same texts (a page in three languages ships; real held-out text says more), and the change in bits per
character is told by language with a paired 95 % interval: bootstrap over the same places of the text, so that what is
hard for both models cancels out. An interval that excludes 0 is a change; one that does not says "not seen on so much
text", not "no harm". BEFORE and AFTER are models, or results of this suite (.json). A page of 1,000 characters shows changes from about
0.05 bits on.
Not covered: abilities that bits do not show (answers in English, code); run suites for those.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from twllm import artifact
from twllm.errors import UserError, require_file

SUITE = "no_harm"
ORDER = ("en", "zh-CN", "zh-TW")


def no_harm(
    before: Annotated[str, typer.Argument(help="訓練前：模型，或這個題組的結果 .json", metavar="BEFORE")],
    after: Annotated[str, typer.Argument(help="訓練後：模型，或結果 .json", metavar="AFTER")],
    text: Annotated[
        list[str] | None, typer.Option(help="某個語言的文字，例如 en=wiki.jsonl；可重複", metavar="LANG=FILE")
    ] = None,
    out: Annotated[Path, typer.Option(help="結果 JSON；旁邊有同名的 .md")] = Path("no_harm.json"),
) -> None:
    """訓練前後的英文、簡體、正體每字位元數 (bits per character before and after continued pretraining)."""
    print(markdown(run(before, after, parse_texts(text or []), out)), end="")


def parse_texts(pairs: list[str]) -> dict[str, Path]:
    """`lang=FILE` → {lang: file}.

    Raises:
        UserError: no `=`, or a language twice.
    """
    found: dict[str, Path] = {}
    for pair in pairs:
        language, equals, file = pair.partition("=")
        if not equals or not language or not file or language in found:
            raise UserError(
                "要寫成 語言=檔案，每個語言一次 (LANG=FILE, each language once)", pair, "--text en=wiki.jsonl"
            )
        found[language] = require_file(file, "找不到文字檔 (no such text)")
    return found


def run(before: str, after: str, texts: dict[str, Path], out: Path) -> dict[str, Any]:
    """Measure what is not a result yet, compare, write `out` and its report."""
    with_texts = _joined(texts, out) if texts else None
    results = [_result(model, with_texts, out, side) for model, side in ((before, "before"), (after, "after"))]
    blocks = [result[SUITE] for result in results]
    report = {
        "before": {**_model(results[0]), "score": blocks[0]["score"]},
        "after": {**_model(results[1]), "score": blocks[1]["score"]},
        "changes": compare_blocks(*blocks),
        "code_version": artifact.code_version(),
    }
    artifact.write_json(out, report)
    artifact.write_text(out.with_suffix(".md"), markdown(report))
    return report


def _joined(texts: dict[str, Path], out: Path) -> Path:
    """One file of all texts with their language, as the suite reads it."""
    from twllm.evaluate.texts import read_texts

    rows = [
        {"id": f"{language}/{number}", "language": language, "text": text.text}
        for language, file in texts.items()
        for number, text in enumerate(read_texts(file))
    ]
    path = out.with_name(f"{out.stem}.texts.jsonl")
    artifact.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def _result(model: str, texts: Path | None, out: Path, side: str) -> dict[str, Any]:
    """A stored result, or the model's own, kept beside `out` so that a rerun does not measure it again."""
    if model.endswith(".json"):
        return read_result(Path(model))
    from twllm.evaluate.runner import evaluate_model

    return evaluate_model(model, suites=[SUITE], out=out.with_name(f"{out.stem}.{side}.json"), text=texts)


def read_result(file: Path) -> dict[str, Any]:
    """A result that has the suite.

    Raises:
        UserError: no such file, not JSON, or without the suite.
    """
    try:
        result = json.loads(require_file(file).read_text(encoding="utf-8"))
        if not isinstance(result[SUITE]["items"], list):
            raise TypeError("items")
    except (ValueError, KeyError, TypeError) as error:
        fix = f"用 twllm eval MODEL --suite {SUITE} --out FILE 產生"
        raise UserError(f"不是 {SUITE} 的結果 (not a result of this suite)：{error}", file, fix) from error
    found: dict[str, Any] = result
    return found


def _model(result: dict[str, Any]) -> dict[str, Any]:
    meta = result.get("meta", {})
    return {"model": meta.get("model", ""), "model_fingerprint": meta.get("model_fingerprint", "")}


def compare_blocks(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """By language: bits per character before and after, the change (positive: worse) and its paired interval.

    Raises:
        UserError: the two read different texts.
    """
    if before["prompt_hash"] != after["prompt_hash"]:
        what = "兩個結果不是同一批文字 (measured on different texts)"
        raise UserError(what, f"{before['prompt_hash']} ≠ {after['prompt_hash']}", "兩邊用同樣的 --text 重跑")
    groups: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for old, new in zip(before["items"], after["items"], strict=True):
        groups.setdefault(old["topic"], []).append((old, new))
    order = sorted(groups, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    return [_change(name, groups[name]) for name in order]


def _change(name: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    from twllm.evaluate.bits import interval  # numpy: not at the start of every command

    chars = sum(old["chars"] for old, _ in pairs)
    sums = [math.fsum(bits for row in rows for bits in row["blocks"]) for rows in zip(*pairs, strict=True)]
    found = interval(_units(pairs))
    limits = None if found is None else [round(limit, 6) for limit in found]
    return {
        "group": name,
        "documents": len(pairs),
        "chars": chars,
        "before": sums[0] / chars,
        "after": sums[1] / chars,
        "change": (sums[1] - sums[0]) / chars,
        "interval": limits,
        "excludes_0": limits is not None and (limits[0] > 0 or limits[1] < 0),
    }


def _units(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[tuple[float, int]]:
    """(change in bits, characters) of what the bootstrap draws: documents where there are many, else their blocks."""
    from twllm.evaluate.bits import BLOCK_CHARS, MANY_DOCUMENTS

    if len(pairs) >= MANY_DOCUMENTS:
        return [(math.fsum(new["blocks"]) - math.fsum(old["blocks"]), old["chars"]) for old, new in pairs]
    return [
        (b - a, min(BLOCK_CHARS, old["chars"] - number * BLOCK_CHARS))
        for old, new in pairs
        for number, (a, b) in enumerate(zip(old["blocks"], new["blocks"], strict=True))
    ]


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = ["# 無害檢查 (no-harm)：每字位元數，低比較好 (bits per character, lower is better)", ""]
    for name, side in (("訓練前 before", "before"), ("訓練後 after", "after")):
        lines.append(f"* {name}：{report[side]['model']}（{report[side]['model_fingerprint']}）")
    lines += [
        "",
        "| 語言 | 篇數 | 字數 chars | 前 before | 後 after | 變化 change | 95% 區間 | 結論 |",
        "|---" * 8 + "|",
    ]
    for row in report["changes"]:
        limits = "—" if row["interval"] is None else f"{row['interval'][0]:+.4f} – {row['interval'][1]:+.4f}"
        lines.append(
            f"| {row['group']} | {row['documents']} | {row['chars']:,} | {row['before']:.4f} | {row['after']:.4f} "
            f"| {row['change']:+.4f} | {limits} | {_verdict(row)} |"
        )
    lines += ["", "區間：同一處文字前後配對的 bootstrap。不含 0 才算有變化；含 0 只表示這些文字看不出變化。"]
    return "\n".join(lines) + "\n"


def _verdict(row: dict[str, Any]) -> str:
    if row["interval"] is None:
        return "文字太少 (too little text)"
    if not row["excludes_0"]:
        return "看不出變化 (no change seen)"
    return "變差 (worse)" if row["change"] > 0 else "變好 (better)"
