"""/v1/completions and the tokenizer routes on a real tiny model, compared with transformers."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from starlette.testclient import TestClient
from transformers import AutoModelForCausalLM

from tests.serve.conftest import ANSWER, ScriptedEngine, running
from twllm.errors import UserError
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.engines.decoding.tokens import TokenText, encode_raw
from twllm.serve.engines.torch import scoring
from twllm.serve.engines.torch.engine import TorchEngine
from twllm.serve.operation.service import Service
from twllm.tokens.tokenizer import ChatTokenizer

URL = "/v1/completions"
TEXTS = ["台灣的首都是臺北。", "玉山是台灣最高的山，標高", "hello 世界 🏔️"]
GREEDY = {"temperature": 0, "seed": 1234}


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Iterator[TorchEngine]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twllm.serve.engines.torch.engine.pick_device", lambda: ("cpu", torch.float32))
        engine = TorchEngine(tiny_checkpoint)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def server(engine: TorchEngine, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """Without the lifespan, which would close the engine that the module shares."""
    store = RatingStore(tmp_path_factory.mktemp("db") / "ratings.db")
    return TestClient(create_app(Service.single(engine, store, "tiny")), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()


def ask(client: TestClient, **body: Any) -> Any:
    response = client.post(URL, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: TestClient, status: int = 400, **body: Any) -> dict[str, Any]:
    response = client.post(URL, json=body)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.json()["error_type"]
    return error


def expected_logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)  # (T, V)


def test_lm_evals_likelihood_request(server: TestClient, engine: TorchEngine, reference: Any) -> None:
    """Ids in, every prompt token's log-probability out, and exactly one token after them, also where it is the end."""
    prompts = [encode_raw(engine.tokenizer, text) for text in TEXTS]
    answer = ask(server, prompt=prompts, max_tokens=1, logprobs=1, echo=True, **GREEDY)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    for ids, choice in zip(prompts, answer["choices"], strict=True):
        table = expected_logprobs(reference, ids)
        found = choice["logprobs"]
        assert {len(column) for column in found.values()} == {len(ids) + 1}
        assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
        for t, id in enumerate(ids[1:], 1):
            assert found["token_logprobs"][t] == pytest.approx(table[t - 1, id].item(), abs=1e-5)
            top = max(found["top_logprobs"][t].values())
            assert top == pytest.approx(table[t - 1].max().item(), abs=1e-5)
            greedy = found["token_logprobs"][t] == top
            assert greedy == (table[t - 1].argmax().item() == id)
        assert found["token_logprobs"][-1] == max(found["top_logprobs"][-1].values())  # the same float
        assert found["tokens"][-1] == TokenText(engine.tokenizer).name(int(table[-1].argmax()))
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert answer["usage"]["completion_tokens"] == 3


def test_one_pass_agrees_with_generation(server: TestClient) -> None:
    """Echo with one token is one pass; two tokens are generated: the first is the same, and so are the prompt's numbers."""
    one = ask(server, prompt=TEXTS, max_tokens=1, logprobs=5, echo=True, **GREEDY)["choices"]
    two = ask(server, prompt=TEXTS, max_tokens=2, logprobs=5, echo=True, **GREEDY)["choices"]
    for a, b in zip(one, two, strict=True):
        n = len(a["logprobs"]["tokens"])
        assert a["logprobs"]["tokens"] == b["logprobs"]["tokens"][:n]
        for x, y in zip(a["logprobs"]["token_logprobs"][1:], b["logprobs"]["token_logprobs"][1:n], strict=True):
            assert x == pytest.approx(y, abs=1e-5)


