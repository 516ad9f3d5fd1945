"""text-generation-inference's API through the real app: fields, order of checks, words, statuses, the form of streams."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from starlette.testclient import TestClient

from tests.serve.conftest import ANSWER, ScriptedEngine, running
from twllm.errors import UserError
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.engines.interface import OnEvent, Sampling
from twllm.serve.engines.torch.engine import TorchEngine
from twllm.serve.operation.service import Service

PROMPT = "台灣最高的山是"
TOKEN_KEYS = {"id", "text", "logprob", "special"}


def post(client: TestClient, path: str = "/generate", inputs: str = PROMPT, **parameters: Any) -> Any:
    response = client.post(path, json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: TestClient, status: int = 422, path: str = "/generate", **body: Any) -> dict[str, str]:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "error_type"}
    found: dict[str, str] = response.json()
    return found


def events(client: TestClient, path: str = "/generate_stream", **body: Any) -> list[Any]:
    """The events of a stream, whose form is checked."""
    response = client.post(path, json={"inputs": PROMPT, **body})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-accel-buffering"] == "no"
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data:{") and "\n" not in block for block in blocks)
    return [json.loads(block.removeprefix("data:")) for block in blocks]


def test_generate(client: TestClient, scripted: ScriptedEngine) -> None:
    """No details unless asked for; the text begins with the space that the model wrote; the end token is not text."""
    assert post(client) == {"generated_text": " " + ANSWER}
    assert scripted.seen[-1].temperature == 0
    answer = post(client, details=True)
    details = answer["details"]
    assert details["finish_reason"] == "eos_token"
    assert details["generated_tokens"] == len(details["tokens"])
    assert details["seed"] is None
    assert details["prefill"] == []
    assert "top_tokens" not in details
    assert "best_of_sequences" not in details
    last = details["tokens"][-1]
    assert last == {"id": scripted.tokenizer.eos_id, "text": "</s>", "logprob": -0.01, "special": True}
    assert "".join(t["text"] for t in details["tokens"] if not t["special"]) == answer["generated_text"]
    assert all(set(token) == TOKEN_KEYS for token in details["tokens"])


def test_the_root_answers_a_list_and_the_page(client: TestClient) -> None:
    response = client.post("/", json={"inputs": PROMPT, "parameters": {"details": True}})
    assert [set(answer) for answer in response.json()] == [{"generated_text", "details"}]
    assert client.get("/", headers={"Accept": "text/html"}).headers["content-type"].startswith("text/html")
    assert client.get("/").status_code == 200
    found = events(client, "/", stream=True, parameters={"details": True})
    assert found[-1]["generated_text"] == " " + ANSWER


def test_without_parameters_ids_are_drawn(client: TestClient, scripted: ScriptedEngine) -> None:
    client.post("/generate", json={"inputs": PROMPT})
    assert (scripted.seen[-1].temperature, scripted.seen[-1].seed is None) == (1.0, False)
    client.post("/generate", json={"inputs": PROMPT, "parameters": {}})
    assert (scripted.seen[-1].temperature, scripted.seen[-1].seed) == (0.0, None)


def test_what_switches_sampling_on(client: TestClient, scripted: ScriptedEngine) -> None:
    for parameters in ({"do_sample": True}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.9}, {"typical_p": 0.9}):
        details = post(client, **parameters, details=True)["details"]
        assert details["seed"] == scripted.seen[-1].seed is not None
        assert scripted.seen[-1].temperature == parameters.get("temperature", 1.0)
    assert post(client, temperature=1.0, details=True)["details"]["seed"] is None
    assert post(client, do_sample=True, seed=7, details=True)["details"]["seed"] == 7
    settings = {"top_p": 0.5, "top_k": 3, "typical_p": 0.8, "temperature": 0.3}
    post(client, **settings, repetition_penalty=1.2, frequency_penalty=-0.5, details=True)
    seen = scripted.seen[-1]
    assert (seen.top_p, seen.top_k, seen.typical_p, seen.temperature) == (0.5, 3, 0.8, 0.3)
    assert (seen.repetition_penalty, seen.frequency_penalty, seen.processed_logprobs) == (1.2, -0.5, True)


def test_null_and_unknown_fields_are_not_given(client: TestClient) -> None:
    names = [
        "best_of",
        "temperature",
        "repetition_penalty",
        "frequency_penalty",
        "top_k",
        "top_p",
        "typical_p",
        "max_new_tokens",
        "return_full_text",
        "truncate",
        "seed",
        "top_n_tokens",
        "grammar",
        "adapter_id",
        "stop",
        "do_sample",
        "watermark",
        "details",
        "decoder_input_details",
    ]
    assert post(client, **dict.fromkeys(names), invented=1) == {"generated_text": " " + ANSWER}


def test_stream(client: TestClient) -> None:
    parameters = {"details": True, "seed": 3, "do_sample": True}
    *body, last = events(client, parameters=parameters)
    assert [event["index"] for event in [*body, last]] == list(range(1, len(body) + 2))
    assert all(event["generated_text"] is event["details"] is None and "top_tokens" not in event for event in body)
    text = "".join(event["token"]["text"] for event in [*body, last] if not event["token"]["special"])
    assert text == last["generated_text"] == post(client, **parameters)["generated_text"]
    assert not any("\ufffd" in event["token"]["text"] for event in body)
    length = len(client.app.state.ids(PROMPT)) if hasattr(client.app.state, "ids") else last["details"]["input_length"]
    details = {"finish_reason": "eos_token", "generated_tokens": len(body) + 1, "seed": 3, "input_length": length}
    assert last["details"] == details
    assert events(client)[-1]["details"] is None


def test_stop_strings_stay_and_end_at_a_token(client: TestClient) -> None:
    stop = "玉山"
    answer = post(client, stop=["不會有", stop], details=True)
    assert answer["generated_text"] == " " + ANSWER[: ANSWER.index(stop) + len(stop)]
    assert answer["details"]["finish_reason"] == "stop_sequence"
    assert answer["details"]["tokens"][-1]["text"].endswith("山")
    assert events(client, parameters={"stop": [stop]})[-1]["generated_text"] == answer["generated_text"]
    tokens = post(client, details=True)["details"]["tokens"]
    inside = next(token["text"] for token in tokens if len(token["text"]) > 2)[:2]  # never ends a token
    assert post(client, stop=[inside])["generated_text"] == " " + ANSWER


def test_length_comes_before_the_end_token(client: TestClient) -> None:
    count = post(client, details=True)["details"]["generated_tokens"]
    for limit, reason in ((3, "length"), (count, "length"), (count + 1, "eos_token")):
        details = post(client, details=True, max_new_tokens=limit)["details"]
        assert (details["finish_reason"], details["generated_tokens"]) == (reason, min(limit, count))


def test_full_text_and_truncation(client: TestClient, scripted: ScriptedEngine) -> None:
    for path in ("/generate", "/"):
        answer = client.post(
            path, json={"inputs": PROMPT, "parameters": {"return_full_text": True, "max_new_tokens": 2}}
        ).json()
        text = (answer[0] if path == "/" else answer)["generated_text"]
        assert text.startswith(PROMPT + " ")
    assert events(client, parameters={"return_full_text": True})[-1]["generated_text"] == PROMPT + " " + ANSWER
    post(client, truncate=2)
    assert scripted.prompts[-1] == scripted.tokenizer.decode(scripted.tokenizer.encode(PROMPT)[-2:])


def test_prompt_and_top_tokens(client: TestClient, scripted: ScriptedEngine) -> None:
    details = post(client, decoder_input_details=True)["details"]
    ids = [scripted.tokenizer.bos_id, *scripted.tokenizer.encode(PROMPT)]
    assert [token["id"] for token in details["prefill"]] == ids
    assert details["prefill"][0] == {"id": ids[0], "text": "<s>", "logprob": None}
    assert details["prefill"][1]["logprob"] == -0.01
    details = post(client, details=True, top_n_tokens=2)["details"]
    assert len(details["top_tokens"]) == details["generated_tokens"]
    assert all(len(top) == 2 and set(top[0]) == TOKEN_KEYS for top in details["top_tokens"])
    assert all(len(event["top_tokens"]) == 2 for event in events(client, parameters={"top_n_tokens": 2}))


WRONG = [
    ({"best_of": 3, "temperature": 0}, "`best_of` must be > 0 and <= 2. Given: 3"),
    ({"best_of": 0}, "`best_of` must be > 0 and <= 2. Given: 0"),
    ({"best_of": 2, "seed": 1}, "you must use sampling when `best_of` is > 1"),
    ({"best_of": 2, "do_sample": True, "seed": 1, "temperature": 0}, "`seed` must not be set when `best_of` > 1"),
    ({"temperature": 0, "repetition_penalty": 0}, "`temperature` must be strictly positive"),
    ({"repetition_penalty": 0, "frequency_penalty": 3}, "`repetition_penalty` must be strictly positive"),
    ({"frequency_penalty": 3, "top_p": 1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"top_p": 1.0, "typical_p": 1}, "`top_p` must be > 0.0 and < 1.0"),
    ({"typical_p": 1.0, "top_k": 0}, "`typical_p` must be > 0.0 and < 1.0"),
    ({"top_k": 0, "max_new_tokens": 0}, "`top_k` must be strictly positive"),
    ({"max_new_tokens": 0, "stop": ["a"] * 5}, "`max_new_tokens` must be strictly positive"),
    ({"stop": ["a"] * 5, "top_n_tokens": 6}, "`stop` supports up to 4 stop sequences. Given: 5"),
    ({"top_n_tokens": 6, "truncate": 0}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    ({"truncate": 400}, "`truncate` must be strictly positive and less than 399. Given: 400"),
    ({"watermark": True}, "`watermark` is not supported by this server"),
    ({"grammar": {"type": "json", "value": {"type": "string"}}}, "grammar is not valid: Grammar must have a 'properties' field"),
    ({"grammar": {"type": "regex", "value": ""}}, "grammar is not valid: a regex is a string that is not empty"),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "message"), WRONG)
def test_checks_have_tgis_order_and_words(client: TestClient, parameters: dict[str, Any], message: str) -> None:
    expected = {"error": f"Input validation error: {message}", "error_type": "validation"}
    assert refused(client, inputs=PROMPT, parameters=parameters) == expected
    if "seed" not in parameters or "best_of" not in parameters:
        assert events(client, parameters=parameters) == [expected]  # and status 200


def test_streams_have_checks_of_their_own(client: TestClient) -> None:
    for parameters, name in (
        ({"best_of": 2, "do_sample": True}, "best_of"),
        ({"decoder_input_details": True}, "decoder"),
    ):
        (event,) = events(client, parameters=parameters)
        assert name in event["error"]
        assert event["error"].endswith("is not supported when streaming tokens")


def test_lengths(client: TestClient, scripted: ScriptedEngine) -> None:
    assert "`inputs` cannot be empty" in refused(client, inputs="")["error"]
    long = "ㄅㄆㄇ" * 200
    count = len(scripted.tokenizer.encode(long)) + 1
    assert refused(client, inputs=long)["error"] == (
        f"Input validation error: `inputs` must have less than 399 tokens. Given: {count}"
    )
    assert refused(client, inputs=long, parameters={"max_new_tokens": 5})["error"].endswith(
        f"must be <= 400. Given: {count} `inputs` tokens and 5 `max_new_tokens`"
    )
    post(client, inputs=long, truncate=300, max_new_tokens=5)
    assert scripted.seen[-1].max_tokens == 5
    post(client, inputs=long, truncate=300)
    assert scripted.seen[-1].max_tokens == 100


@pytest.mark.parametrize("path", ["/", "/generate", "/generate_stream", "/invocations"])
def test_bodies_that_are_not_requests(client: TestClient, path: str) -> None:
    assert refused(client, path=path, inputs=5)["error_type"] == "validation"
    assert refused(client, path=path, inputs="a", parameters={"top_k": "many"})["error"]
    for body in (b"{", b"\xff\xfe"):
        response = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert (response.status_code, set(response.json())) == (400, {"error", "error_type"})


def test_errors_inside(client: TestClient, scripted: ScriptedEngine, caplog: pytest.LogCaptureFixture) -> None:
    scripted.fail_after = 3
    with caplog.at_level(logging.CRITICAL, "twllm.serve"):
        found = refused(client, 424, inputs=PROMPT)
        *body, last = events(client)
    assert found["error_type"] == "generation"
    assert len(body) == 2
    assert last == found
    assert "secret" not in json.dumps([found, last])


def test_headers(client: TestClient) -> None:
    headers = client.post("/generate", json={"inputs": PROMPT, "parameters": {"max_new_tokens": 3}}).headers
    assert headers["x-generated-tokens"] == "3"
    assert headers["x-compute-characters"] == str(len(PROMPT))
    assert headers["x-compute-type"] in ("cpu", "gpu")
    names = ["total-time", "validation-time", "queue-time", "inference-time", "time-per-token", "prompt-tokens"]
    assert all(headers[f"x-{name}"].isdigit() for name in names)
    assert float(headers["x-compute-time"]) >= 0


def test_info_and_health(client: TestClient, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    info = client.get("/info").json()
    assert (info["model_id"], info["max_total_tokens"], info["max_input_tokens"]) == ("玉山-tiny", 400, 399)
    assert info["router"] == "text-generation-router"
    assert (client.get("/ping").status_code, client.get("/ping").content) == (200, b"")
    monkeypatch.setattr(scripted, "alive", lambda: False)
    for path in ("/ping", "/health"):
        response = client.get(path)
        assert response.status_code == 503
        assert response.json().items() >= {"error": "unhealthy", "error_type": "healthcheck"}.items()


def test_tokenize(client: TestClient, scripted: ScriptedEngine) -> None:
    tokens = client.post("/tokenize", json={"inputs": PROMPT, "parameters": None}).json()
    assert all(set(token) == {"id", "text", "start", "stop"} for token in tokens)
    assert "".join(PROMPT[token["start"] : token["stop"]] for token in tokens) == PROMPT
    messages = [{"role": "user", "content": PROMPT}]
    found = client.post("/chat_tokenize", json={"messages": messages}).json()
    encoded = scripted.tokenizer.encode_chat(messages, add_generation_prompt=True)
    assert [token["id"] for token in found["tokenize_response"]] == encoded.ids
    assert found["templated_text"] == scripted.tokenizer.render(messages, add_generation_prompt=True).text


def test_invocations_are_any_of_the_three(client: TestClient) -> None:
    chat = client.post("/invocations", json={"messages": [{"role": "user", "content": "山？"}]}).json()
    assert chat["choices"][0]["message"]["content"] == ANSWER
    text = client.post("/invocations", json={"prompt": "山？", "max_tokens": 300}).json()
    assert text["object"] == "text_completion"
    assert client.post("/invocations", json={"inputs": "山？"}).json() == [{"generated_text": " " + ANSWER}]
    assert refused(client, path="/invocations", messages=[])["error_type"] == "validation"


def test_control_tokens_in_a_raw_prompt_count(client: TestClient, scripted: ScriptedEngine) -> None:
    """The seed's demo writes the template into the prompt: no second begin token, its control tokens are control tokens."""
    post(client, inputs="<s>你好 USER: 山？ ASSISTANT:", decoder_input_details=True)
    details = post(client, inputs="<s>你好</s>", decoder_input_details=True)["details"]
    ids = [token["id"] for token in details["prefill"]]
    assert ids.count(scripted.tokenizer.bos_id) == 1
    assert ids[-1] == scripted.tokenizer.eos_id


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_stops_its_answer(scripted: ScriptedEngine, database: Path, stream: bool) -> None:
    scripted.delay_s = 0.05
    with running(scripted, database) as url, httpx.Client() as http:
        if stream:
            with http.stream("POST", url, json={"inputs": PROMPT, "stream": True}) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(url, json={"inputs": PROMPT}, timeout=0.3)
        assert scripted.cancelled.wait(3)


