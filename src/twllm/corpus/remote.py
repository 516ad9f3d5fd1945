"""Files behind URLs: http(s) with our own retries (corpus/http.py), everything else (s3://, gs://, hf://, memory://, zip://…::…)
through fsspec and the packages that it names (s3fs, gcsfs, huggingface_hub).

A URL ends in a file, a folder, or a glob; a folder behind http(s) cannot be listed. Credentials come from where the
store's package looks for them (environment, ~/.aws, gcloud), never from a recipe.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from twllm.errors import UserError

HTTP = ("http://", "https://")
GLOB = "*?["


def is_url(path: str) -> bool:
    """Whether it is a URL and no local path."""
    return "://" in path


@dataclass(frozen=True)
class RemoteFile:
    """One file behind a URL. What a local Path has and readers use: `name`, `open`, a size."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """Its last part, without a query."""
        inner = self.url.split("::", maxsplit=1)[0].partition("://")[2]
        return (inner.split("?")[0] if self.url.startswith(HTTP) else inner).rstrip("/").rpartition("/")[2]

    def open(self) -> Any:
        """A binary stream of its bytes, seekable.

        Raises:
            UserError: it cannot be reached.
        """
        if self.url.startswith(HTTP):
            from twllm.corpus.http import HttpFile

            return HttpFile(self.url)
        fs, path = self._place
        return fs.open(path, "rb")

    @cached_property
    def _place(self) -> tuple[Any, str]:
        return filesystem(self.url)  # kept: some file systems close what they opened when they go

    @cached_property
    def info(self) -> dict[str, Any]:
        """What its store tells: size, and whatever changes with the content."""
        if self.url.startswith(HTTP):
            from twllm.corpus.http import Missing, head

            try:
                return head(self.url)
            except Missing as error:
                raise UserError("網址不存在 (not found)", self.url, "檢查網址") from error
        fs, path = self._place
        return dict(fs.info(path))

    @property
    def size(self) -> int:
        """Bytes; 0 if the server does not say."""
        return int(self.info.get("size") or 0)

    def identity(self) -> str:
        """URL and everything its store tells of its content."""
        known = ("size", "ETag", "etag", "checksum", "sha", "mtime", "LastModified", "created", "updated", "blob_id")
        told = " ".join(f"{key}={self.info[key]}" for key in known if self.info.get(key) is not None)
        return f"{self.url} {told}"


def filesystem(url: str) -> tuple[Any, str]:
    """(fsspec file system, path in it).

    Raises:
        UserError: no such protocol, or its package is not installed.
    """
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"打不開這種網址 (no such file system): {error}", url, "pip install s3fs（S3）或 gcsfs（GCS）"
        ) from error
    return fs, str(path)


def list_urls(url: str) -> list[RemoteFile]:
    """The files that a URL stands for, sorted; hidden ones are left out.

    Raises:
        UserError: nothing is there.
    """
    if url.startswith(HTTP):
        return [RemoteFile(url)]
    fs, path = filesystem(url)
    chain = f"::{url.split('::', maxsplit=1)[1]}" if "::" in url else ""
    try:
        if any(sign in path for sign in GLOB):
            found = [name for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"]
        else:
            found = fs.find(path)
    except FileNotFoundError:
        found = []
    except (OSError, PermissionError) as error:
        raise UserError(f"讀不到 (cannot be reached): {error}", url, "檢查網址、權限與登入資料") from error
    if not found:
        raise UserError("找不到語料 (no such corpus source)", url, "檢查網址；檔案、資料夾或 * 都可以")
    protocol = url.partition("://")[0]
    urls = [f"{protocol}://{name.partition('://')[2] or name}{chain}" for name in sorted(map(str, found))]
    return [file for file in map(RemoteFile, urls) if not file.name.startswith(".")]