def test_no_second_begin_token(server: TestClient, engine: TorchEngine) -> None:
    """Texts get one, unless they begin with it; ids are taken as they are."""
    begin = engine.tokenizer.bos
    plain = engine.tokenizer.encode(TEXTS[0])
    for prompt in (TEXTS[0], begin + TEXTS[0], [engine.tokenizer.bos_id, *plain]):
        answer = ask(server, prompt=prompt, max_tokens=0, echo=True, logprobs=0)
        tokens = answer["choices"][0]["logprobs"]["tokens"]
        assert tokens.count(begin) == 1
        assert answer["usage"]["prompt_tokens"] == len(plain) + 1
    answer = ask(server, prompt=plain, max_tokens=0, echo=True, logprobs=0)
    assert begin not in answer["choices"][0]["logprobs"]["tokens"]


def test_echo_alone(server: TestClient, engine: TorchEngine) -> None:
    answer = ask(server, prompt=TEXTS[0], max_tokens=0, echo=True)
    (choice,) = answer["choices"]
    assert choice == {"index": 0, "text": TEXTS[0], "logprobs": None, "finish_reason": "length"}
    assert answer["object"] == "text_completion"
    assert answer["usage"]["completion_tokens"] == 0
    ids = engine.tokenizer.encode(TEXTS[0])
    assert ask(server, prompt=ids, max_tokens=0, echo=True)["choices"][0]["text"] == TEXTS[0]


def test_generation_equals_transformers(server: TestClient, engine: TorchEngine, reference: Any) -> None:
    answer = ask(server, prompt=TEXTS, max_tokens=12, logprobs=0, **GREEDY)
    for text, choice in zip(TEXTS, answer["choices"], strict=True):
        ids = encode_raw(engine.tokenizer, text)
        want = reference.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=12,
            pad_token_id=engine.tokenizer.pad_id,
        )[0, len(ids) :].tolist()  # fmt: skip
        assert choice["logprobs"]["tokens"] == [TokenText(engine.tokenizer).name(id) for id in want]
        assert choice["text"] == engine.tokenizer.decode(want)
        assert choice["finish_reason"] == ("stop" if want[-1] == engine.tokenizer.eos_id else "length")
        table = expected_logprobs(reference, ids + want)
        wanted = [table[len(ids) - 1 + t, id].item() for t, id in enumerate(want)]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(wanted, abs=1e-4)


def test_undecodable_tokens_have_names_of_their_own(engine: TorchEngine) -> None:
    """A random model's five best after half a character: bytes that would all print as U+FFFD."""
    texts = TokenText(engine.tokenizer)
    halves = [id for id in range(engine.tokenizer.vocab_size) if engine.tokenizer.decode([id]) == "\ufffd"]
    assert len(halves) > 100
    assert len({texts.name(id) for id in halves}) == len(halves)
    assert texts.name(engine.tokenizer.backend.token_to_id("å")) == "bytes:\\xe5"
    assert len(texts.names([(id, -1.0) for id in halves])) == len(halves)


@pytest.mark.parametrize("text", [*TEXTS, "<s>USER: 你好 ASSISTANT:", " 前面有空格", "a\n\n<s>b", "砢磣🏔️"])
def test_offsets(engine: TorchEngine, text: str) -> None:
    """Each token stands where the offsets say; tokens of one character share its place."""
    texts, ids = TokenText(engine.tokenizer), encode_raw(engine.tokenizer, text)
    starts = texts.offsets(ids, text)
    assert starts == sorted(starts)
    for id, start in zip(ids, starts, strict=True):
        name = texts.name(id)
        assert name.startswith("bytes:") or text.startswith(name, start) or (name == "<s>" and start == 0)
    plain = engine.tokenizer.encode(text)
    assert b"".join(map(texts.bytes_of, plain)).decode() == text


@pytest.mark.shared_data
def test_names_and_offsets_of_published_tokenizers(shared_data: Path) -> None:
    text = "台灣的首都是臺北 hello  世界🏔️\n「好」"
    folders = [file.parent for file in (shared_data / "tokenizers").glob("**/tokenizer.model")]
    assert folders
    for folder in folders:
        tokenizer = ChatTokenizer.load(folder)
        texts, ids = TokenText(tokenizer), encode_raw(tokenizer, text)
        assert b"".join(map(texts.bytes_of, ids)).decode().removeprefix(tokenizer.bos).removeprefix(" ") == text
        for id, start in zip(ids, texts.offsets(ids, text), strict=True):
            name = texts.name(id)
            assert (
                name.startswith("bytes:")
                or name == tokenizer.bos
                or text.startswith(name.removeprefix(" ") if start == 0 else name, start)
            )


