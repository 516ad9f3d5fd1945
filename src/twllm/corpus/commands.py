"""`twllm check` and `twllm convert`: files or standard input, told in a table or as JSON."""

import codecs
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from twllm.errors import UserError, require_file

Files = Annotated[list[Path], typer.Argument(help="文字檔、.jsonl、.parquet；- 是標準輸入", metavar="FILE…")]
STDIN = Path("-")
SHOWN = 12  # spans of each kind in the table
KINDS = {"simplified": "簡體字", "vocabulary": "他地用語", "punctuation": "半形標點", "variants": "異體字"}


def check(
    files: Files,
    as_json: Annotated[bool, typer.Option("--json", help="每個檔案印一個 JSON 物件 (one object a file)")] = False,
    max_leak_rate: Annotated[
        float | None, typer.Option(help="超過就以 1 結束，給 CI 用 (exit 1 above this rate)")
    ] = None,
) -> None:
    """檢查文字是不是臺灣的寫法：簡體字、他地用語、半形標點 (is it written as Taiwan writes?)."""
    from twllm.corpus.check import check_text

    worst = 0.0
    for file in _existing(files):
        found = check_text(_text_of(file))
        worst = max(worst, found.leak_rate)
        if as_json:
            print(json.dumps({"file": str(file), **found.to_row()}, ensure_ascii=False))
        else:
            _show(str(file), found)
    if max_leak_rate is not None and worst > max_leak_rate:
        raise typer.Exit(1)


def convert(
    files: Files,
    to: Annotated[str, typer.Option(help="目標：zh-TW")] = "zh-TW",
    out: Annotated[Path | None, typer.Option(help="寫到這裡（一個檔案），不給就印出來")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="每個檔案印一個 JSON 物件，含要人看的地方 (with the flagged spans)")
    ] = False,
    assume_simplified: Annotated[
        bool, typer.Option("--assume-simplified", help="看不出繁簡的句子也當簡體轉 (convert neutral sentences too)")
    ] = False,
) -> None:
    """簡體轉成臺灣正體；臺灣的文字原樣通過，拿不準的地方標出來 (Simplified → zh-TW, doubtful places flagged)."""
    from twllm.artifact import write_bytes
    from twllm.corpus.convert import convert_text
    from twllm.corpus.files import decode

    if to != "zh-TW":
        raise UserError("只會轉成 zh-TW (only zh-TW)", f"--to {to}", "twllm convert --to zh-TW FILE")
    if out is not None and len(files) > 1:
        raise UserError("--out 一次只能寫一個檔案 (one file at a time)", out, "分開執行，或用 --json")
    for file in _existing(files):
        raw = _bytes(file)
        text, charset = decode(raw)
        found = convert_text(text, assume_simplified)
        mark = codecs.BOM_UTF8 if raw.startswith(codecs.BOM_UTF8) else b""
        as_is = not found.changed and charset.startswith("utf-8")  # native text, byte for byte
        if out is not None:
            write_bytes(out, raw if as_is else mark + found.text.encode("utf-8", "surrogatepass"))
        if as_json:
            flags = [
                {**flag._asdict(), "suggest": [form for form in flag.options if form != flag.text]}
                for flag in found.flags
            ]
            shown = {} if out is not None else {"text": found.text}
            print(
                json.dumps({"file": str(file), "changed": found.changed, **shown, "flags": flags}, ensure_ascii=False)
            )
        elif out is None:
            sys.stdout.write(found.text)
        for flag in found.flags if not as_json else ():
            around = found.text[max(0, flag.start - 6) : flag.start + 8].replace("\n", "⏎")
            print(f"{file}：請看「{around}」：{' / '.join(flag.options)}", file=sys.stderr)


def _existing(files: list[Path]) -> list[Path]:
    """The files; all must be there before the first one is read."""
    for file in files:
        if file != STDIN and require_file(file).is_dir():
            raise UserError("這是資料夾 (a folder)", file, f"指出檔案，例如 {file}/*.txt")
    return files


def _read(file: Path) -> str:
    """The text of a file, in whatever charset it is, line ends as they are."""
    from twllm.corpus.files import decode

    return decode(_bytes(file))[0]


def _bytes(file: Path) -> bytes:
    return sys.stdin.buffer.read() if file == STDIN else file.read_bytes()


def _text_of(file: Path) -> str:
    """A text file's text; of .jsonl and .parquet every text, message, question and answer, a blank line between rows."""
    kinds = {".jsonl", ".parquet"} & set(file.suffixes)
    if file == STDIN or not kinds:
        return _read(file)
    from twllm.corpus.rows import BrokenRow, jsonl_rows, parquet_rows

    texts = []
    for place, row in jsonl_rows(file) if ".jsonl" in kinds else parquet_rows(file):
        if isinstance(row, BrokenRow):
            raise UserError(row.what, f"{file}:{place}", "修正或刪除這一列")
        texts.append("\n".join(_strings(row)))
    return "\n\n".join(texts)


def _strings(value: Any, key: str = "text") -> Iterator[str]:
    """The strings a person reads in a row: not ids, licences and the like."""
    if isinstance(value, str) and key in (
        "text",
        "title",
        "content",
        "value",
        "question",
        "questions",
        "answer",
        "instruction",
        "input",
        "output",
    ):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key if not isinstance(inner, dict) else "")


def _show(name: str, found: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colour = "green" if found.verdict == "zh-TW" else "yellow"
    console = Console()
    console.print(
        f"[bold]{escape(name)}[/]　[{colour}]{found.verdict}[/]　分數 score {found.score:.2f}　"
        f"leak rate {found.leak_rate:.2%}　{found.n_chars:,} 字　{escape('；'.join(found.reasons))}", highlight=False,
    )  # fmt: skip
    table = Table("種類 kind", "處數", "哪裡（第幾字）→ 臺灣寫法", box=None)
    for kind, label in KINDS.items():
        spans = getattr(found, kind)
        if spans:
            told = "、".join(f"{span.text}（{span.start}）→{span.suggest}" for span in spans[:SHOWN])
            table.add_row(label, str(len(spans)), escape(told) + ("…" if len(spans) > SHOWN else ""))
    if table.row_count:
        console.print(table)
