"""Conversations with pictures: rows of a data set → messages in parts and where the pictures are; and their token shards.

Shapes: OpenAI's and Hugging Face's content parts (`image_url`, `image`); a row's `image` or `images` (files relative to the data file,
data URLs, parquet's {bytes, path}) with `<image>` in the questions where they stand, as LLaVA's and LLaMA-Factory's files have it, or
without any, which puts them before the first question. Everything else is read as by conversation.py.
A shard of chats with pictures has `pictures.jsonl` beside its ids: for each document the references, which training opens.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twllm.errors import UserError
from twllm.tokens.config import DatasetConfig
from twllm.tokens.conversation import Conversation, Tally, unread_conversations
from twllm.tokens.conversation import conversation_of as text_conversation
from twllm.tokens.picture_template import IMAGE, expand
from twllm.tokens.pictures import BadPicture, read_picture
from twllm.tokens.shards import write_shard
from twllm.tokens.tokenizer import ChatTokenizer

PICTURES = "pictures.jsonl"
KINDS = {"image", "image_url", "input_image"}
MARK = re.compile("\ufdd0(\\d+)\ufdd1")  # noncharacters: no text has them
SIGNS = re.compile("[\ufdd0\ufdd1]")


@dataclass(frozen=True)
class PictureChat:
    """A conversation whose contents may be parts; `pictures` are the references, in the order of the parts."""

    conversation: Conversation
    messages: tuple[dict[str, Any], ...]
    pictures: tuple[Any, ...]
    root: Path

    def open(self) -> list[Any]:
        """All its pictures.

        Raises:
            BadPicture: one of them cannot be used.
        """
        return [read_picture(reference, self.root) for reference in self.pictures]


def read_picture_chats(
    dataset: DatasetConfig, tally: Tally | None = None, *, check: bool = True
) -> Iterator[PictureChat]:
    """The conversations of a data set, in file order; `check`: every picture is opened once.

    Raises:
        UserError: as `read_dataset`; also pictures that cannot be used, or another number of them than of places (with
            `on_broken = "skip"` such a row is counted as bad_picture or picture_count).
    """
    tally = Tally() if tally is None else tally
    for file, place, item in unread_conversations(dataset, tally):
        chat = _read(item, dataset, tally, f"{file}:{place}", file.parent, check)
        if chat is not None:
            yield chat


def _read(
    row: Mapping[str, Any], dataset: DatasetConfig, tally: Tally, where: str, root: Path, check: bool
) -> PictureChat | None:
    """The chat of a row, None where it is left out and counted."""
    try:
        chat = _chat(row, dataset, tally, where, root)
        if chat is not None and check:
            chat.open()
        return chat
    except (BadPicture, _BadCount) as error:
        if dataset.on_broken == "stop":
            raise UserError(error.what, where, f'{error.fix}；或設 on_broken = "skip"') from error
        tally.skip("picture_count" if isinstance(error, _BadCount) else "bad_picture", where)
        return None


class _BadCount(UserError):
    """Pictures and places differ."""


def _chat(row: Mapping[str, Any], dataset: DatasetConfig, tally: Tally, where: str, root: Path) -> PictureChat | None:
    marked, references = mark_pictures(row, where)
    conversation = text_conversation(marked, dataset, tally, where)
    if conversation is None:
        return None
    messages: list[dict[str, Any]] = []
    kept: list[Any] = []
    for message in conversation.messages:
        parts, used = _parts(message["content"])
        if used and message["role"] != "user":
            raise _BadCount("只有使用者可以給圖片 (a picture outside of a question)", where, "把圖片放在使用者的訊息")
        kept += [references[number] for number in used]
        messages.append({"role": message["role"], "content": parts})
    named = tuple({"role": m["role"], "content": _plain(m["content"])} for m in messages)
    return PictureChat(replace(conversation, messages=named), tuple(messages), tuple(kept), root)


def mark_pictures(row: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[Any]]:
    """The row with a mark in its texts for every picture, and the references that the marks count.

    Raises:
        UserError: `<image>` and the row's pictures differ in number.
    """
    listed = row.get("images", row.get("image"))
    listed = [] if listed is None else list(listed) if isinstance(listed, list | tuple) else [listed]
    references: list[Any] = []
    left = list(listed)

    def mark(reference: Any) -> str:
        references.append(reference)
        return f"\ufdd0{len(references) - 1}\ufdd1"

    def text(value: str) -> str:
        value = SIGNS.sub("", value)
        return (
            re.sub(re.escape(IMAGE), lambda found: mark(left.pop(0)) if left else found[0], value) if listed else value
        )

    def content(value: Any) -> Any:
        if isinstance(value, str):
            return text(value)
        if not isinstance(value, list | tuple):
            return value
        found, last = "", ""
        for part in value:
            kind = str(part.get("type", "text")) if isinstance(part, Mapping) else "text"
            if kind in KINDS:
                piece, kind = mark(_reference(part, left, where)), "image"
            else:
                piece = content(
                    part if isinstance(part, str) else part.get("text", "") if isinstance(part, Mapping) else ""
                )
            found += ("\n" if last else "") + piece
            last = kind
        return found

    made = {key: _deep(value, content) if key not in ("images", "image") else None for key, value in row.items()}
    made = {key: value for key, value in made.items() if key not in ("images", "image")}
    if listed and len(left) == len(listed) and not references:  # no place is named: before the first question
        return _before_first(made, mark, left), references
    if left:
        what = f"有 {len(listed)} 張圖片，{IMAGE} 只有 {len(listed) - len(left)} 個 (pictures and places differ)"
        raise _BadCount(what, where, f"每張圖片放一個 {IMAGE}，或都不放")
    if listed and any(IMAGE in t for t in _texts(made)):
        what = f"{IMAGE} 比圖片多 (more places than the {len(listed)} pictures)"
        raise _BadCount(what, where, f"每張圖片放一個 {IMAGE}")
    return made, references


def _reference(part: Mapping[str, Any], left: list[Any], where: str) -> Any:
    """What a picture part names; a part that names nothing takes the row's next picture."""
    for key in ("image_url", "image", "url", "path"):
        value = part.get(key)
        value = value.get("url") if isinstance(value, Mapping) and "url" in value else value
        if value:
            return value
    if not left:
        raise _BadCount("圖片的位置比圖片多 (more places than pictures)", where, "在 images 補上圖片")
    return left.pop(0)


