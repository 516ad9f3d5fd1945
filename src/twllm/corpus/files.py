"""Files of a source, and their bytes: plain, gzip or Zstandard, read as a stream, with a cut-off file noticed.

A cut Zstandard file must be noticed by us: the library's reader ends there without a word. Text of unknown charset is
tried as UTF-8, then Big5 (cp950, what Taiwan's old files are in), then GB 18030; strictly, so that no character is
guessed.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path

from twllm import data
from twllm.artifact import fingerprint, hash_path
from twllm.corpus.config import CorpusConfig, CorpusSource
from twllm.errors import UserError, require_file

KINDS = {
    "jsonl": "jsonl", "ndjson": "jsonl", "parquet": "parquet", "txt": "text", "md": "markdown",
    "warc": "warc", "wet": "warc",
}  # fmt: skip
PACKED = ("gz", "zst")
CHUNK_BYTES = 1 << 20
FALLBACK_CHARSETS = ("utf-8-sig", "cp950", "gb18030")
MAX_RARE_SHARE = 0.25  # Taiwan's statutes have 0.0001, transcripts 0.0007; Simplified text in GB read as Big5 0.46
ALIASES = {
    "big5": "cp950",
    "big5-hkscs": "big5hkscs",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "utf8": "utf-8-sig",
    "utf-8": "utf-8-sig",
}
OUTPUT = "documents.jsonl.zst"

OnBytes = Callable[[int], None]


def kind_of(path: Path) -> str | None:
    """jsonl, parquet, text, markdown or warc, by suffix (`.gz` and `.zst` looked through); None for any other file."""
    parts = path.name.lower().split(".")[1:]
    if parts and parts[-1] in PACKED:
        parts.pop()
    return KINDS.get(parts[-1]) if parts else None


def list_files(source: CorpusSource) -> list[Path]:
    """The files of a source, sorted. A corpus folder of ours gives its documents, not its held-out part and samples.

    Raises:
        UserError: nothing is there, or nothing we read.
    """
    root = data.resolve(source.path)
    if any(char in source.path for char in "*?[") and not root.exists():
        found = [Path(name) for name in glob(str(root), recursive=True)]  # noqa: PTH207 - absolute patterns too
    elif require_file(root, "找不到語料 (no such corpus source)").is_file():
        if kind_of(root) is None:
            raise UserError(
                "不認得的檔案類型 (unknown file type)", root, f"可讀的有：.{'、.'.join(KINDS)}，可加 .gz 或 .zst"
            )
        return [root]
    else:
        found = [root / OUTPUT] if (root / OUTPUT).is_file() else list(root.rglob("*"))
    files = sorted(p for p in found if p.is_file() and kind_of(p) and not p.name.startswith("."))
    if not files:
        raise UserError(
            "這裡沒有可讀的語料檔 (no corpus files)", root, f"可讀的有：.{'、.'.join(KINDS)}，可加 .gz 或 .zst"
        )
    return files


def input_hashes(config: CorpusConfig) -> dict[str, str]:
    """Path of each source, and of what is looked for in them, as the recipe spells it → hash of the names and bytes of its files."""
    hashes = {}
    for source in (*config.sources, *(CorpusSource(path=path) for path in config.decontaminate_against)):
        files = list_files(source)
        names = [hash_path(file) if len(files) == 1 else (file.as_posix(), hash_path(file)) for file in files]
        hashes[source.path] = fingerprint(names)
    return hashes


class CountedFile(io.FileIO):
    """A file that tells how many bytes were read, for progress bars."""

    def __init__(self, path: Path, on_bytes: OnBytes) -> None:
        super().__init__(path)
        self.on_bytes = on_bytes

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        count = super().readinto(buffer) or 0
        self.on_bytes(count)
        return count


class ZstdFile(io.RawIOBase):
    """A readable stream of a Zstandard file; EOFError where the file ends inside a frame."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self.stream, self.left = stream, memoryview(b"")
        self.chunks = self._decompress()

    def _decompress(self) -> Iterator[bytes]:
        import zstandard

        new = zstandard.ZstdDecompressor().decompressobj
        frame, started = new(), False
        while chunk := self.stream.read(CHUNK_BYTES):
            while chunk:
                started = True
                yield frame.decompress(chunk)
                chunk = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame, started = new(), False
        if started:
            raise EOFError("Zstandard frame is cut off")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        while not self.left:
            try:
                self.left = memoryview(next(self.chunks))
            except StopIteration:
                return 0
        count = min(len(buffer), len(self.left))
        buffer[:count], self.left = self.left[:count], self.left[count:]
        return count

    def close(self) -> None:
        self.stream.close()
        super().close()


@contextmanager
def open_stream(path: Path, on_bytes: OnBytes = lambda _: None) -> Iterator[io.BufferedIOBase]:
    """The unpacked bytes of a file."""
    raw = io.BufferedReader(CountedFile(path, on_bytes), CHUNK_BYTES)
    stream: io.BufferedIOBase = raw
    if path.name.endswith(".gz"):
        stream = gzip.GzipFile(fileobj=raw)
    elif path.name.endswith(".zst"):
        stream = io.BufferedReader(ZstdFile(raw), CHUNK_BYTES)
    try:
        yield stream
    finally:
        stream.close()
        raw.close()


def broken_file_errors() -> tuple[type[Exception], ...]:
    """What reading a damaged packed file raises."""
    import zstandard

    return (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)


def decode(raw: bytes, declared: Iterable[str] = ()) -> tuple[str, str]:
    """(text, charset): by byte order mark, the declared charsets, then the usual ones; the first that fits strictly.

    Where none fits, the first declared one (or UTF-8) with U+FFFD for each broken character.
    """
    if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        declared = ("utf-16",)
    known = [ALIASES.get(name.strip().lower(), name.strip().lower()) for name in declared]
    names = [name for name in known if _is_charset(name)]
    for name in (*names, *FALLBACK_CHARSETS):
        try:
            text = raw.decode(name)
        except UnicodeDecodeError:
            continue
        if name in names or name != "cp950" or not _looks_wrong(text):
            return text, name
    name = (*names, "utf-8-sig")[0]
    return raw.decode(name, "replace"), name


def _looks_wrong(text: str) -> bool:
    """Whether text read as Big5 is likely GB: too many of Big5's second-level (rare) characters, rows C9 and up."""
    leads = [raw[0] for char in text[:4000] if len(raw := char.encode("cp950")) == 2 and raw[0] >= 0xA4]
    return sum(lead >= 0xC9 for lead in leads) > MAX_RARE_SHARE * len(leads)


def _is_charset(name: str) -> bool:
    try:
        return codecs.lookup(name)._is_text_encoding  # base64 and the like are codecs too
    except (LookupError, ValueError):
        return False
