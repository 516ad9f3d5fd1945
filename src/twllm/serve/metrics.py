"""Prometheus metrics at /metrics: how much is answered, and whether it is written as Taiwan writes.

    twllm_answers_total{variety}             answers by the checker's verdict (zh-TW, zh-CN, mixed, …)
    twllm_answer_han_characters_total        Han characters answered
    twllm_answer_leaked_characters_total     of these, in Simplified characters or another region's words

The live leak rate is the ratio of the rates of the last two. The check takes about 1 ms per 1,000 characters.
Not covered yet: TGI's names, queue and latency.
"""

from fastapi import APIRouter
from starlette.responses import Response

from twllm.corpus.check import check_text


class Metrics:
    """The counters of one application."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter

        self.registry = CollectorRegistry()
        answers = "Answers by the variety of Chinese they are written in"
        self.answers = Counter("twllm_answers", answers, ["variety"], registry=self.registry)
        self.han = Counter("twllm_answer_han_characters", "Han characters answered", registry=self.registry)
        leaked = "Han characters answered that are Simplified or in another region's words"
        self.leaked = Counter("twllm_answer_leaked_characters", leaked, registry=self.registry)
        check_text("暖身")  # the word lists are read now, not during the first answer

    def observe(self, answer: str) -> None:
        """Count one finished answer."""
        found = check_text(answer)
        self.answers.labels(found.verdict).inc()
        self.han.inc(found.n_han)
        self.leaked.inc(round(found.leak_rate * found.n_han))


def metrics_routes(metrics: Metrics) -> APIRouter:
    """GET /metrics in Prometheus' text format."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    router = APIRouter()

    @router.get("/metrics")
    def show() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
