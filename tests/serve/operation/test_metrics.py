"""/metrics: TGI's names as TGI writes them, our own, the live leak rate; gauges that follow what happens."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from tests.serve.conftest import ScriptedEngine
from tests.serve.operation.live import ASK, CHAT, live, until
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.operation.metrics import Metrics
from twllm.serve.operation.service import ServeSettings, Service

TGI_NAMES = [
    "tgi_request_count", "tgi_request_success", "tgi_request_duration", "tgi_request_validation_duration",
    "tgi_request_queue_duration", "tgi_request_inference_duration", "tgi_request_mean_time_per_token_duration",
    "tgi_request_generated_tokens", "tgi_request_input_length", "tgi_request_max_new_tokens", "tgi_queue_size",
    "tgi_batch_current_size",
]  # fmt: skip


def values(text: str) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in lines if "_created" not in name}


@pytest.fixture
def client(scripted: ScriptedEngine, database: Path) -> Iterator[TestClient]:
    service = Service.single(scripted, RatingStore(database), "玉山-tiny", ServeSettings())
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def test_counts_by_variety() -> None:
    metrics = Metrics()
    for answer in ("臺灣的軟體品質很好。", "这个软件的质量很好。", "Hello."):
        metrics.observe(answer)
    found = values(metrics.text().decode())
    assert found['twllm_answers_total{variety="zh-TW"}'] == 1
    assert found['twllm_answers_total{variety="zh-CN"}'] == 1
    assert found['twllm_answers_total{variety="other"}'] == 1
    assert found["twllm_answer_han_characters_total"] == 18
    assert 4 <= found["twllm_answer_leaked_characters_total"] <= 6  # 这个软件…质


def test_what_an_answer_counts_as(client: TestClient) -> None:
    usage = client.post(CHAT, json=ASK).json()["usage"]
    client.post(CHAT, json={**ASK, "stream": True})
    client.post(CHAT, json={"messages": []})
    client.get("/no/such/page")
    found = values(client.get("/metrics").text)
    assert found["tgi_request_count"] == 3
    assert found["tgi_request_success"] == 2
    assert found['tgi_request_failure{err="validation"}'] == 1
    assert found["tgi_request_duration_count"] == found["tgi_request_queue_duration_count"] == 2
    assert found["tgi_request_input_length_sum"] == 2 * usage["prompt_tokens"]
    assert found["tgi_request_generated_tokens_sum"] == 2 * usage["completion_tokens"]
    assert found['twllm_generated_tokens_total{model="玉山-tiny"}'] == 2 * usage["completion_tokens"]
    assert found['twllm_prompt_tokens_total{model="玉山-tiny"}'] == 2 * usage["prompt_tokens"]
    assert found['twllm_time_to_first_token_seconds_count{model="玉山-tiny"}'] == 2
    assert found['twllm_inter_token_seconds_count{model="玉山-tiny"}'] == 2 * (usage["completion_tokens"] - 1)
    assert found[f'twllm_requests_total{{route="{CHAT}",status="200"}}'] == 2
    assert not any("no/such" in name for name in found)  # a scanner must not make rows
    assert found['twllm_answers_total{variety="zh-TW"}'] == 2


def test_prometheus_reads_it_and_tgis_names_are_exact(client: TestClient) -> None:
    client.post(CHAT, json=ASK)
    text = client.get("/metrics").text
    families = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert [name for name in TGI_NAMES if name not in families] == []
    assert families["tgi_request_count"] == "counter"
    assert "tgi_request_count_total" not in text
    assert families["twllm_time_to_first_token_seconds"] == "histogram"


def test_gauges_follow(scripted: ScriptedEngine, database: Path) -> None:
    scripted.delay_s = 0.02
    with live(Service.single(scripted, RatingStore(database), "tiny", ServeSettings(max_running=1))) as server:
        with server.stream() as first:
            lines = first.iter_lines()
            next(lines)
            found = values(server.get("/metrics").text)
            assert (found["twllm_running"], found["twllm_waiting"], found["tgi_batch_current_size"]) == (1, 0, 1)
            assert found["twllm_in_flight"] == 2  # with this one
        until(lambda: scripted.load() == (0, 0))
        found = values(server.get("/metrics").text)
        assert (found["twllm_running"], found["tgi_batch_current_size"]) == (0, 0)
        until(lambda: 'err="dropped"' in server.get("/metrics").text)
