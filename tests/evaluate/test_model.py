"""Models behind one call: a local checkpoint and our own server give the same answers; errors are told."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import httpx
import pytest
from starlette.testclient import TestClient

from twllm.errors import UserError
from twllm.evaluate.model import HttpModel, LocalModel, model_fingerprint, open_model
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.engines.torch.engine import TorchEngine
from twllm.serve.operation.service import Service

CHATS = [[{"role": "user", "content": text}] for text in ("台灣的首都是？", "玉山多高？「請」回答ㄅㄆㄇ。", "hello")]
LONG = [{"role": "user", "content": "很長的題目。" * 200}]  # more than the tiny model's 256 tokens


@pytest.fixture(scope="module", autouse=True)
def fp32() -> Iterator[None]:
    """In bf16 (a CPU that multiplies it) a batch rounds otherwise than a single row, and this random model is all near ties."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twllm.serve.engines.torch.engine.cpu_multiplies_bf16", lambda: False)
        yield


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Our application on the tiny checkpoint."""
    store = RatingStore(f"sqlite:///{tmp_path_factory.mktemp('db') / 'r.db'}")
    with TestClient(create_app(Service.single(TorchEngine(tiny_checkpoint, threads=1), store, "玉山-tiny"))) as client:
        yield client


def test_local_model_and_server_give_the_same_answers(tiny_checkpoint: Path, server: TestClient) -> None:
    local = LocalModel(tiny_checkpoint, max_new_tokens=12)
    remote = HttpModel("http://testserver/v1/", 12, client=cast(httpx.Client, server))
    answers = local([*CHATS, LONG])
    assert answers == remote([*CHATS, LONG])
    assert answers[-1] is None  # does not fit, is not asked
    assert all(isinstance(answer, str) and answer == answer.strip() for answer in answers[:-1])
    assert len(set(answers)) > 1
    assert local([LONG]) == [None]


def test_a_begun_answer_is_continued_by_our_server_as_locally(tiny_checkpoint: Path, server: TestClient) -> None:
    chats = [[*chat, {"role": "assistant", "content": " 答案： "}] for chat in CHATS]
    remote = HttpModel("http://testserver/v1/", 12, client=cast(httpx.Client, server))
    answers = LocalModel(tiny_checkpoint, max_new_tokens=12)(chats)
    assert answers == remote(chats)
    assert answers != remote(CHATS)
    body = {"messages": CHATS[0], "continue_final_message": True}
    assert server.post("/v1/chat/completions", json=body).status_code == 400


def test_fingerprint_follows_weights_and_config_only(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "另一個名字"
    shutil.copytree(tiny_checkpoint, copy)
    same = model_fingerprint(tiny_checkpoint)
    (copy / "README.md").write_text("說明", encoding="utf-8")
    assert model_fingerprint(copy) == same
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert model_fingerprint(copy) != same


def scripted(handler: Callable[[httpx.Request], httpx.Response]) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(handler))


def test_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("twllm.evaluate.model.time.sleep", waits.append)
    replies = iter([httpx.Response(503), httpx.Response(429)])

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        return next(replies, httpx.Response(200, json={"choices": [{"message": {"content": " 臺北 "}}]}))

    assert HttpModel("http://x", 8, client=scripted(handler))(CHATS[:1]) == ["臺北"]
    assert waits == [1, 2]


def test_what_was_answered_before_the_server_died_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers come as they come, then the error; nothing new is begun after it."""
    monkeypatch.setattr("twllm.evaluate.model.time.sleep", lambda seconds: None)
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        question = json.loads(request.content)["messages"][0]["content"]
        asked.append(question)
        if int(question) >= 5:
            return httpx.Response(500)
        return httpx.Response(200, json={"choices": [{"message": {"content": question}}]})

    model = HttpModel("http://x", 8, client=scripted(handler))
    got: dict[int, str | None] = {}
    with pytest.raises(UserError, match="500"):
        for piece in model.stream([[{"role": "user", "content": str(i)}] for i in range(200)]):
            got |= dict(piece)
    assert got == {i: str(i) for i in range(5)}
    assert len(set(asked)) < 100


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (httpx.Response(401, json={"error": {"message": "no key"}}), "401"),
        (httpx.Response(200, text="<html>"), "JSON"),
        (httpx.Response(200, json={"data": []}), "模型"),
        (httpx.Response(200, json=[]), "JSON"),
    ],
)
def test_servers_that_are_none(reply: httpx.Response, says: str) -> None:
    with pytest.raises(UserError, match=says):
        HttpModel("http://x", 8, client=scripted(lambda request: reply))


def test_reply_in_another_shape() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"data": [{"id": "m"}]})

    with pytest.raises(UserError, match="OpenAI"):
        HttpModel("http://x", 8, client=scripted(handler))(CHATS[:1])


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="伺服器沒有回答"):
        open_model("http://127.0.0.1:9", 8)  # the discard port: nothing listens
    with pytest.raises(UserError):
        open_model(str(tmp_path / "沒有"), 8)