def test_choices_stand_prompt_by_prompt(server: TestClient) -> None:
    """Answer j to prompt i is the same in a batch and alone, and drawn with seed + j."""
    settings = {"max_tokens": 8, "temperature": 1.0, "top_p": 0.9}
    batch = ask(server, prompt=TEXTS[:2], n=2, seed=7, **settings)["choices"]
    assert [choice["index"] for choice in batch] == [0, 1, 2, 3]
    alone = [ask(server, prompt=text, seed=seed, **settings)["choices"][0] for text in TEXTS[:2] for seed in (7, 8)]
    assert [choice["text"] for choice in batch] == [choice["text"] for choice in alone]
    assert len({choice["text"] for choice in batch}) > 1


def test_stop_strings(server: TestClient) -> None:
    text = ask(server, prompt=TEXTS[1], max_tokens=30, **GREEDY)["choices"][0]["text"]
    stop = text[4:6]
    cut = ask(server, prompt=TEXTS[1], max_tokens=30, stop=["不會有", stop], **GREEDY)["choices"][0]
    assert cut["text"] == text[: text.index(stop)]
    assert cut["finish_reason"] == "stop"


def events(response: Any) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [block.removeprefix("data: ") for block in response.text.split("\n\n") if block]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("more", [{}, {"echo": True}, {"logprobs": 2, "echo": True}, {"echo": True, "max_tokens": 0}])
def test_stream_adds_up_to_the_whole(server: TestClient, more: dict[str, Any]) -> None:
    body = {"prompt": TEXTS[:2], "n": 2, "max_tokens": 8, **GREEDY, "temperature": 1, **more}
    whole = ask(server, **body)
    chunks = events(server.post(URL, json={**body, "stream": True, "stream_options": {"include_usage": True}}))
    *chunks, last = chunks
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert len({(chunk["id"], chunk["object"], chunk["created"]) for chunk in [*chunks, last]}) == 1
    for choice in whole["choices"]:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in own) == choice["text"]
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == [choice["finish_reason"]]
        parts = [c["logprobs"] for c in own if c["logprobs"]]
        assert bool(parts) == (choice["logprobs"] is not None) == ("logprobs" in more)
        for name, column in (choice["logprobs"] or {}).items():
            joined = [entry for part in parts for entry in part[name]]
            assert len(parts) > 2
            if name in ("tokens", "text_offset"):
                assert joined == column
            else:  # other requests beside it change the last digits
                for one, other in zip(joined, column, strict=True):
                    assert one == other if one is None else one == pytest.approx(other, abs=1e-4)


