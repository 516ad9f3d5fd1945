"""Files of a source, and their bytes: plain or packed (gzip, Zstandard, bzip2, xz), read as a stream, with a cut-off
file noticed. Local files are paths; what lies behind a URL (s3://, gs://, hf://, https://, …) is corpus/remote.py's.

A cut Zstandard file must be noticed by us: the library's reader ends there without a word. What charset bytes are in is
told by charset.py.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

from twllm import data
from twllm.artifact import fingerprint, hash_path
from twllm.corpus.charset import decode as decode
from twllm.corpus.config import CorpusConfig, CorpusSource
from twllm.corpus.remote import RemoteFile, is_url, list_urls
from twllm.errors import UserError, require_file

KINDS = {
    "jsonl": "jsonl", "ndjson": "jsonl", "parquet": "parquet", "txt": "text", "md": "markdown",
    "warc": "warc", "wet": "warc", "html": "html", "htm": "html", "docx": "docx", "epub": "epub", "pdf": "pdf",
}  # fmt: skip
WEB = {"warc", "wikipedia"}  # kinds in which broken input is counted and passed over, unless the recipe says otherwise
PACKED = ("gz", "zst", "bz2", "xz")
File = Path | RemoteFile
CHUNK_BYTES = 1 << 20
OUTPUT = "documents.jsonl.zst"
SHARDS = "documents"  # folder of the same in one file a part

OnBytes = Callable[[int], None]


def kind_of(path: File) -> str | None:
    """jsonl, parquet, text, warc, …, by suffix (`.gz` and the like looked through); None for any other file."""
    parts = path.name.lower().split(".")[1:]
    if parts and parts[-1] in PACKED:
        parts.pop()
    if parts and parts[-1] == "xml":  # a dump is known by its name: other .xml files are not ours
        return "wikipedia" if "pages-articles" in path.name or "pages-meta-current" in path.name else None
    return KINDS.get(parts[-1]) if parts else None


def list_files(source: CorpusSource) -> list[Path]:
    """The local files of a source, sorted. A corpus folder of ours gives its documents, not its held-out part and samples.

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
        found = document_files(root) or list(root.rglob("*"))
    files = sorted(p for p in found if p.is_file() and kind_of(p) and not p.name.startswith("."))
    if not files:
        raise UserError(
            "這裡沒有可讀的語料檔 (no corpus files)", root, f"可讀的有：.{'、.'.join(KINDS)}，可加 .gz 或 .zst"
        )
    return files


def document_files(folder: Path) -> list[Path]:
    """The training documents of a corpus folder, in order; empty if it is none."""
    one = folder / OUTPUT
    return [one] if one.is_file() else sorted((folder / SHARDS).glob("*.jsonl.zst"))


def source_files(source: CorpusSource) -> list[File]:
    """The files of a source, sorted, local or not.

    Raises:
        UserError: nothing is there, or nothing we read.
    """
    if not is_url(source.path):
        return list(list_files(source))
    found: list[File] = [file for file in list_urls(source.path) if kind_of(file)]
    if not found:
        fix = f"可讀的有：.{'、.'.join(KINDS)}，可加 .{'、.'.join(PACKED)}"
        raise UserError("這個網址底下沒有可讀的語料檔 (no corpus files)", source.path, fix)
    return found


def size_of(file: File) -> int:
    """Its bytes."""
    return file.size if isinstance(file, RemoteFile) else file.stat().st_size


def identity_of(file: File) -> str:
    """What changes when the file does: a local file's name, size and time; of a remote one what its store tells."""
    if isinstance(file, RemoteFile):
        return file.identity()
    status = file.stat()
    return f"{file.as_posix()} {status.st_size} {status.st_mtime_ns}"


