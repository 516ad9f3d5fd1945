"""HTTP(S) downloads that survive a bad day: repeated with growing waits, and taken up again where they broke off.

Repeated: 429 and 5xx (a `Retry-After` is obeyed), time-outs, connections that break. Not repeated: any other answer. A
server that ignores `Range` is noticed: skipping what was read costs the transfer again.
"""

import email.utils
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from twllm import __version__
from twllm.errors import UserError

if TYPE_CHECKING:
    import httpx

AGENT = f"twllm/{__version__} (corpus builder)"
MAX_WAIT_S = 60.0
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Retry:
    """How often and after how long a request is repeated."""

    retries: int = 8
    wait_s: float = 1.0
    sleep: Callable[[float], None] = time.sleep

    def wait(self, attempt: int, told: str | None) -> None:
        """Sleep before repetition number `attempt` (from 0), at least what the server asks for."""
        asked = 0.0
        if told and told.isdigit():
            asked = float(told)
        elif told and (when := email.utils.parsedate_tz(told)):
            asked = email.utils.mktime_tz(when) - time.time()
        self.sleep(min(MAX_WAIT_S, max(self.wait_s * 2**attempt, asked)))


class Missing(Exception):
    """The server answers that it is not there (404, 410), or that the file ends before (416)."""

    def __init__(self, url: str, status: int) -> None:
        super().__init__(f"{url} HTTP {status}")
        self.past_the_end = status == 416


@cache
def client() -> "httpx.Client":
    """One client a process: connections are used again."""
    import httpx

    return httpx.Client(
        timeout=TIMEOUT_S, follow_redirects=True, headers={"User-Agent": AGENT, "Accept-Encoding": "identity"}
    )


def request(url: str, retry: Retry, method: str = "GET", **headers: str) -> "httpx.Response":
    """The answer, its body not yet read.

    Raises:
        Missing: 404 or 410.
        UserError: another refusal, or no answer after all repetitions.
    """
    import httpx

    told = ""
    for attempt in range(retry.retries + 1):
        after = None
        try:
            answer = client().send(client().build_request(method, url, headers=headers), stream=True)
            if answer.status_code < 400:
                return answer
            answer.close()
            told, after = f"HTTP {answer.status_code}", answer.headers.get("Retry-After")
            if answer.status_code in (404, 410, 416):
                raise Missing(url, answer.status_code)
            if answer.status_code != 429 and answer.status_code < 500:
                raise UserError(f"伺服器拒絕 (refused): {told}", url, "檢查網址與權限")
        except httpx.TransportError as error:
            told = f"{type(error).__name__} {error}"
        if attempt < retry.retries:
            retry.wait(attempt, after)
    raise UserError(f"連不上 (no answer): {told}", url, "稍後用同一個指令重跑，已完成的部分不重做")


def read_bytes(url: str, retry: Retry, start: int | None = None, length: int | None = None) -> bytes:
    """The body, or `length` bytes of it from `start`.

    Raises:
        Missing, UserError: see `request`; UserError if fewer bytes come.
    """
    with HttpFile(url, retry, start or 0, None if length is None else (start or 0) + length) as file:
        body: bytes = file.read()
    if length is not None and len(body) != length:
        raise UserError(f"少了位元組 (short answer): {len(body)} < {length}", url, "檔案可能換過；刪除暫存資料再重跑")
    return body


def head(url: str, retry: Retry | None = None) -> dict[str, Any]:
    """Size, ETag and time of what lies behind a URL.

    Raises:
        Missing, UserError: see `request`.
    """
    answer = request(url, retry or Retry(), "HEAD")
    answer.close()
    found = {"size": answer.headers.get("Content-Length"), "ETag": answer.headers.get("ETag")}
    return found | {"LastModified": answer.headers.get("Last-Modified")}


class HttpFile(io.RawIOBase):
    """Bytes `start` … `stop` of a URL as a stream; where the connection breaks, it goes on from that byte."""

    def __init__(self, url: str, retry: Retry | None = None, start: int = 0, stop: int | None = None) -> None:
        self.url, self.retry, self.start, self.stop = url, retry or Retry(), start, stop
        self.place, self.left = start, memoryview(b"")
        self._answer: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._ended = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place - self.start

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == io.SEEK_END:
            offset += (
                int(head(self.url, self.retry)["size"] or 0) - self.start
                if self.stop is None
                else self.stop - self.start
            )
        wanted = self.start + offset + (self.place - self.start if whence == io.SEEK_CUR else 0)
        if wanted != self.place:
            self._drop()
            self.place, self._ended = wanted, False
        return wanted - self.start

    def _drop(self) -> None:
        if self._answer is not None:
            self._answer.close()
        self._answer, self.left = None, memoryview(b"")

    def _connect(self) -> None:
        last = "" if self.stop is None else str(self.stop - 1)
        ranged = self.place > 0 or self.stop is not None
        answer = request(self.url, self.retry, **({"Range": f"bytes={self.place}-{last}"} if ranged else {}))
        self._answer, self._chunks = answer, answer.iter_raw()
        if ranged and answer.status_code != 206:  # the whole file from its beginning
            skip = self.place
            while skip:
                chunk = next(self._chunks, b"")
                if not chunk:
                    raise UserError("伺服器不支援 Range (no ranges)", self.url, "換一個鏡站")
                self.left, skip = memoryview(chunk)[skip:], max(0, skip - len(chunk))

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        import httpx

        attempt = 0
        while not self.left and not self._ended:
            try:
                if self._answer is None:
                    self._connect()
                if not self.left:
                    self.left = memoryview(next(self._chunks))
            except StopIteration:
                self._ended = True
            except Missing as error:
                if not error.past_the_end:
                    raise
                self._ended = True
            except httpx.TransportError as error:
                self._drop()
                if attempt == self.retry.retries:
                    raise UserError(f"下載中斷 (broken off): {error}", self.url, "用同一個指令重跑") from error
                self.retry.wait(attempt, None)
                attempt += 1
        room = len(buffer) if self.stop is None else min(len(buffer), self.stop - self.place)
        count = min(room, len(self.left))
        buffer[:count], self.left = self.left[:count], self.left[count:]
        self.place += count
        return count

    def close(self) -> None:
        self._drop()
        super().close()