def test_slices_and_batches_change_nothing(
    engine: TorchEngine, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long sequence through the cache, a slice of positions at a time, and one row a batch: the same numbers."""
    sequences = [encode_raw(engine.tokenizer, text * times) for text, times in zip(TEXTS, (1, 6, 3), strict=True)]
    whole = scoring.score(engine.model, sequences, 3)
    monkeypatch.setattr(scoring, "LOGITS", 7 * 3 * engine.tokenizer.vocab_size)
    sliced = scoring.score(engine.model, sequences, 3)
    monkeypatch.setattr(scoring, "TOKENS", 1)
    single = scoring.score(engine.model, sequences, 3)
    for ids, *three in zip(sequences, whole, sliced, single, strict=True):
        table = expected_logprobs(reference, ids)
        wanted = [table[t, id].item() for t, id in enumerate(ids[1:])]
        for found in three:
            assert found.given == pytest.approx(wanted, abs=1e-4)
            assert [row[0][0] for row in found.best] == table.argmax(-1).tolist()


def test_mistakes(server: TestClient, engine: TorchEngine) -> None:
    long = [5] * 256
    assert refused(server, prompt=long)["code"] == "context_length_exceeded"
    assert refused(server, prompt=[*long, 5], max_tokens=0, echo=True)["code"] == "context_length_exceeded"
    assert ask(server, prompt=long, max_tokens=0, echo=True, logprobs=1)["usage"]["prompt_tokens"] == 256
    assert refused(server, prompt=[engine.tokenizer.vocab_size])["param"] == "prompt"
    for prompt in ([], [[]], [[5], []]):
        assert "empty" in refused(server, prompt=prompt)["message"]
    for prompt in (None, 5, [True], [-1], ["a", 5], [["a"]]):
        assert refused(server, prompt=prompt)["type"] == "invalid_request_error"
    assert refused(server, prompt="a", max_tokens=0)["param"] == "max_tokens"
    assert refused(server, prompt="a", logprobs=6)["param"] == "logprobs"
    assert refused(server, prompt=["a"] * 600, n=2)["param"] == "n"
    for name, value in {"suffix": "b", "best_of": 3, "prompt_logprobs": 1, "use_beam_search": True}.items():
        assert refused(server, prompt="a", **{name: value})["code"] == "unsupported_parameter"
    for name, value in {
        "logit_bias": {"99999": 1},
        "presence_penalty": 3,
        "guided_json": "{",
        "stop": ["a"] * 17,
    }.items():
        assert refused(server, prompt="a", **{name: value})["param"] == name


def test_engines_without_weights(client: TestClient, scripted: ScriptedEngine) -> None:
    """They answer, and refuse an echo's log-probabilities; an error inside has no detail."""

    def cannot(sequences: Any, top: int) -> Any:
        raise UserError("這個引擎沒有 logprobs (not supported)", "logprobs", "用別的引擎")

    assert (
        ask(client, prompt="台灣？", max_tokens=300)["choices"][0]["text"] == " " + ANSWER
    )  # no template, no lead to cut
    scripted.prompt_logprobs = cannot  # type: ignore[method-assign]
    assert refused(client, prompt="台灣？", logprobs=1, echo=True)["param"] == "logprobs"
    scripted.fail_after = 2
    assert "secret" not in json.dumps(refused(client, 500, prompt=["台灣？", "玉山？"]))
    streamed = client.post(URL, json={"prompt": "台灣？", "stream": True}).text
    assert "server_error" in streamed
    assert "secret" not in streamed


def test_the_request_of_a_client_that_left_ends(tiny_tokenizer: ChatTokenizer, database: Path) -> None:
    slow = ScriptedEngine(tiny_tokenizer, lambda prompt: ANSWER, delay_s=0.1)
    body = {"prompt": ["玉山？", "台灣？"], "max_tokens": 300}
    with running(slow, database) as address:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(address + URL, timeout=0.5, json=body)
        assert slow.cancelled.wait(5)
        slow.cancelled.clear()
        with httpx.stream("POST", address + URL, json={**body, "stream": True}) as response:
            assert next(response.iter_lines()).startswith("data: ")
        assert slow.cancelled.wait(5)


def test_openais_own_client(engine: TorchEngine, tmp_path: Path) -> None:
    """What `openai` makes of our answers, whole and streamed."""
    openai = pytest.importorskip("openai")
    keep = type("Shared", (), {"__getattr__": lambda self, name: getattr(engine, name), "close": lambda self: None})()
    with (
        running(keep, tmp_path / "r.db") as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client,
    ):
        body = {"model": "any", "prompt": TEXTS[:2], "max_tokens": 6, "temperature": 0, "echo": True}
        whole = client.completions.create(**body, logprobs=2)
        answers = client.completions.create(**{**body, "echo": False}, logprobs=2)
        type(answers).model_validate(answers.model_dump())  # with echo the first numbers are null, as OpenAI's were
        assert [choice.text[: len(text)] for choice, text in zip(whole.choices, TEXTS, strict=False)] == TEXTS[:2]
        assert len(whole.choices[0].logprobs.token_logprobs) == len(whole.choices[0].logprobs.text_offset)
        parts = ["", ""]
        for chunk in client.completions.create(**body, stream=True):
            for choice in chunk.choices:
                parts[choice.index] += choice.text
        assert parts == [choice.text for choice in whole.choices]
        with pytest.raises(openai.BadRequestError, match="context"):
            client.completions.create(model="any", prompt="山" * 900)


def test_only_answers_are_counted(server: TestClient) -> None:
    def counted() -> float:
        lines = server.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("twllm_answers_total"))

    before = counted()
    ask(server, prompt=TEXTS, max_tokens=1, logprobs=1, echo=True, **GREEDY)
    assert counted() == before
    ask(server, prompt=TEXTS, max_tokens=4, **GREEDY)
    assert counted() == before + 3


