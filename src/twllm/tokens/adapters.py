"""Readers for conversations that are not one row each, and which reader a file needs.

A reader takes (file, data set, tally) and yields (place, row with `messages`) or a `BrokenRow`; what its own rule leaves
out it counts in the tally. Adding one = a function, a line in READERS, a test. Here: SQuAD-shaped JSON (DRCD,
https://arxiv.org/abs/1806.00920), ChatterBot corpus YAML, records of XML (open data); oasst.py, fastchat.py and
transcript.py hold the larger ones.
"""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

from twllm.corpus.files import broken_file_errors, open_stream
from twllm.corpus.rows import BrokenRow
from twllm.errors import UserError
from twllm.tokens.config import DatasetConfig
from twllm.tokens.conversation import Tally
from twllm.tokens.fastchat import read_fastchat
from twllm.tokens.oasst import read_oasst
from twllm.tokens.rows import Rows, file_rows, read_text
from twllm.tokens.transcript import read_transcript

BREAKS = re.compile(r"<(?:br|/?p|/?div|/?li|/?tr|/?h\d|/?ul|/?ol|/?table)\b[^>]*>", re.IGNORECASE)
LINKS = re.compile(r"<a\b[^>]*>.*?</a\s*>", re.IGNORECASE | re.DOTALL)
HIDDEN = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
TAGS = re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE)
GARBLED = "\ufffd"


def pair(question: str, answer: str) -> list[dict[str, str]]:
    """One question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def detect(file: Path) -> str:
    """oasst, fastchat or messages: what the first row of a file looks like."""
    try:
        row = next((row for _, row in file_rows(file) if not isinstance(row, BrokenRow)), {})
    except (OSError, UnicodeDecodeError):
        return "messages"
    if isinstance(row.get("prompt"), dict) and "message_tree_id" in row:
        return "oasst"
    if "thread" in row or {"message_id", "text", "role"} <= set(row):
        return "oasst"
    if isinstance(row.get("state"), dict) or isinstance(row.get("states"), list) or "conversation_a" in row:
        return "fastchat"
    return "messages"


def read_squad(file: Path, dataset: DatasetConfig, tally: Tally) -> Rows:
    """SQuAD 1.1 JSON: the passage and a question → the first answer's text; a question without answer is counted."""
    try:
        articles = json.loads(read_text(file))["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("不是 SQuAD 格式 (not SQuAD-shaped JSON)", file, '最外層要有 "data": [...]') from error
    for article in articles:
        for paragraph in article["paragraphs"]:
            for item in paragraph["qas"]:
                if not item.get("answers"):
                    tally.skip("no_answer", f"{file}:{item.get('id')}")
                    continue
                question = f"請閱讀文章，回答問題。\n文章：{paragraph['context']}\n問題：{item['question']}"
                yield (
                    str(item["id"]),
                    {"id": str(item["id"]), "messages": pair(question, item["answers"][0]["text"])},
                )


def read_chatterbot(file: Path, dataset: DatasetConfig, tally: Tally) -> Rows:
    """ChatterBot corpus YAML: lists of alternating turns; further lines after a question are further answers."""
    import yaml

    try:
        lists = yaml.safe_load(read_text(file))["conversations"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError("不是 ChatterBot 格式 (not a ChatterBot corpus)", file, "最外層要有 conversations:") from error
    for number, turns in enumerate(lists or ()):
        if not isinstance(turns, list) or len(turns) < 2:
            tally.skip("no_answer", f"{file}:#{number}")
            continue
        question, *answers = turns
        for which, answer in enumerate(answers):
            identity = f"{file.stem}/{number}/{which}"
            yield identity, {"id": identity, "messages": pair(str(question), str(answer))}


def read_xml(file: Path, dataset: DatasetConfig, tally: Tally) -> Rows:
    """XML records: every element with a `question_key` and an `answer_key` child; markup in them becomes plain text.

    Counted and left out: no_answer, link_only (the answer is nothing but links), garbled (U+FFFD: lost characters).

    Raises:
        UserError: the keys are not given, or the file is no XML.
    """
    if not dataset.question_key or not dataset.answer_key:
        fix = '在資料設定加上 question_key = "…" 與 answer_key = "…"'
        raise UserError("XML 要說哪個元素是問、哪個是答 (question_key, answer_key)", file, fix)
    number = 0
    try:
        with open_stream(file) as stream:
            for _, element in ElementTree.iterparse(stream):
                if element.find(dataset.question_key) is None or element.find(dataset.answer_key) is None:
                    continue
                number += 1
                row = {child.tag: (child.text or "").strip() for child in element if (child.text or "").strip()}
                element.clear()
                if (kept := _record(row, dataset, tally, f"{file}:{number}")) is not None:
                    yield str(number), kept
        if not number:
            what = f"沒有同時含 {dataset.question_key} 與 {dataset.answer_key} 的元素 (no such records)"
            raise UserError(what, file, "檢查 question_key 與 answer_key 的拼法")
    except ElementTree.ParseError as error:
        raise UserError(f"不是正確的 XML (broken XML): {error}", file, "修正這個檔案") from error
    except broken_file_errors() as error:
        raise UserError(f"檔案不完整或損壞 (damaged file): {error}", file, "重新下載這個檔案") from error


def _record(row: dict[str, str], dataset: DatasetConfig, tally: Tally, where: str) -> dict[str, Any] | None:
    """A record as a row with messages, or None where it is left out."""
    markup = row.pop(dataset.answer_key, "")
    question, answer = plain_text(row.pop(dataset.question_key, "")), plain_text(markup)
    reason = ""
    if not question or not answer:
        reason = "no_answer"
    elif not re.search(r"\w", plain_text(LINKS.sub("", HIDDEN.sub("", markup)))):
        reason = "link_only"
    elif GARBLED in question + answer:
        reason = "garbled"
    if reason:
        tally.skip(reason, where)
        return None
    return {"messages": pair(question, answer), **row}


def plain_text(markup: str) -> str:
    """Text with HTML markup → plain text: a line for every block, cells apart, entities resolved.

    >>> plain_text("一、帶<b>身分證</b>。<br />二、填表 &amp; 簽名。")
    '一、帶身分證。\\n二、填表 & 簽名。'
    """
    text = BREAKS.sub("\n", HIDDEN.sub("", markup))
    text = unescape(TAGS.sub("", re.sub(r"</t[dh]\s*>", " ", text, flags=re.IGNORECASE)))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


READERS: dict[str, Callable[[Path, DatasetConfig, Tally], Rows]] = {
    "oasst": read_oasst, "fastchat": read_fastchat, "transcript": read_transcript,
    "squad": read_squad, "chatterbot": read_chatterbot, "xml": read_xml,
}  # fmt: skip
