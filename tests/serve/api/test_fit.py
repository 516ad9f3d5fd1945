"""Chats that do not fit: refused with both numbers, or the oldest turns left out whole; several models; several answers."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from tests.serve.conftest import ANSWER, ScriptedEngine
from twllm.feedback.store import RatingStore
from twllm.serve.api.chat.fit import fit
from twllm.serve.app import create_app
from twllm.serve.engines.torch.engine import TorchEngine
from twllm.serve.errors import ApiError
from twllm.serve.operation.service import Model, ServeSettings, Service
from twllm.tokens.tokenizer import ChatTokenizer

CHAT = "/v1/chat/completions"
SYSTEM = {"role": "system", "content": "請用正體中文。"}


def turns(count: int) -> list[dict[str, Any]]:
    """A chat of `count` answered turns and a question, each with its number."""
    answered = [
        {"role": role, "content": f"第{i}輪{text}"}
        for i in range(count)
        for role, text in (("user", "的問題？"), ("assistant", "的回答。"))
    ]
    return [*answered, {"role": "user", "content": "最後的問題？"}]


def chat(client: TestClient, **body: Any) -> Any:
    response = client.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    return response


def test_refused_unless_asked_for(client: TestClient) -> None:
    for more in ({}, {"truncate": None}, {"truncate": "refuse"}):
        response = client.post(CHAT, json={"messages": [SYSTEM, *turns(40)], **more})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert "400" in response.json()["error"]["message"]


def test_oldest_turns_are_dropped_whole(client: TestClient, scripted: ScriptedEngine) -> None:
    """System text and last question stay, what is left is a chat as any other, and the answer says how many went."""
    messages = [SYSTEM, *turns(40)]
    response = chat(client, messages=messages, truncate="oldest_turns", max_tokens=60)
    dropped = response.json()["dropped_turns"]
    assert response.headers["x-dropped-turns"] == str(dropped)
    assert 0 < dropped < 40
    kept = [SYSTEM, *messages[1 + 2 * dropped :]]
    ids = scripted.tokenizer.encode_chat(kept, add_generation_prompt=True).ids
    assert scripted.prompts[-1] == scripted.tokenizer.decode(ids)
    assert len(ids) + 60 <= 400
    one_more = [SYSTEM, *messages[1 + 2 * (dropped - 1) :]]
    assert (
        len(scripted.tokenizer.encode_chat(one_more, add_generation_prompt=True).ids) + 60 > 400
    )  # no more than needed
    streamed = chat(client, messages=messages, truncate="oldest_turns", stream=True, max_tokens=60)
    assert streamed.headers["x-dropped-turns"] == str(dropped)
    assert json.loads(streamed.text.split("\n\n")[0].removeprefix("data: "))["dropped_turns"] == dropped
    short = chat(client, messages=[SYSTEM, *turns(2)], truncate="oldest_turns")
    assert "dropped_turns" not in short.json()
    assert "x-dropped-turns" not in short.headers


def test_the_servers_setting(scripted: ScriptedEngine, database: Path) -> None:
    """`context_policy` does it for clients that cannot ask; they can still ask for the refusal; `max_context` lowers the limit."""
    settings = ServeSettings(context_policy="drop-oldest", max_context=200)
    with TestClient(create_app(Service.single(scripted, RatingStore(database), "m", settings))) as client:
        dropped = chat(client, messages=turns(20)).json()["dropped_turns"]
        assert dropped > 0
        assert scripted.seen[-1].max_tokens <= 200
        assert client.post(CHAT, json={"messages": turns(20), "truncate": "refuse"}).status_code == 400
        long = [*turns(3), {"role": "assistant", "content": ""}, {"role": "user", "content": "很長" * 300}]
        assert client.post(CHAT, json={"messages": long}).json()["error"]["code"] == "context_length_exceeded"


def test_calls_and_results_go_with_their_question() -> None:
    """A turn is everything up to the next question, so no result stands without its call."""
    call = {"role": "assistant", "content": "", "tool_calls": [{}]}
    turn = [
        {"role": "user", "content": "問"},
        call,
        {"role": "tool", "content": "果"},
        {"role": "assistant", "content": "答"},
    ]
    messages = [SYSTEM, *turn * 5, {"role": "user", "content": "末"}]
    seen: list[list[dict[str, Any]]] = []

    def encode(chat: list[dict[str, Any]]) -> list[int]:
        seen.append(chat)
        return [1] * len(chat) * 10

    ids, dropped = fit(messages, encode, 120, 20, drop=True)
    assert (len(ids), dropped) == (100, 3)
    assert all(chat[0] == SYSTEM and chat[1]["role"] == "user" for chat in seen)
    for messages in ([SYSTEM], [{"role": "assistant", "content": "x"}], turn[:1]):
        with pytest.raises(ApiError):
            fit(messages, lambda chat: [1] * 500, 120, None, drop=True)


def test_several_models(tiny_tokenizer: ChatTokenizer, database: Path) -> None:
    """`model` picks; a name that nobody has is 404; names that clients make up are the first model."""
    engines = [ScriptedEngine(tiny_tokenizer, lambda prompt, said=said: said) for said in ("甲", "乙")]
    models = {name: Model(name, engine) for name, engine in zip("ab", engines, strict=True)}
    ask = {"messages": [{"role": "user", "content": "誰？"}]}
    with TestClient(create_app(Service(models, RatingStore(database)))) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["a", "b"]
        for name, said in {"a": "甲", "b": "乙", "": "甲", "tgi": "甲", "dummy": "甲", None: "甲"}.items():
            body = chat(client, **ask, model=name).json()
            assert body["choices"][0]["message"]["content"] == said
            assert (
                client.post("/v1/completions", json={"model": name, "prompt": "誰"}).json()["choices"][0]["text"]
                == " " + said
            )
        for path, more in ((CHAT, ask), ("/v1/completions", {"prompt": "a"})):
            response = client.post(path, json={**more, "model": "gpt-4"})
            assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
        assert client.get("/v1/models/b").json()["id"] == "b"
        assert client.get("/v1/models/c").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/responses", "/v1/audio/speech", "/v1/images/generations"])
def test_other_parts_of_the_api_are_a_clear_404(client: TestClient, path: str) -> None:
    response = client.post(path, json={"model": "x", "input": "a"})
    assert response.status_code == 404
    assert path in response.json()["error"]["message"]


def test_fields_that_change_nothing_are_taken(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    """What clients always send is ignored in silence, what nobody knows is named in the log, once."""
    with caplog.at_level("WARNING", "twllm.serve"):
        for _ in range(2):
            chat(
                client, messages=turns(0), user="u", store=True, metadata={"a": "b"}, service_tier="auto", utterly_new=1
            )
    assert caplog.text.count("ignored an unknown field") == 1
    assert "utterly_new" in caplog.text


def test_n_answers_come_mixed(client: TestClient, scripted: ScriptedEngine) -> None:
    scripted.delay_s = 0.002
    text = chat(client, messages=turns(0), n=3, stream=True, seed=5, temperature=1).text
    chunks = [json.loads(block.removeprefix("data: ")) for block in text.split("\n\n")[:-2]]
    indices = [chunk["choices"][0]["index"] for chunk in chunks]
    assert indices[:3] == [0, 1, 2]
    assert sum(a != b for a, b in itertools.pairwise(indices)) > 6
    for index in range(3):
        own = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(delta.get("content", "") for delta in own) == ANSWER
    assert sorted(sampling.seed or 0 for sampling in scripted.seen[-3:]) == [5, 6, 7]


@pytest.fixture(scope="module")
def real(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TorchEngine, TestClient]]:
    torch.set_num_threads(1)
    engine = TorchEngine(tiny_checkpoint, threads=1, precision="fp32")
    store = RatingStore(tmp_path_factory.mktemp("fields") / "ratings.db")
    with TestClient(create_app(Service.single(engine, store, "tiny"))) as client:
        yield engine, client


def test_sampling_fields_do_what_they_say(real: tuple[TorchEngine, TestClient]) -> None:
    """On a real model: a bias forces a token, a penalty ends repetition, log-probabilities are those of the model."""
    engine, client = real
    ask = {"messages": turns(0), "max_tokens": 12, "temperature": 0, "logprobs": True, "top_logprobs": 3}

    def tokens(**more: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = chat(client, **ask, **more).json()["choices"][0]["logprobs"]["content"]
        return found

    id = engine.tokenizer.encode("玉山")[0]
    forced = tokens(logit_bias={str(id): 100})
    assert {token["token"] for token in forced} == {engine.tokenizer.decode([id])}
    assert (
        len({token["token"] for token in tokens(logit_bias={str(id): 20}, presence_penalty=2, frequency_penalty=2)}) > 1
    )
    free = tokens()
    assert all(len(token["top_logprobs"]) == 3 for token in free)
    assert all(token["top_logprobs"][0]["logprob"] >= token["logprob"] for token in free)
    prompt = engine.tokenizer.encode_chat(turns(0), add_generation_prompt=True).ids
    with torch.inference_mode():
        table = engine.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    assert free[0]["logprob"] == pytest.approx(table.max().item(), abs=1e-4)
    assert all(math.isfinite(token["logprob"]) for token in forced)