@pytest.fixture(scope="module")
def real(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    torch.set_num_threads(1)
    engine = TorchEngine(tiny_checkpoint, threads=1, precision="fp32")
    store = RatingStore(tmp_path_factory.mktemp("tgi") / "ratings.db")
    with TestClient(create_app(Service.single(engine, store, "tiny"))) as client:
        yield client


def test_seeds_are_echoed_and_repeat(real: TestClient) -> None:
    first = post(real, do_sample=True, max_new_tokens=12, details=True)
    seed = first["details"]["seed"]
    again = post(real, do_sample=True, max_new_tokens=12, details=True, seed=seed)
    assert again["generated_text"] == first["generated_text"]
    assert post(real, do_sample=True, max_new_tokens=12)["generated_text"] != first["generated_text"]


def test_best_of_is_the_likeliest(real: TestClient) -> None:
    details = post(real, best_of=2, do_sample=True, max_new_tokens=8, details=True)["details"]
    (other,) = details["best_of_sequences"]

    def mean(sequence: dict[str, Any]) -> float:
        return sum(token["logprob"] for token in sequence["tokens"]) / len(sequence["tokens"])

    assert mean(details) >= mean(other)
    assert details["seed"] != other["seed"]
    assert {"generated_text", "finish_reason", "generated_tokens", "prefill"} <= set(other)


def test_logprobs_are_those_after_the_processors(real: TestClient) -> None:
    """With top_k 1 the drawn token is certain; at a low temperature it is surer than at a high one."""
    certain = post(real, top_k=1, max_new_tokens=5, details=True)["details"]["tokens"]
    assert [token["logprob"] for token in certain] == pytest.approx([0.0] * len(certain), abs=1e-6)
    cold, warm = (
        post(real, temperature=t, top_n_tokens=5, seed=1, max_new_tokens=1, details=True)["details"]["top_tokens"][0]
        for t in (0.5, 2.0)
    )
    assert [token["id"] for token in cold] == [token["id"] for token in warm]
    assert cold[0]["logprob"] > warm[0]["logprob"]
    raw = [cold[0]["logprob"] - cold[1]["logprob"], warm[0]["logprob"] - warm[1]["logprob"]]
    assert raw[0] == pytest.approx(raw[1] * 4, rel=1e-3)


def test_grammars(real: TestClient) -> None:
    schema = {
        "type": "object",
        "properties": {"高": {"type": "boolean"}},
        "required": ["高"],
        "additionalProperties": False,
    }
    for kind, value in (
        ("json", schema),
        ("json", json.dumps(schema)),
        ("json_schema", {"name": "x", "schema": schema}),
    ):
        text = post(real, grammar={"type": kind, "value": value}, max_new_tokens=200)["generated_text"]
        assert isinstance(json.loads(text)["高"], bool)
    assert post(real, grammar={"type": "regex", "value": "[玉雪]山"}, max_new_tokens=50)["generated_text"] in (
        "玉山",
        "雪山",
    )
    assert (
        "grammar is not valid"
        in refused(real, inputs="a", parameters={"grammar": {"type": "regex", "value": "("}})["error"]
    )
    (event,) = events(real, parameters={"grammar": {"type": "regex", "value": "("}})
    assert "grammar is not valid" in event["error"]


def test_engines_without_logprobs(
    client: TestClient, scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream goes on without them, an answer without details never needed them, details are refused."""
    submit = scripted.submit

    def picky(ids: list[int], sampling: Sampling, on_event: OnEvent) -> Any:
        if sampling.logprobs is not None:
            raise UserError("遠端不支援這些設定 (the remote cannot): logprobs", "sampling", "拿掉")
        return submit(ids, sampling, on_event)

    monkeypatch.setattr(scripted, "submit", picky)
    assert post(client) == {"generated_text": " " + ANSWER}
    found = events(client)
    assert found[-1]["generated_text"] == " " + ANSWER
    assert {event["token"]["logprob"] for event in found} == {None}
    assert "logprobs" in refused(client, inputs=PROMPT, parameters={"details": True})["error"]