def _deep(value: Any, content: Any) -> Any:
    """Turns with their contents exchanged; everything else as it is."""
    if isinstance(value, str):
        return content(value)
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping) and "type" not in value[0]:
        return [
            {k: content(v) if k in ("content", "value", "text") else v for k, v in turn.items()} if isinstance(turn, Mapping) else turn
            for turn in value
        ]  # fmt: skip
    return value


def _before_first(row: dict[str, Any], mark: Any, left: list[Any]) -> dict[str, Any]:
    """Marks for all pictures before the first question."""
    lead = "".join(mark(reference) + "\n" for reference in left)
    for key, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            for turn in value:
                role = str(turn.get("role") or turn.get("from") or turn.get("speaker") or "").lower()
                slot = next((k for k in ("content", "value", "text") if isinstance(turn.get(k), str)), None)
                if slot and role in ("user", "human"):
                    turns = [{**t, slot: lead + t[slot]} if t is turn else t for t in value]
                    return {**row, key: turns}
    for key in ("instruction", "question", "prompt", "query"):
        if isinstance(row.get(key), str):
            return {**row, key: lead + row[key]}
    return row


def _texts(row: Mapping[str, Any]) -> Iterator[str]:
    for value in row.values():
        for turn in value if isinstance(value, list) else ():
            if isinstance(turn, Mapping):
                yield from (v for v in turn.values() if isinstance(v, str))


def _parts(text: str) -> tuple[Any, list[int]]:
    """(the text, or its parts where it has pictures; which pictures)."""
    used = [int(found[1]) for found in MARK.finditer(text)]
    if not used:
        return text, []
    parts: list[dict[str, Any]] = []
    start = 0
    for found in MARK.finditer(text):
        if before := text[start : found.start()].strip("\n"):
            parts.append({"type": "text", "text": before})
        parts.append({"type": "image"})
        start = found.end()
    if rest := text[start:].strip("\n"):
        parts.append({"type": "text", "text": rest})
    return parts, used


def _plain(content: Any) -> str:
    """A content as text, for counts and contamination checks."""
    return content if isinstance(content, str) else "\n".join(p["text"] for p in content if p["type"] == "text")


def picture_shard(
    folder: Path, chats: Sequence[PictureChat], tokenizer: ChatTokenizer, context: int, tokens_each: int
) -> dict[str, Any]:
    """Write a shard of `<image>`-expanded chats; one that does not fit loses its last turns, whole, and is counted.

    Raises:
        UserError: nothing fits.
    """
    image_id = tokenizer.controls[IMAGE]
    counts = {"num_conversations": 0, "num_shortened": 0, "num_too_long": 0, "num_pictures": 0}
    references: list[list[Any]] = []

    def encoded() -> Iterator[tuple[str, list[int], list[bool]]]:
        for chat in chats:
            counts["num_conversations"] += 1
            messages, whole = list(chat.messages), len(chat.messages)
            while True:
                found = tokenizer.encode_chat(messages)
                number = found.ids.count(image_id)
                found = expand(found, image_id, [[image_id] * tokens_each] * number)
                if len(found.ids) <= context or len(messages) <= 2:
                    break
                last = max(i for i, message in enumerate(messages) if message["role"] == "user")
                messages = messages[: max(last, 1)]
            if len(found.ids) > context or not any(found.mask):
                counts["num_too_long"] += 1
                continue
            counts["num_shortened"] += len(messages) < whole
            counts["num_pictures"] += number
            references.append([_stored(reference, chat.root) for reference in chat.pictures[:number]])
            yield chat.conversation.id, found.ids, found.mask

    index = write_shard(folder, encoded(), tokenizer.vocab_size)
    if not index["num_documents"]:
        fix = f"提高 context（現在 {context}；一張圖片是 {tokens_each} 個詞元）"
        raise UserError("沒有可訓練的圖片對話 (no chat with pictures fits)", folder.name, fix)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in references)
    (folder / PICTURES).write_text(lines, encoding="utf-8")
    index |= {**counts, "tokens_per_picture": tokens_each}
    (folder / "index.json").write_text(json.dumps(index, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return index


def _stored(reference: Any, root: Path) -> str:
    """A reference that needs no folder to be found: an absolute path or a data URL."""
    if isinstance(reference, dict) and reference.get("bytes"):
        import base64

        return f"data:image/any;base64,{base64.b64encode(reference['bytes']).decode()}"
    reference = reference.get("path") if isinstance(reference, dict) else reference
    return str(reference) if str(reference).startswith("data:") else str((root / str(reference)).absolute())


def shard_pictures(folder: Path) -> list[list[str]]:
    """The references of a shard's documents."""
    with (folder / PICTURES).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
