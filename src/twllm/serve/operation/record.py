"""What is known of one HTTP request while it is answered: counts and times, never text.

The middleware makes a `Record` and puts it into a context variable; the watched engine adds token counts and times,
from whichever task or thread the route asks it in (a plain `threading.Thread` loses the context: use
`contextvars.copy_context().run`). Log lines, metrics and daily token budgets are made from it when the request ends.
"""

import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Record:
    """One request; times are `time.perf_counter()` seconds."""

    id: str
    method: str
    path: str
    client: str = ""  # a hash that tells callers apart while the process lives
    key: str = ""  # name of the API key
    model: str = ""
    status: int = 0
    refused: str = ""  # why the server did not answer: overloaded, queue_timeout, timeout, shutdown, rate, …
    prompt_tokens: int = 0
    completion_tokens: int = 0
    max_tokens: int = 0
    finish_reason: str = ""
    started: float = field(default_factory=time.perf_counter)
    queued_s: float = 0.0
    submitted: float | None = None  # first submit to an engine
    first_token: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def submit(self, model: str, prompt_tokens: int, max_tokens: int | None) -> None:
        """An engine was asked."""
        with self._lock:
            self.model = self.model or model
            self.prompt_tokens += prompt_tokens
            self.max_tokens += max_tokens or 0
            self.submitted = self.submitted or time.perf_counter()

    def token(self, finish_reason: str | None) -> None:
        """An engine wrote a token."""
        with self._lock:
            self.completion_tokens += 1
            self.first_token = self.first_token or time.perf_counter()
            self.finish_reason = finish_reason or self.finish_reason

    def facts(self) -> dict[str, object]:
        """What a log line says, without what is empty."""
        now = time.perf_counter()
        found = {
            "id": self.id, "method": self.method, "path": self.path, "status": self.status, "client": self.client,
            "key": self.key, "model": self.model, "refused": self.refused, "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens, "finish_reason": self.finish_reason,
            "duration_ms": _ms(now - self.started), "queue_ms": _ms(self.queued_s),
            "ttft_ms": None if self.first_token is None else _ms(self.first_token - self.started),
        }  # fmt: skip
        return {name: value for name, value in found.items() if value not in ("", None, 0) or name == "status"}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


CURRENT: ContextVar[Record | None] = ContextVar("twllm_record", default=None)
