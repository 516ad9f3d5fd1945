"""Structured logs: one line per request with its id, times and counts, as JSON or as text. No message text.

    {"time": "…", "level": "info", "event": "request", "id": "…", "method": "POST", "path": "/v1/chat/completions", "status": 200,
     "key": "lab", "model": "…", "prompt_tokens": 31, "completion_tokens": 120, "duration_ms": 812.4, "ttft_ms": 40.2, …}

What people write is personal. Therefore the lines are made from counts, an exception is told by its type and the places it
passed (its message may quote what it choked on), and request bodies are logged with `--log-text` alone. Callers are told
apart by a hash whose key is made anew at every start; no address is written.
"""

import hashlib
import json
import logging
import secrets
import sys
import time
import traceback
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twllm.serve.errors import CLIENT_CLOSED
from twllm.serve.operation.paths import Refusal, generates
from twllm.serve.operation.record import CURRENT, Record
from twllm.serve.operation.service import Service

access = logging.getLogger("twllm.access")
log = logging.getLogger("twllm.serve")
QUIET = frozenset(
    {"/live", "/ready", "/health", "/ping", "/metrics"}
)  # asked every few seconds: not logged when all is well
MAX_LOGGED_TEXT = 20_000  # characters of a body, with --log-text
ID_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:")


class Formatter(logging.Formatter):
    """Log records as JSON lines, or as short text; exceptions without their messages unless `text` is allowed."""

    def __init__(self, *, as_json: bool, text: bool = False) -> None:
        super().__init__()
        self.as_json, self.text = as_json, text

    def format(self, record: logging.LogRecord) -> str:
        """One line (text format: and the places of an exception)."""
        facts: dict[str, Any] = dict(getattr(record, "facts", {}))
        if record.exc_info and record.exc_info[0]:
            facts |= describe(record.exc_info[1], self.text)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        level, event = record.levelname.lower(), record.getMessage()
        if self.as_json:
            head = {"time": moment, "level": level, "logger": record.name, "event": event}
            return json.dumps(head | facts, ensure_ascii=False, default=str)
        shown = " ".join(f"{key}={value}" for key, value in facts.items())
        return f"{moment} {level} {event} {shown}".rstrip().replace("\n", " ")


def describe(error: BaseException | None, text: bool) -> dict[str, Any]:
    """An exception's type and where it passed; its message only where text may be logged."""
    if error is None:
        return {}
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    found: dict[str, Any] = {"error": type(error).__name__, "at": places[-12:]}
    if error.__cause__ is not None:
        found["cause"] = type(error.__cause__).__name__
    return found | ({"message": str(error)} if text else {})


def set_up(*, as_json: bool, text: bool = False, level: str = "INFO") -> None:
    """Send all logs to stderr in one format; those of libraries from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(as_json=as_json, text=text))
    for name, threshold in (("twllm", level), ("uvicorn", "WARNING"), ("", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(threshold)
        logger.propagate = False
    logging.getLogger("uvicorn.access").disabled = True  # it would write query strings and addresses


class Observe:
    """Outermost middleware: request id in and out, the record, the log line, the metrics, and 500 for what nobody caught."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service
        self._salt = secrets.token_bytes(16)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        record = Record(request_id(headers), scope["method"], scope["path"], self._client(scope, headers))
        token = CURRENT.set(record)
        self.service.lifecycle.in_flight += 1
        ended = False

        async def tell(message: Message) -> None:
            nonlocal ended
            if message["type"] == "http.response.start":
                record.status = message["status"]
                kept = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"x-request-id"]
                message["headers"] = [*kept, (b"x-request-id", record.id.encode())]
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                ended = True
            await send(message)

        body: list[bytes] = []
        if self.service.settings.log_text:
            receive = listening(receive, body)
        try:
            await self.app(scope, receive, tell)
        except Exception:
            log.exception("unhandled error", extra={"facts": {"id": record.id}})
            text = "伺服器內部錯誤，詳情在伺服器的記錄裡 (internal error)"
            record.refused = "error"
            if not record.status:
                await Refusal(500, text, "error", "internal_error", type="server_error").send(scope["path"], tell)
        finally:
            self.service.lifecycle.in_flight -= 1
            CURRENT.reset(token)
            if not ended and not record.refused:
                record.status = CLIENT_CLOSED
            self._write(scope, record, b"".join(body))

    def _write(self, scope: Scope, record: Record, body: bytes) -> None:
        path = scope["path"]
        self.service.metrics.finished(record, route_of(scope), generates(scope["method"], path))
        if path in QUIET and record.status == 200:
            return
        facts = record.facts()
        if body:
            facts["text"] = body.decode("utf-8", "replace")[:MAX_LOGGED_TEXT]
        level = logging.ERROR if record.status >= 500 and record.refused == "error" else logging.INFO
        access.log(level, "request", extra={"facts": facts})

    def _client(self, scope: Scope, headers: dict[bytes, bytes]) -> str:
        address = (scope.get("client") or ("",))[0]
        if self.service.settings.trust_proxy and (given := headers.get(b"x-forwarded-for")):
            address = given.decode("latin-1").rsplit(",", 1)[-1].strip()
        return hashlib.blake2b(address.encode(), key=self._salt, digest_size=6).hexdigest()


def request_id(headers: dict[bytes, bytes]) -> str:
    """The caller's `x-request-id` where it is a plain short word, else a new one."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if 0 < len(given) <= 128 and ID_LETTERS.issuperset(given) else secrets.token_hex(12)


def route_of(scope: Scope) -> str:
    """The route's pattern, so that metrics have as many rows as there are routes."""
    route = scope.get("route")
    path = getattr(route, "path", "")
    return str(path) or ("static" if scope.get("endpoint") is not None else "other")


def listening(receive: Receive, body: list[bytes]) -> Receive:
    """`receive` that keeps what it hands on."""

    async def heard() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            body.append(message.get("body", b""))
        return message

    return heard
