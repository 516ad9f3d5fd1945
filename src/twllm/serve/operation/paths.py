"""Which path belongs to which API and what it asks of the caller; and a refusal in that API's shape.

TGI's routes answer `{"error", "error_type"}`, and 401 with an empty body; all others answer as OpenAI does.
"""

import json
from dataclasses import dataclass
from typing import Any

TGI = frozenset({"/", "/generate", "/generate_stream", "/invocations", "/vertex", "/tokenize", "/chat_tokenize"})
GENERATES = frozenset(
    {
        "/", "/generate", "/generate_stream", "/invocations", "/vertex", "/v1/chat/completions", "/v1/completions",
        "/api/arena/battle", "/api/compare",
    }
)  # fmt: skip
RATES = ("/api/rating", "/api/ratings", "/api/arena/vote")
WITH_KEY = ("/v1/", "/tokenizer_info", "/api/admin")  # GET wants a key here; elsewhere it is for everybody


def generates(method: str, path: str) -> bool:
    """Whether the request makes an engine write: it needs a place, and is refused while the server shuts down."""
    return method == "POST" and (path in GENERATES or path.startswith("/api/arena/battle/"))


def scope_of(method: str, path: str, metrics_key: bool = False) -> str | None:
    """The scope a key needs for this request; None: no key is needed."""
    if path == "/metrics":
        return "metrics" if metrics_key else None
    if path.startswith("/api/admin"):
        return "admin"
    if method == "OPTIONS" or (method in ("GET", "HEAD") and not path.startswith(WITH_KEY)):
        return None
    return "rate" if path in RATES else "generate"


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered. `reason` is for metrics and TGI's error_type, `code` for OpenAI's."""

    status: int
    message: str
    reason: str
    code: str = ""
    type: str = "invalid_request_error"
    retry_after_s: int | None = None

    def body(self, path: str) -> bytes:
        """The JSON body; TGI's 401 has none."""
        value: dict[str, Any]
        if path in TGI:
            if self.status == 401:
                return b""
            value = {"error": self.message, "error_type": self.reason}
        else:
            error = {"message": self.message, "type": self.type, "param": None, "code": self.code or self.reason}
            value = {"error": error, "error_type": self.reason}  # the second is for huggingface_hub
        return json.dumps(value, ensure_ascii=False).encode()

    def event(self, path: str) -> bytes:
        """The last event of a stream that was begun."""
        return (b"data:" if path in TGI else b"data: ") + self.body(path) + b"\n\n"

    def headers(self, path: str) -> list[tuple[bytes, bytes]]:
        """Headers of the plain answer."""
        found = [(b"content-length", str(len(self.body(path))).encode())]
        if self.body(path):
            found.append((b"content-type", b"application/json"))
        if self.retry_after_s is not None:
            found.append((b"retry-after", str(self.retry_after_s).encode()))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        return found

    async def send(self, path: str, send: Any) -> None:
        """Answer an ASGI request with it."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers(path)})
        await send({"type": "http.response.body", "body": self.body(path)})