def input_hashes(config: CorpusConfig) -> dict[str, str]:
    """Path of each source, and of what is looked for in them, as the recipe spells it → hash of the names and bytes of its files.

    Of files behind URLs, what their store tells of them (size, time, ETag); a snapshot or a hub data set is named by its
    settings alone.
    """
    hashes = {}
    paths = (*config.decontaminate_against, *((config.takedown,) if config.takedown else ()))
    for source in config.sources:
        if source.commoncrawl or source.hub:
            hashes[source.origin] = fingerprint(source.model_dump(mode="json"))
        elif is_url(source.path):
            hashes[source.path] = fingerprint([identity_of(file) for file in source_files(source)])
        else:
            hashes[source.path] = _hash_files(list_files(source))
    for path in paths:
        hashes[path] = _hash_files([Path(path)] if path == config.takedown else list_files(CorpusSource(path=path)))
    return hashes


def _hash_files(files: list[Path]) -> str:
    return fingerprint(
        [
            hash_path(file) if len(files) == 1 else (file.as_posix(), hash_path(file))
            for file in map(require_file, files)
        ]
    )


class CountedFile(io.FileIO):
    """A file that tells how many bytes were read, for progress bars."""

    def __init__(self, path: Path, on_bytes: OnBytes) -> None:
        super().__init__(path)
        self.on_bytes = on_bytes

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        count = super().readinto(buffer) or 0
        self.on_bytes(count)
        return count


class CountedStream(io.RawIOBase):
    """The same over an open stream."""

    def __init__(self, stream: Any, on_bytes: OnBytes) -> None:
        self.stream, self.on_bytes = stream, on_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self.stream.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self.stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self.stream.tell())

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        chunk = self.stream.read(len(buffer))
        buffer[: len(chunk)] = chunk
        self.on_bytes(len(chunk))
        return len(chunk)

    def close(self) -> None:
        self.stream.close()
        super().close()


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


class Bz2(CountedStream):
    """bzip2 whose damage is told as such."""

    def __init__(self, stream: bz2.BZ2File) -> None:
        super().__init__(stream, lambda _: None)

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        try:  # by what one step unpacks: nothing is lost where the next one finds damage
            chunk = self.stream.read1(len(buffer))
            buffer[: len(chunk)] = chunk
            return len(chunk)
        except OSError as error:
            if error.errno:
                raise
            raise BrokenPack(str(error)) from error


@contextmanager
def open_raw(path: File, on_bytes: OnBytes = lambda _: None) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file as they lie there."""
    file: io.RawIOBase = (
        CountedStream(path.open(), on_bytes) if isinstance(path, RemoteFile) else CountedFile(path, on_bytes)
    )
    raw = io.BufferedReader(file, CHUNK_BYTES)
    try:
        yield raw
    finally:
        raw.close()


@contextmanager
def open_stream(path: File, on_bytes: OnBytes = lambda _: None) -> Iterator[io.BufferedIOBase]:
    """The unpacked bytes of a file."""
    file: io.RawIOBase = (
        CountedStream(path.open(), on_bytes) if isinstance(path, RemoteFile) else CountedFile(path, on_bytes)
    )
    raw = io.BufferedReader(file, CHUNK_BYTES)
    stream: io.BufferedIOBase = raw
    packed: dict[str, Callable[[], Any]] = {
        "gz": lambda: gzip.GzipFile(fileobj=raw),
        "zst": lambda: io.BufferedReader(ZstdFile(raw), CHUNK_BYTES),
        "bz2": lambda: io.BufferedReader(Bz2(bz2.BZ2File(raw)), CHUNK_BYTES),
        "xz": lambda: lzma.LZMAFile(raw),  # noqa: SIM115 - closed below
    }
    if unpack := packed.get(path.name.rpartition(".")[2]):
        stream = unpack()
    try:
        yield stream
    finally:
        stream.close()
        raw.close()


def broken_file_errors() -> tuple[type[Exception], ...]:
    """What reading a damaged packed file raises."""
    import zstandard

    return (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, BrokenPack, zstandard.ZstdError)


class BrokenPack(Exception):
    """bz2 tells of damage by an OSError, as a full disk does: this one is damage."""
