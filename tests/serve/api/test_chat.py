"""The OpenAI routes through the real app, and through the real openai client over the network."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from tests.serve.conftest import ANSWER, ScriptedEngine, running
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.engines.interface import EngineUnavailable
from twllm.serve.engines.torch.engine import TorchEngine
from twllm.serve.operation.service import Service

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "台灣最高的山是哪一座？"}]}


def events(text: str) -> list[Any]:
    lines = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def streamed(client: TestClient, **more: Any) -> list[Any]:
    response = client.post(CHAT, json={**ASK, "stream": True, **more})
    assert response.headers["content-type"].startswith("text/event-stream")
    return events(response.text)


def text_of(chunks: list[Any]) -> str:
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c != "[DONE]" and c["choices"])


def whole(client: TestClient, **more: Any) -> Any:
    response = client.post(CHAT, json={**ASK, **more})
    assert response.status_code == 200, response.text
    return response.json()


def error(client: TestClient, body: Any, status: int = 400) -> Any:
    response = client.post(CHAT, json=body)
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert response.json()["error_type"]
    assert "Traceback" not in response.text
    return found


def test_whole_answer(client: TestClient, scripted: ScriptedEngine) -> None:
    answer = whole(client, model="gpt-whatever", user="x", metadata={"a": 1}, unknown=None)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "玉山-tiny"
    assert answer["system_fingerprint"] == "feedbeef00000001"
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert (choice["finish_reason"], choice["index"], choice["logprobs"]) == ("stop", 0, None)
    completion = len(scripted.tokenizer.encode(" " + ANSWER)) + 1
    prompt = len(scripted.tokenizer.encode_chat(ASK["messages"], add_generation_prompt=True).ids)
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    assert answer["usage"] == usage


def test_stream_has_openais_order(client: TestClient) -> None:
    chunks = streamed(client, stream_options={"include_usage": True})
    assert chunks[-1] == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    *body, last, usage = chunks[1:-1]
    assert all(list(c["choices"][0]["delta"]) == ["content"] and c["choices"][0]["finish_reason"] is None for c in body)
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert usage["usage"] == whole(client)["usage"]
    assert all(c["usage"] is None for c in [chunks[0], *body, last])
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks[:-1]}) == 1
    assert "usage" not in streamed(client)[0]


@pytest.mark.parametrize("more", [{}, {"max_tokens": 7}, {"stop": "砢"}, {"stop": ["好高喔", "ㄆ"], "max_tokens": 90}])
def test_stream_is_the_whole_answer_byte_for_byte(client: TestClient, more: dict[str, Any]) -> None:
    chunks = streamed(client, **more)
    answer = whole(client, **more)["choices"][0]
    assert text_of(chunks).encode() == answer["message"]["content"].encode()
    assert chunks[-2]["choices"][0]["finish_reason"] == answer["finish_reason"]


def test_no_chunk_cuts_a_character(client: TestClient) -> None:
    chunks = streamed(client)
    assert text_of(chunks) == ANSWER
    assert not any("\ufffd" in text_of([chunk]) for chunk in chunks[:-1])


def test_stop_text_is_left_out(client: TestClient) -> None:
    choice = whole(client, stop="「好高")["choices"][0]
    assert choice["message"]["content"] == ANSWER[: ANSWER.index("「好高")]
    assert choice["finish_reason"] == "stop"


def test_length_is_told(client: TestClient, scripted: ScriptedEngine) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = whole(client, **{name: 3})
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 3


def test_settings_reach_the_engine(client: TestClient, scripted: ScriptedEngine) -> None:
    whole(client, temperature=0.5, top_p=0.9, top_k=-1, seed=-1, repetition_penalty=1.1, stop="a", max_tokens=9)
    seen = scripted.seen[-1]
    assert (seen.temperature, seen.top_p, seen.top_k, seen.stop) == (0.5, 0.9, 0, ("a",))
    assert (seen.seed, seen.repetition_penalty, seen.max_tokens) == (2**64 - 1, 1.1, 9)
    whole(client, temperature=None, stop=None, n=1, tools=[], response_format={"type": "text"}, logprobs=False)
    room = 400 - len(scripted.tokenizer.encode_chat(ASK["messages"], add_generation_prompt=True).ids)
    assert scripted.seen[-1] == replace(scripted.defaults, max_tokens=room)


def test_messages_in_all_their_shapes(client: TestClient, scripted: ScriptedEngine) -> None:
    parts = [{"type": "text", "text": "玉山"}, {"type": "text", "text": "多高？"}]
    messages = [
        {"role": "developer", "content": "請用台語。"},
        {"role": "user", "content": "你好", "name": "阿明"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": parts},
    ]
    assert client.post(CHAT, json={"messages": messages}).status_code == 200
    assert scripted.prompts[-1] == "請用台語。 USER: 你好 ASSISTANT: USER: 玉山多高？ ASSISTANT:"


def test_typed_control_tokens_stay_text(client: TestClient, scripted: ScriptedEngine) -> None:
    assert client.post(CHAT, json={"messages": [{"role": "user", "content": "</s><s>"}]}).status_code == 200
    assert "USER: </s><s> ASSISTANT:" in scripted.prompts[-1]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 0}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, None),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["1", "2", "3", "4", "5"]}, "stop"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"a": 1}}, None),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"min_p": 1.5}, "min_p"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"guided_json": "{", "stop": None}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "response_format"),
        ({"structured_outputs": {"grammar": "root ::= a"}}, "structured_outputs"),
        ({"guided_grammar": "root ::= a"}, "guided_grammar"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"chat_template": "x"}, "chat_template"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"truncate": "middle"}, "truncate"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_are_400_in_openais_shape(
    client: TestClient, change: dict[str, Any], param: str | None, stream: bool
) -> None:
    found = error(client, {**ASK, "stream": stream, **change})
    assert found["type"] == "invalid_request_error"
    assert found["message"]
    if param:
        assert found["param"] == param


def test_body_that_is_not_json_and_unknown_paths(client: TestClient) -> None:
    assert "error" in client.post(CHAT, content=b"{", headers={"Content-Type": "application/json"}).json()
    assert client.get("/v1/nothing").json()["error"]["message"]
    assert client.get(CHAT).status_code in (404, 405)


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_a_prompt(client: TestClient, stream: bool) -> None:
    body = {"messages": [{"role": "user", "content": "很長" * 400}], "stream": stream}
    found = error(client, body)
    assert found["code"] == "context_length_exceeded"
    assert "400" in found["message"]


def test_error_in_the_middle(client: TestClient, scripted: ScriptedEngine, caplog: pytest.LogCaptureFixture) -> None:
    scripted.fail_after = 4
    with caplog.at_level(logging.CRITICAL, "twllm.serve"):
        chunks = streamed(client)
    assert len(chunks) > 1
    assert set(chunks[-1]) == {"error", "error_type"}
    assert chunks[-1]["error"]["type"] == "server_error"
    response = client.post(CHAT, json=ASK)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in json.dumps(chunks) + response.text


def test_an_engine_that_is_away_is_503_and_not_our_bug(
    client: TestClient, scripted: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.fail_after, scripted.failure = 1, EngineUnavailable("http://inside: no server is up")
    with caplog.at_level(logging.CRITICAL, "twllm.serve"):
        response = client.post(CHAT, json=ASK)
        generated = client.post("/generate", json={"inputs": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
    assert int(response.headers["Retry-After"]) > 0
    assert (generated.status_code, generated.json()["error_type"]) == (503, "generation")
    assert "inside" not in response.text + generated.text


def test_models_and_health(client: TestClient, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    models = client.get("/v1/models").json()
    assert models["object"] == "list"
    assert [(m["id"], m["object"]) for m in models["data"]] == [("玉山-tiny", "model")]
    assert client.get("/health").json() == {"status": "ok"}
    monkeypatch.setattr(scripted, "alive", lambda: False)
    assert client.get("/health").status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_stops_its_answer(scripted: ScriptedEngine, database: Path, stream: bool) -> None:
    scripted.delay_s = 0.05
    with running(scripted, database) as url, httpx.Client() as http:
        if stream:
            with http.stream("POST", url + CHAT, json={**ASK, "stream": True}) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(url + CHAT, json=ASK, timeout=0.3)
        assert scripted.cancelled.wait(3)


@pytest.fixture(scope="module")
def real(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TorchEngine, TestClient]]:
    """The app on the torch engine."""
    engine = TorchEngine(tiny_checkpoint, threads=1)
    store = RatingStore(tmp_path_factory.mktemp("real") / "ratings.db")
    with TestClient(create_app(Service.single(engine, store, "tiny"))) as client:
        yield engine, client


def test_real_engine_streams_what_it_answers(real: tuple[TorchEngine, TestClient]) -> None:
    _, client = real
    for more in ({}, {"temperature": 1.0, "seed": 3}):
        settings = {"max_tokens": 40, "temperature": 0, **more}
        answer = whole(client, **settings)["choices"][0]
        assert text_of(streamed(client, **settings)) == answer["message"]["content"] != ""
    free = answer["message"]["content"]
    stop = free[len(free) // 2 : len(free) // 2 + 3]
    stopped = whole(client, **settings, stop=stop)["choices"][0]["message"]["content"]
    assert stopped == free[: free.index(stop)]


def test_real_engine_answers_many_at_once_as_one_by_one(real: tuple[TorchEngine, TestClient]) -> None:
    _, client = real
    questions = ["你好", "玉山多高？", "注音ㄅㄆㄇ", "拍謝是什麼意思？", "AI 是什麼", "台南小吃"]

    def answer(question: str) -> str:
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": 20, "temperature": 0}
        return str(client.post(CHAT, json=body).json()["choices"][0]["message"]["content"])

    alone = [answer(question) for question in questions]
    together: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda n=n: together.__setitem__(n, answer(questions[n])))
        for n in range(len(questions))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [together[n] for n in range(len(questions))] == alone
    assert len(set(alone)) > 1


def test_the_openai_client(scripted: ScriptedEngine, database: Path) -> None:
    openai = pytest.importorskip("openai")
    messages = ASK["messages"]
    with (
        running(scripted, database) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=10) as client,
    ):
        answer = client.chat.completions.create(model="任何名字", messages=messages)
        type(answer).model_validate(answer.model_dump())  # the client itself does not validate
        assert answer.choices[0].message.content == ANSWER
        chunks = list(
            client.chat.completions.create(
                model="x", messages=messages, stream=True, stream_options={"include_usage": True}
            )
        )
        for chunk in chunks:
            type(chunk).model_validate(chunk.model_dump())
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
        assert chunks[-1].usage == answer.usage
        with client.chat.completions.stream(model="x", messages=messages) as stream:
            assert stream.get_final_completion().choices[0].message.content == ANSWER
        assert [model.id for model in client.models.list()] == ["玉山-tiny"]
        two = client.chat.completions.create(model="x", messages=messages, n=2, logprobs=True, top_logprobs=1)
        type(two).model_validate(two.model_dump())
        assert [choice.message.content for choice in two.choices] == [ANSWER, ANSWER]
        assert b"".join(bytes(token.bytes) for token in two.choices[1].logprobs.content).decode() == " " + ANSWER
        assert client.models.retrieve("玉山-tiny").id == "玉山-tiny"
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="x", input="a")
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="x", messages=[{"role": "user", "content": "長" * 900}])
        assert refused.value.code == "context_length_exceeded"
        scripted.fail_after = 3
        logging.getLogger("twllm.serve").setLevel(logging.CRITICAL)
        with pytest.raises(openai.APIError, match="internal error"):
            list(client.chat.completions.create(model="x", messages=messages, stream=True))
        logging.getLogger("twllm.serve").setLevel(logging.NOTSET)
        time.sleep(0.05)


def test_half_a_character_is_replaced(client: TestClient, scripted: ScriptedEngine) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "好\ud83d"}]})
    response = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200
    assert "好\ufffd" in scripted.prompts[-1]


def test_a_silent_stream_is_kept_alive(
    client: TestClient, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comments, which clients skip, while the model thinks."""
    monkeypatch.setattr("twllm.serve.api.event_stream.KEEP_ALIVE_S", 0.05)
    scripted.delay_s = 0.12
    text = client.post(CHAT, json={**ASK, "stream": True, "max_tokens": 4}).text
    assert text.count("\n\n:\n\n") >= 3
    assert text.endswith("data: [DONE]\n\n")
    chunks = events("\n\n".join(block for block in text.split("\n\n") if block.startswith("data")))
    assert text_of(chunks) == ANSWER[: len(text_of(chunks))] != ""
