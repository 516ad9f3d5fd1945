"""The records of a WARC or WET file, with what is broken cut out: after a damaged record the next whole one is looked for.

A packed file is a row of gzip members, one a record: where one cannot be unpacked, the file is read again from its second
byte on, until a member begins that unpacks to a record. In a plain file (or .zst) the next line that begins with `WARC/`
is looked for. A record is given out when its member has ended well, so that the checksum covers it. At most `max_bytes` of a
record are held. ARC files are not covered.
"""

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CHUNK_BYTES = 1 << 15
MAGIC = b"\x1f\x8b\x08"
VERSION = b"WARC/"
MAX_HEAD_LINES = 200
MAX_HEAD_LINE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Record:
    """One record: header names in lower case, its block, and where in the file it (or its member) begins."""

    head: dict[str, str]
    block: bytes
    offset: int
    too_large: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """What stands for a damaged stretch: from where, why, and whether nothing whole follows."""

    offset: int
    what: str
    last: bool


class RecordError(Exception):
    """The framing is wrong: no WARC header where one belongs, or a length that does not fit."""


class Packed:
    """The bytes of a packed file, with some of them given back; the file is sought in only after damage."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.left, self.place = stream, b"", stream.tell()

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        """Some bytes, about `size`; none at the end."""
        found, self.left = self.left or self.stream.read(size), b""
        self.place += len(found)
        return found

    def give_back(self, rest: bytes) -> None:
        """The next bytes to read."""
        self.left = rest + self.left
        self.place -= len(rest)

    def more(self) -> bool:
        """Whether a byte is left."""
        self.give_back(self.read())
        return bool(self.left)

    def seek(self, place: int) -> None:
        """Go on from there."""
        self.stream.seek(place)
        self.left, self.place = b"", place


class Member(io.RawIOBase):
    """One gzip member of a file: unpacked bytes up to its end; EOFError where the file ends before."""

    def __init__(self, raw: Packed) -> None:
        self.raw, self.unpack, self.rest = raw, zlib.decompressobj(31), b""
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        while not self.ended:
            packed = self.rest or self.raw.read()
            if not packed:
                raise EOFError("a gzip member is cut off")
            found = self.unpack.decompress(packed, len(buffer))
            self.rest = self.unpack.unconsumed_tail
            if self.unpack.eof:
                self.ended = True
                self.raw.give_back(self.unpack.unused_data)
            if found:
                buffer[: len(found)] = found
                return len(found)
        return 0


def read_records(raw: Any, packed: bool, max_bytes: int) -> Iterator[Record | Broken]:
    """The records of a file: `packed` as gzip members, else one after the other."""
    yield from _packed_records(Packed(raw), max_bytes) if packed else _plain_records(raw, max_bytes)


# -- gzip members -----------------------------------------------------------------------------------------------


def _packed_records(raw: Packed, max_bytes: int) -> Iterator[Record | Broken]:
    while raw.more():
        start, waiting, whole = raw.place, None, True
        stream = io.BufferedReader(Member(raw), CHUNK_BYTES)
        try:
            try:
                while (record := _read_record(stream, start, max_bytes)) is not None:
                    if waiting:
                        yield waiting
                    waiting = record
            except RecordError as error:
                whole, told = False, str(error)
            while stream.read(1 << 20):
                pass
        except (zlib.error, EOFError) as error:
            found = _next_member(raw, start + 1)
            yield Broken(start, str(error), last=not found)
            continue
        if waiting:
            yield waiting
        if not whole:
            yield Broken(start, told, last=not raw.more())


def _next_member(raw: Packed, start: int) -> bool:
    """Move to the next member from `start` on that unpacks to a record; False: none is left."""
    raw.seek(start)
    seen, begin = b"", start  # what is looked through, and where it begins
    while chunk := raw.read(1 << 20):
        seen += chunk
        place = seen.find(MAGIC)
        while place >= 0:
            back = raw.place
            raw.seek(begin + place)
            good = _begins_record(raw)
            raw.seek(begin + place if good else back)
            if good:
                return True
            place = seen.find(MAGIC, place + 1)
        keep = len(MAGIC) - 1
        begin, seen = begin + max(0, len(seen) - keep), seen[-keep:]
    return False


def _begins_record(raw: Packed) -> bool:
    try:
        return io.BufferedReader(Member(raw), 1 << 12).read(len(VERSION)) == VERSION
    except (zlib.error, EOFError):
        return False


# -- plain files ------------------------------------------------------------------------------------------------


class Pushed:
    """A stream into which a line can be put back, and that knows its place."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.pushed, self.place = stream, b"", 0

    def readline(self, limit: int = -1) -> bytes:
        """The next line, or the one put back."""
        line, self.pushed = self.pushed or self.stream.readline(limit), b""
        self.place += len(line)
        return line

    def read(self, size: int) -> bytes:
        """Bytes; a line put back must have been taken before."""
        found: bytes = self.stream.read(size)
        self.place += len(found)
        return found

    def push(self, line: bytes) -> None:
        """Put a line back."""
        self.pushed = line
        self.place -= len(line)


def _plain_records(raw: Any, max_bytes: int) -> Iterator[Record | Broken]:
    stream = Pushed(raw)
    while True:
        start = stream.place
        try:
            record = _read_record(stream, start, max_bytes)
        except (RecordError, EOFError) as error:
            if raw.seekable():  # a length that is too great has swallowed what follows
                stream = Pushed(raw)
                stream.place = raw.seek(start + len(VERSION))
            found = _next_header(stream)
            yield Broken(start, str(error), last=not found)
            continue
        if record is None:
            return
        yield record


def _next_header(stream: Pushed) -> bool:
    while line := stream.readline(MAX_HEAD_LINE_BYTES):
        if line.startswith(VERSION):
            stream.push(line)
            return True
    return False


# -- one record -------------------------------------------------------------------------------------------------


def _read_record(stream: Any, offset: int, max_bytes: int) -> Record | None:
    """The next record; None at the end.

    Raises:
        RecordError: there is something, but no record.
    """
    line = stream.readline(MAX_HEAD_LINE_BYTES)
    while line in (b"\r\n", b"\n"):
        line = stream.readline(MAX_HEAD_LINE_BYTES)
    if not line:
        return None
    if not line.startswith(VERSION):
        raise RecordError("no WARC header here")
    head: dict[str, str] = {}
    for _ in range(MAX_HEAD_LINES):
        line = stream.readline(MAX_HEAD_LINE_BYTES)
        if line in (b"\r\n", b"\n"):
            break
        name, colon, value = line.decode("utf-8", "replace").partition(":")
        if not colon:
            raise RecordError(
                "a WARC header is cut off" if not line.endswith(b"\n") else "a broken line in a WARC header"
            )
        head[name.strip().lower()] = value.strip()
    length = head.get("content-length", "")
    if not length.isdecimal():
        raise RecordError(f"Content-Length is {length[:40]!r}")
    size = int(length)
    block = stream.read(min(size, max_bytes))
    left = size - len(block)
    while left and len(block) == max_bytes:
        skipped = len(stream.read(min(left, 1 << 20)))
        if not skipped:
            break
        left -= skipped
    if left:
        raise RecordError("the record is cut off")
    end = stream.readline(4)
    if end not in (b"\r\n", b"\n", b""):
        if isinstance(stream, Pushed) and end.startswith(VERSION[:4]):
            stream.push(end + stream.readline(MAX_HEAD_LINE_BYTES))
        raise RecordError("the record is longer or shorter than its Content-Length")
    return Record(head, block, offset, too_large=size > max_bytes)
