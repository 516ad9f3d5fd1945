"""A source as parts that are read each by one task: groups of files, blocks of a Common Crawl index, shards of a data set.

How a source falls into parts depends on the source alone (names and sizes), never on the number of workers. A file is never cut:
the parallel unit is the file, so a source of one huge file runs on one core. A source with a `limit` is one part.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from twllm import data
from twllm.corpus.config import CorpusSource
from twllm.corpus.document import Document, Dropped
from twllm.corpus.files import WEB, File, identity_of, kind_of, size_of, source_files
from twllm.corpus.read import Reading, read_file
from twllm.corpus.remote import RemoteFile, is_url


@dataclass(frozen=True)
class Part:
    """What one task reads: `kind` and plain JSON that its reader understands; `identity` changes when the input does."""

    kind: str
    what: tuple[Any, ...]
    size: int = 0
    identity: str = ""
    web: bool = False

    def to_row(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Part":
        """The inverse of `to_row`."""
        return cls(**(row | {"what": tuple(row["what"])}))


def plan_source(source: CorpusSource, part_bytes: int = 64 << 20) -> list[Part]:
    """The parts of a source, in reading order.

    Raises:
        UserError: nothing is there, or it cannot be reached.
    """
    if source.commoncrawl:
        from twllm.corpus.commoncrawl import plan_snapshot

        parts = plan_snapshot(source.commoncrawl)
        return [Part("commoncrawl", tuple(parts), web=True)] if source.limit else [
            Part("commoncrawl", (part,), int(part.get("size", 0)), web=True) for part in parts
        ]  # fmt: skip
    if source.hub:
        from twllm.corpus.hub import count_shards

        shards = tuple(range(count_shards(source.hub)))
        groups = [shards] if source.limit else [(shard,) for shard in shards]
        return [Part("hub", group, web=True) for group in groups]
    files = source_files(source)
    groups_ = [files] if source.limit else _groups(files, part_bytes)
    return [_files_part(group) for group in groups_]


def _groups(files: list[File], part_bytes: int) -> list[list[File]]:
    """Neighbouring files, each group of about `part_bytes` at most."""
    groups: list[list[File]] = []
    filled = 0
    for file in files:
        size = size_of(file)
        if groups and filled + size <= part_bytes:
            groups[-1].append(file)
            filled += size
        else:
            groups.append([file])
            filled = size
    return groups


def _files_part(files: list[File]) -> Part:
    from twllm.artifact import fingerprint

    identity = fingerprint([identity_of(file) for file in files])
    web = all(kind_of(file) in WEB for file in files)
    return Part("files", tuple(map(str, files)), sum(map(size_of, files)), identity, web)


def read_part(part: Part, reading: Reading) -> Iterator[Document | Dropped]:
    """The documents of a part, at most the source's `limit` of them.

    Raises:
        UserError: it cannot be read.
    """
    left = reading.source.limit
    for item in _items(part, reading):
        yield item
        if left is not None and isinstance(item, Document):
            left -= 1
            if not left:
                return


def _items(part: Part, reading: Reading) -> Iterator[Document | Dropped]:
    items = _READERS[part.kind](part, reading)
    if not reading.takedown:
        yield from items
        return
    for item in items:
        if isinstance(item, Document) and reading.takedown.covers(item):
            reading.on_takedown(item)
        else:
            yield item


def _read_files(part: Part, reading: Reading) -> Iterator[Document | Dropped]:
    for name in part.what:
        yield from read_file(RemoteFile(name) if is_url(name) else data.resolve(name), reading)


def _read_commoncrawl(part: Part, reading: Reading) -> Iterator[Document | Dropped]:
    from twllm.corpus.commoncrawl import read_block

    for block in part.what:
        yield from read_block(block, reading)


def _read_hub(part: Part, reading: Reading) -> Iterator[Document | Dropped]:
    from twllm.corpus.hub import read_shard

    for shard in part.what:
        yield from read_shard(shard, reading)


_READERS = {"files": _read_files, "commoncrawl": _read_commoncrawl, "hub": _read_hub}
