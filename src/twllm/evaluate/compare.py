"""`twllm compare MODEL…`: the same questions to several models, answers side by side (Taiwan-LLM's "Taiwanese Culture Examples").

Greedy; one model is in memory at a time. Answers are stored as they come, and the pages are written after each model: an interrupted
comparison goes on where it stopped, and asks nothing twice. A column is known by model fingerprint, template and
settings. Where a question has keywords the answer is marked; what is not Taiwan's wording is marked in the text.
Not covered: sampling, system messages, more than one turn.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from twllm import artifact, data
from twllm.errors import UserError

QUESTIONS = "twllm:compare"
TASK = "compare"


class Asked(NamedTuple):
    """One question; without keywords it is not marked."""

    id: str
    question: str
    accept: tuple[str, ...] = ()
    reject: tuple[str, ...] = ()
    topic: str = ""


def compare(
    models: Annotated[
        list[str], typer.Argument(help="模型資料夾、hub 名稱或 OpenAI 相容網址；可多個", metavar="MODEL|URL...")
    ],
    questions: Annotated[
        str, typer.Option(help='題目：.jsonl 每行 {"question"}，可加 id、topic、accept、reject；或 .txt 一行一題')
    ] = QUESTIONS,
    out: Annotated[Path, typer.Option(help="輸出資料夾：compare.md、compare.html、compare.json")] = Path("compare"),
    max_new_tokens: Annotated[int, typer.Option(help="回答最多幾個詞元", min=1)] = 256,
    batch_size: Annotated[int, typer.Option(help="一次幾題；不影響回答", min=1)] = 4,
) -> None:
    """同樣的問題問好幾個模型，回答並排 (the same questions to several models, side by side)."""
    result = compare_models(models, questions, out, max_new_tokens, batch_size)
    for column in result["models"]:
        marks = f"，關鍵詞 {column['correct']}/{column['marked']}" if column["marked"] else ""
        print(f"{column['name']}：非臺灣用字 {column['leak_rate']:.2%}{marks}")
    print(out / "compare.html")


def compare_models(
    models: Sequence[str], questions: str, out: Path, max_new_tokens: int = 256, batch_size: int = 4
) -> dict[str, Any]:
    """Ask every model, write `compare.json`, `.md` and `.html` into `out`.

    Raises:
        UserError: a model named twice or not there, or broken questions; both before the first answer.
    """
    from twllm.evaluate.compare_page import html_page, markdown
    from twllm.evaluate.responses import ResponseFile

    asked = read_asked(questions)
    require_models(models)
    if out.is_file():
        raise UserError("要資料夾，這裡是檔案 (--out is a file)", out, "換一個 --out")
    file = ResponseFile(out / "compare.responses.jsonl")
    result: dict[str, Any] = {
        "questions": [{**one._asdict(), "accept": list(one.accept), "reject": list(one.reject)} for one in asked],
        "settings": {"decoding": "greedy", "max_new_tokens": max_new_tokens},
        "code_version": artifact.code_version(),
        "models": [],
    }
    for model, name in zip(models, short_names(models), strict=True):
        result["models"].append(_column(model, name, asked, file, max_new_tokens, batch_size))
        result["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        artifact.write_json(out / "compare.json", result)
        artifact.write_text(out / "compare.md", markdown(result))
        artifact.write_text(out / "compare.html", html_page(result))
    return result


def require_models(models: Sequence[str]) -> None:
    """Every folder is there and every model is named once; servers and hub names are not asked yet."""
    from twllm.errors import require_file

    for model in models:
        if models.count(model) > 1:
            raise UserError("同一個模型給了兩次 (named twice)", model, "每個模型一次")
        if not model.startswith(("http://", "https://")) and (model.startswith((".", "/")) or model.count("/") != 1):
            require_file(model, "找不到模型 (no such model)")


def short_names(models: Sequence[str]) -> list[str]:
    """The last part of each path, or all of it where two would be called the same."""
    last = [model.rstrip("/") if "://" in model else Path(model).resolve().name for model in models]
    return [name if last.count(name) == 1 else model for name, model in zip(last, models, strict=True)]


def read_asked(source: str) -> list[Asked]:
    """The questions, in file order; a row without `id` is called by its number.

    Raises:
        UserError: nothing there, a row without a question, keywords that are no list of texts, or an id used twice.
    """
    from twllm.tokens.conversation import list_files, read_rows

    if Path(data.resolve(source)).suffix == ".txt":
        lines = Path(source).read_text(encoding="utf-8-sig").splitlines() if Path(source).is_file() else []
        rows = [("", {"question": line}) for line in lines if line.strip()]
    else:
        rows = [(f"{file}:{place}", dict(row)) for file in list_files(source) for place, row in read_rows(file)]
    asked: dict[str, Asked] = {}
    for number, (where, row) in enumerate(rows, 1):
        one = _asked(row, number, where)
        if one.id in asked:
            raise UserError(f"題號重複 (duplicate id)：{one.id}", where, "每題的 id 要不同")
        asked[one.id] = one
    if not asked:
        raise UserError("裡面沒有題目 (no questions)", source, '每行一題：{"question": "…"}，或 .txt 一行一題')
    return list(asked.values())


def _asked(row: dict[str, Any], number: int, where: str) -> Asked:
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UserError("少了 question (question missing)", where, '加上 "question": "…"')
    keys: dict[str, tuple[str, ...]] = {}
    for name in ("accept", "reject"):
        value = row.get(name, [])
        if not isinstance(value, list) or not all(isinstance(key, str) and key.strip() for key in value):
            raise UserError(f"{name} 要是非空白字串的清單 (a list of non-blank strings)", where, f'"{name}": ["玉山"]')
        keys[name] = tuple(value)
    return Asked(str(row.get("id", number)), question.strip(), **keys, topic=str(row.get("topic") or ""))


def _column(
    model: str, name: str, asked: list[Asked], file: Any, max_new_tokens: int, batch_size: int
) -> dict[str, Any]:
    """One model's answers, with what it is and how it did. The model is freed when this returns."""
    from twllm.corpus.check import leak_rate
    from twllm.evaluate.model import open_model

    opened = open_model(model, max_new_tokens)
    answers = list(ask(opened, name, asked, file, max_new_tokens, batch_size))
    marks = [mark(one, answer) for one, answer in zip(asked, answers, strict=True)]
    return {
        "name": name,
        "model": model,
        "model_fingerprint": opened.fingerprint,
        "template_fingerprint": opened.template_fingerprint,
        "leak_rate": round(leak_rate(answer or "" for answer in answers), 6),
        "correct": sum(found is True for found in marks),
        "marked": sum(found is not None for found in marks),
        "answers": [{"answer": answer, "correct": found} for answer, found in zip(answers, marks, strict=True)],
    }


