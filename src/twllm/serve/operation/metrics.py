"""Prometheus metrics at /metrics: text-generation-inference's names, so that its dashboards work, and ours.

    tgi_request_*, tgi_queue_size, tgi_batch_current_size   as in TGI's router; one request is one HTTP request
    twllm_requests_total{route,status}           every request; `route` is "other" where there is no such route
    twllm_refused_total{reason}                  overloaded, queue_timeout, timeout, shutdown, rate, budget, key, body
    twllm_time_to_first_token_seconds{model}     from the engine's submit to its first token (queue before it: tgi_request_queue_duration)
    twllm_inter_token_seconds{model}             between two tokens of one answer
    twllm_prompt_tokens_total, twllm_generated_tokens_total {model}
    twllm_answers_total{variety}                 answers by the checker's verdict (zh-TW, zh-CN, mixed, …)
    twllm_answer_han_characters_total            Han characters answered
    twllm_answer_leaked_characters_total         of these, in Simplified characters or another region's words

The live leak rate is the ratio of the rates of the last two. The check takes about 1 ms per 1,000 characters.
Not covered: TGI's times inside a batch (tgi_batch_forward_duration and the like), which engines do not tell.
"""

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.responses import Response

from twllm.corpus.check import check_text
from twllm.serve.errors import CLIENT_CLOSED
from twllm.serve.operation.record import Record

if TYPE_CHECKING:
    from twllm.serve.operation.service import Service

TGI_DURATIONS = [1e-4 * 1.5**k for k in range(1, 36)]  # seconds; TGI's buckets
TOKEN_COUNTS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768]  # TGI has 100 even steps
FIRST_TOKEN_S = [0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 25, 50]
BETWEEN_TOKENS_S = [0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.12, 0.25, 0.5, 1, 2]
DURATIONS = ("duration", "validation_duration", "queue_duration", "inference_duration", "mean_time_per_token_duration")
TGI_FAILURES = {400: "validation", 404: "validation", 413: "validation", 422: "validation", 424: "generation", 429: "overloaded"}  # fmt: skip
BARE = re.compile(rb"^((?:# (?:HELP|TYPE) )?tgi_\w+?)_total\b", re.MULTILINE)


class Timing:
    """The meters of one model's engine."""

    def __init__(self, prompt: Any, written: Any, first: Any, between: Any) -> None:
        self.prompt: Callable[[float], None] = prompt.inc
        self._written, self._first, self._between = written.inc, first.observe, between.observe

    def token(self, waited_s: float, first: bool) -> None:
        """One token, `waited_s` after the one before or after the submit."""
        self._written()
        (self._first if first else self._between)(waited_s)


class Metrics:
    """The meters of one application."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter

        self.registry = registry = CollectorRegistry()
        answers = "Answers by the variety of Chinese they are written in"
        self.answers = Counter("twllm_answers", answers, ["variety"], registry=registry)
        self.han = Counter("twllm_answer_han_characters", "Han characters answered", registry=registry)
        leaked = "Han characters answered that are Simplified or in another region's words"
        self.leaked = Counter("twllm_answer_leaked_characters", leaked, registry=registry)
        self.requests = Counter("twllm_requests", "HTTP requests", ["route", "status"], registry=registry)
        self.refused = Counter("twllm_refused", "Requests that were not answered", ["reason"], registry=registry)
        self._make_tgi(registry)
        self._make_engine(registry)
        check_text("暖身")  # the word lists are read now, not during the first answer

    def _make_tgi(self, registry: Any) -> None:
        from prometheus_client import Counter, Histogram

        self.tgi_count = Counter("tgi_request_count", "Generation requests", registry=registry)
        self.tgi_success = Counter("tgi_request_success", "Of these, answered", registry=registry)
        self.tgi_failure = Counter("tgi_request_failure", "Of these, not answered", ["err"], registry=registry)
        self.tgi = {
            name: Histogram(f"tgi_request_{name}", f"{name} (seconds)", buckets=TGI_DURATIONS, registry=registry)
            for name in DURATIONS
        }
        for name in ("generated_tokens", "input_length", "max_new_tokens"):
            self.tgi[name] = Histogram(
                f"tgi_request_{name}", f"{name} (tokens)", buckets=TOKEN_COUNTS, registry=registry
            )

    def _make_engine(self, registry: Any) -> None:
        from prometheus_client import Counter, Histogram

        def histogram(name: str, help: str, buckets: list[float]) -> Histogram:
            return Histogram(name, help, ["model"], buckets=buckets, registry=registry)

        first = "Submit to the engine until the first token"
        self._first = histogram("twllm_time_to_first_token_seconds", first, FIRST_TOKEN_S)
        self._between = histogram("twllm_inter_token_seconds", "Between two tokens of an answer", BETWEEN_TOKENS_S)
        self._prompt = Counter("twllm_prompt_tokens", "Tokens of prompts", ["model"], registry=registry)
        self._written = Counter("twllm_generated_tokens", "Tokens written", ["model"], registry=registry)

    def timing(self, model: str) -> Timing:
        """The meters of the engine of `model`."""
        return Timing(*(meter.labels(model) for meter in (self._prompt, self._written, self._first, self._between)))

    def gauge(self, name: str, help: str, value: Callable[[], float]) -> None:
        """A gauge that is asked when somebody looks."""
        from prometheus_client import Gauge

        Gauge(name, help, registry=self.registry).set_function(value)

    def observe(self, answer: str) -> None:
        """Count one finished answer."""
        found = check_text(answer)
        self.answers.labels(found.verdict).inc()
        self.han.inc(found.n_han)
        self.leaked.inc(round(found.leak_rate * found.n_han))

    def finished(self, record: Record, route: str, generates: bool) -> None:
        """Count one finished request."""
        self.requests.labels(route, str(record.status)).inc()
        if record.refused:
            self.refused.labels(record.refused).inc()
        if not generates:
            return
        self.tgi_count.inc()
        if record.status == 200 and not record.refused and record.finish_reason:
            self.tgi_success.inc()
            self._time(record, time.perf_counter() - record.started)
        elif record.status != 200 or record.refused:
            err = "dropped" if record.status == CLIENT_CLOSED else TGI_FAILURES.get(record.status, "incomplete")
            self.tgi_failure.labels(err).inc()

    def _time(self, record: Record, duration_s: float) -> None:
        submitted = record.submitted or record.started
        working = record.started + duration_s - submitted
        values = {
            "duration": duration_s, "queue_duration": record.queued_s, "inference_duration": working,
            "validation_duration": max(0.0, submitted - record.started - record.queued_s),
            "mean_time_per_token_duration": working / max(1, record.completion_tokens),
            "generated_tokens": record.completion_tokens, "input_length": record.prompt_tokens,
            "max_new_tokens": record.max_tokens,
        }  # fmt: skip
        for name, value in values.items():
            self.tgi[name].observe(value)

    def text(self) -> bytes:
        """Everything in Prometheus' text format; TGI's counters without the `_total` that TGI does not write."""
        from prometheus_client import generate_latest

        return BARE.sub(rb"\1", generate_latest(self.registry))


def metrics_routes(service: "Service") -> APIRouter:
    """GET /metrics."""
    from prometheus_client import CONTENT_TYPE_LATEST

    router = APIRouter()

    @router.get("/metrics")
    def show() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
