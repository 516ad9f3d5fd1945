"""Request ids and log lines: what is in them, and that nobody's words are."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serve.conftest import ANSWER, ScriptedEngine
from tests.serve.operation.live import CHAT
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.operation.logs import Formatter
from twllm.serve.operation.service import ServeSettings, Service

SECRET = "我的身分證字號是A123456789"
ASK = {"messages": [{"role": "user", "content": SECRET}]}
Serve = Callable[..., tuple[TestClient, Callable[[], str]]]


@pytest.fixture
def serve(scripted: ScriptedEngine, database: Path) -> Iterator[Serve]:
    """A server and what it has logged so far, from every logger."""
    with ExitStack() as stack:

        def start(*, as_json: bool = True, **settings: Any) -> tuple[TestClient, Callable[[], str]]:
            written = io.StringIO()
            handler = logging.StreamHandler(written)
            handler.setFormatter(Formatter(as_json=as_json, text=bool(settings.get("log_text"))))
            handler.addFilter(lambda record: not record.name.startswith("httpx"))  # the client's own
            root = logging.getLogger()
            old = root.level
            root.addHandler(handler)
            root.setLevel(logging.DEBUG)
            stack.callback(root.setLevel, old)
            stack.callback(root.removeHandler, handler)
            service = Service.single(scripted, RatingStore(database), "玉山-tiny", ServeSettings(**settings))
            client = stack.enter_context(TestClient(create_app(service), raise_server_exceptions=False))
            return client, written.getvalue

        yield start


def lines(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    return [line for line in found if line["event"] == "request"]


def test_a_line_tells_counts_and_times(serve: Serve) -> None:
    client, logged = serve()
    answer = client.post(CHAT, json=ASK)
    usage = answer.json()["usage"]
    (line,) = lines(logged())
    assert line["id"] == answer.headers["x-request-id"]
    assert (line["method"], line["path"], line["status"], line["model"]) == ("POST", CHAT, 200, "玉山-tiny")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert line["finish_reason"] == "stop"
    assert 0 < line["ttft_ms"] <= line["duration_ms"]


def test_streams_are_counted_when_they_end(serve: Serve) -> None:
    client, logged = serve()
    client.post(CHAT, json={**ASK, "stream": True, "max_tokens": 7})
    (line,) = lines(logged())
    assert (line["completion_tokens"], line["finish_reason"]) == (7, "length")


@pytest.mark.parametrize("as_json", [True, False])
def test_no_words_of_anybody_are_logged(
    serve: Serve, scripted: ScriptedEngine, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, logged = serve(as_json=as_json)
    client.post(CHAT, json=ASK)
    client.post(CHAT, json={**ASK, "stream": True})
    client.post(CHAT, json={"messages": SECRET})  # refused: its reason quotes the input
    client.post(CHAT, content=SECRET.encode(), headers={"Content-Type": "application/json"})
    client.get("/v1/models", params={"q": SECRET})
    client.post("/v1/completions", json={"prompt": SECRET, "max_tokens": 3})
    client.post("/generate", json={"inputs": SECRET})
    client.post("/api/rating", json={"conversation_id": "c", "turn": 1, "rating": 1, "comment": SECRET, "messages": ASK["messages"] + [{"role": "assistant", "content": ANSWER}]})  # fmt: skip

    def broken(*args: object, **more: object) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr(scripted, "submit", broken)
    monkeypatch.setattr(scripted, "generate", broken)
    assert client.post(CHAT, json=ASK).status_code == 500
    client.post(CHAT, json={**ASK, "stream": True})
    text = logged()
    assert "ValueError" in text  # the error itself is there
    for words in (SECRET, "A123456789", ANSWER[:10], json.dumps(SECRET)[1:-1]):
        assert words not in text
    assert len(text.splitlines()) >= 9


def test_words_are_logged_where_that_was_asked_for(serve: Serve) -> None:
    client, logged = serve(log_text=True)
    client.post(CHAT, json=ASK)
    (line,) = lines(logged())
    assert SECRET in line["text"]


def test_request_ids_come_in_and_go_out(serve: Serve) -> None:
    client, logged = serve()
    assert client.get("/v1/models", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for bad in ("a b", "x" * 200, "a\tb", '"'):
        given = client.get("/v1/models", headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert given != bad
        assert len(given) == 24
    assert next(line["id"] for line in lines(logged())) == "abc-1"


def test_probes_are_not_logged_while_all_is_well(serve: Serve) -> None:
    client, logged = serve()
    for path in ("/live", "/ready", "/health", "/ping", "/metrics"):
        client.get(path)
    assert lines(logged()) == []


def test_our_own_errors_are_500_with_an_id_and_without_detail(
    serve: Serve, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, logged = serve()
    monkeypatch.setattr(scripted.tokenizer, "encode_chat", None)
    broken = client.post(CHAT, json=ASK)
    assert broken.status_code == 500
    assert "NoneType" not in broken.text
    assert broken.headers["x-request-id"] in logged()
    assert "TypeError" in logged()