def ask(
    model: Any, name: str, asked: list[Asked], file: Any, max_new_tokens: int, batch_size: int
) -> Iterator[str | None]:
    """Answers in the order of the questions, stored ones taken from `file`; None where the prompt fills the context."""
    from twllm.evaluate.task import Item, Response

    items = [Item(id=one.id, task=TASK, question=one.question, prompt=one.question, references=()) for one in asked]
    base = [model.fingerprint, model.template_fingerprint, max_new_tokens]
    keys = [artifact.fingerprint([*base, item.prompt]) for item in items]
    for start in range(0, len(items), batch_size):
        batch = list(zip(items, keys, strict=True))[start : start + batch_size]
        missing = [(item, key) for item, key in batch if file.find(item, key) is None]
        if missing:
            outputs = model([item.messages for item, _ in missing])
            file.append(
                Response(
                    task=TASK, id=item.id, prompt=item.prompt, output=output or "", key=key, too_long=output is None
                )
                for (item, key), output in zip(missing, outputs, strict=True)
            )
        for number, (item, key) in enumerate(batch, start + 1):
            stored = file.find(item, key)
            _tell(name, number, len(items), item.question, stored.output)
            yield None if stored.too_long else stored.output


def _tell(name: str, number: int, total: int, question: str, answer: str) -> None:
    line = " ".join(answer.split())
    print(
        f"[{name} {number}/{total}] {question} → {line[:60]}{'…' if len(line) > 60 else ''}",
        file=sys.stderr,
        flush=True,
    )


def mark(one: Asked, answer: str | None) -> bool | None:
    """Whether an accepted keyword (any text, where none is listed) and no rejected one is in the answer; None: no keywords."""
    from twllm.evaluate.keywords import is_correct

    if not one.accept and not one.reject:
        return None
    return bool(answer) and is_correct(str(answer), one.accept or ("",), one.reject)
