"""/metrics counts what was answered, and how much of it is not written as Taiwan writes."""

from fastapi import FastAPI
from fastapi.testclient import TestClient

from twllm.serve.metrics import Metrics, metrics_routes


def values(text: str) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in lines if not name.endswith("_created")}


def test_counts_by_variety() -> None:
    metrics = Metrics()
    app = FastAPI()
    app.include_router(metrics_routes(metrics))
    for answer in ("臺灣的軟體品質很好。", "这个软件的质量很好。", "Hello."):
        metrics.observe(answer)
    with TestClient(app) as client:
        found = values(client.get("/metrics").text)
    assert found['twllm_answers_total{variety="zh-TW"}'] == 1
    assert found['twllm_answers_total{variety="zh-CN"}'] == 1
    assert found['twllm_answers_total{variety="other"}'] == 1
    assert found["twllm_answer_han_characters_total"] == 18
    assert 4 <= found["twllm_answer_leaked_characters_total"] <= 6  # 这个软件…质
