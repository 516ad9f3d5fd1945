"""Answers on disk: our append-only responses file, by which an interrupted evaluation goes on, and MediaTek's result files.

Ours is `{"task", "id", "prompt", "output", "key"}`, one a line. An answer is used again only when its key, the hash of model,
template, settings and prompt, is the same; a line cut off by a crash is left out. MediaTek's is
`{"name", "results": {"DRCD": [{"id", "response"}, …], "TMMLU/國際法": […], …}}`; the names its tools used at other times
(`TMMLU_國際法`, `XSum_TC`, `BB_Penguins_in_a_Table_TC`) are known too. An id given twice counts with its last answer, as there.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from twllm.artifact import explain_os_errors, sync, write_text
from twllm.errors import UserError, require_file
from twllm.evaluate.task import Item, Response, Task

Answers = dict[tuple[str, str], Response]
FORMER_NAMES = {"XSum_TC": "XSum_TC_5k", "BB_Penguins_in_a_Table_TC": "PenguinsInTable_TC"}


class ResponseFile:
    """The answers of one evaluation, kept as they come."""

    def __init__(self, path: Path) -> None:
        """Read what is there."""
        self.path = path
        text = path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
        self._torn = bool(text) and not text.endswith("\n")
        self._known = {(row.task, row.id, row.key): row for row in map(_parse, text.split("\n")) if row is not None}

    def find(self, item: Item, key: str) -> Response | None:
        """The stored answer to the item under this key."""
        return self._known.get((item.task, item.id, key))

    def append(self, responses: Iterable[Response]) -> None:
        """Store answers; on disk when it returns."""
        with explain_os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write("\n" if self._torn else "")
                self._torn = False
                for row in responses:
                    stream.write(row.model_dump_json() + "\n")
                    self._known[(row.task, row.id, row.key)] = row
            sync(self.path)

    def keep(self, responses: Iterable[Response]) -> None:
        """Replace the file by these answers, in this order: what the finished result rests on."""
        write_text(self.path, "".join(row.model_dump_json() + "\n" for row in responses))


def _parse(line: str) -> Response | None:
    try:
        return Response.model_validate_json(line)
    except ValidationError:
        return None


def read_responses(path: Path, tasks: Iterable[Task]) -> tuple[str, Answers]:
    """(model name, answers by (task, item id)) of a responses file of ours or of MediaTek's.

    Raises:
        UserError: no such file, or neither format.
    """
    if require_file(path, "找不到回答檔 (no such responses file)").is_dir():
        raise UserError("回答要是檔案，這裡是資料夾 (a folder, not a file)", path, "指到裡面的 .json 或 .jsonl")
    text = path.read_bytes().decode("utf-8", "replace")
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if isinstance(content, dict) and isinstance(content.get("results"), dict):
        try:
            return str(content.get("name") or path.stem), _from_mediatek(content["results"], tasks)
        except (KeyError, TypeError, AttributeError) as error:
            what = f"回答的欄位不對 (unexpected fields)：{type(error).__name__}: {error}"
            raise UserError(what, path, '每筆要有 "id" 與 "response"') from error
    rows = [_parse(line) for line in text.split("\n") if line.strip()]
    if not rows or any(row is None for row in rows):
        fix = '要是 MediaTek 的 {"name", "results"}，或每行一筆 {"task", "id", "output"}'
        raise UserError("看不懂的回答檔 (unknown responses format)", path, fix)
    return path.stem, {(row.task, row.id): row for row in rows if row is not None}


def _from_mediatek(results: dict[str, list[dict[str, Any]]], tasks: Iterable[Task]) -> Answers:
    """Names `DRCD` and `TMMLU/國際法` become our task names, ids of the second kind `國際法/0`.

    Raises:
        TypeError: an answer is no text (an empty text is one).
    """
    ours = {task.published: task.name for task in tasks if task.published}
    answers: Answers = {}
    for name, rows in results.items():
        published, _, topic = FORMER_NAMES.get(name, name).partition("/")
        if not topic and published.startswith("TMMLU_"):
            published, _, topic = published.partition("_")
        if published not in ours:
            continue
        for row in rows:
            id = f"{topic}/{row['id']}" if topic else str(row["id"])
            if not isinstance(row["response"], str):
                raise TypeError(f"{name} {row['id']}: response is no text")
            answers[(ours[published], id)] = Response(task=ours[published], id=id, output=row["response"])
    return answers