def test_tokenizer_routes(server: TestClient, engine: TorchEngine) -> None:
    tokenizer, text = engine.tokenizer, TEXTS[2]
    info = server.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"]) == ("<s>", "</s>")
    assert info["chat_template"] == tokenizer.template
    plain = server.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    assert plain["tokens"] == tokenizer.encode(text)
    assert plain["count"] == len(plain["tokens"])
    assert server.post("/tokenize", json={"prompt": "</s>", "add_special_tokens": False}).json()["tokens"] == [
        tokenizer.eos_id
    ]
    assert server.post("/tokenize", json={"prompt": text}).json()["tokens"] == [tokenizer.bos_id, *plain["tokens"]]
    chat = server.post("/tokenize", json={"messages": [{"role": "user", "content": text}]}).json()["tokens"]
    assert chat == tokenizer.encode_chat([{"role": "user", "content": text}], add_generation_prompt=True).ids
    tgi = server.post("/tokenize", json={"inputs": text}).json()
    assert [token["id"] for token in tgi] == [tokenizer.bos_id, *plain["tokens"]]
    assert "".join(text[token["start"] : token["stop"]] for token in tgi) == text
    assert server.post("/detokenize", json={"tokens": plain["tokens"]}).json() == {"prompt": text}
    assert server.post("/detokenize", json={"tokens": [99999]}).status_code == 400
    for body in ({}, {"prompt": "a", "inputs": "b"}):
        assert server.post("/tokenize", json=body).status_code == 400


def test_logprobs_are_finite_json(engine: TorchEngine, server: TestClient) -> None:
    """A vocabulary entry that cannot come (minus infinity) is told as -9999."""
    head = engine.model.lm_head
    handle = head.register_forward_hook(lambda module, args, out: out.index_fill(-1, torch.tensor([9]), -math.inf))
    try:
        answer = ask(server, prompt=[[5, 9, 7]], max_tokens=1, echo=True, logprobs=1, **GREEDY)
        assert answer["choices"][0]["logprobs"]["token_logprobs"][1] == -9999.0
    finally:
        handle.remove()


def test_the_new_fields(server: TestClient, engine: TorchEngine) -> None:
    """A format, a bias and penalties on raw prompts; log-probabilities stay the model's own."""
    body = {"prompt": TEXTS[1], "max_tokens": 40, **GREEDY}
    assert ask(server, **body, guided_choice=["三千", "四千"])["choices"][0]["text"] in ("三千", "四千")
    text = ask(
        server,
        **body,
        response_format={
            "type": "json_object",
            "schema": {"type": "object", "properties": {}, "additionalProperties": False},
        },
    )["choices"][0]["text"]
    assert json.loads(text) == {}
    id = engine.tokenizer.encode("玉山")[0]
    free, forced = (
        ask(server, **body | {"max_tokens": 1}, logprobs=5, **more)["choices"][0]
        for more in ({}, {"logit_bias": {str(id): 100}})
    )
    assert forced["text"] == engine.tokenizer.decode([id])
    best = dict(free["logprobs"]["top_logprobs"][0])
    shown = forced["logprobs"]["top_logprobs"][0]
    assert {name: shown[name] for name in best} == pytest.approx(best, abs=1e-4)
    assert refused(server, **body, guided_regex="(")["message"]
