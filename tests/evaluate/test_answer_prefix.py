"""What an answer is made to begin with: continued by a local model, put behind the question for a server."""

import json
from pathlib import Path

import httpx

from twllm.evaluate.model import HttpModel, LocalModel
from twllm.evaluate.runner import evaluate_model
from twllm.evaluate.task import make_item, tasks

ITEM = make_item(tasks()["drcd"], "0", "多高？", ["3952"], context="玉山 3952 公尺")


def test_local_model_goes_on_with_it(tiny_checkpoint: Path) -> None:
    model = LocalModel(tiny_checkpoint, 4)
    tokenizer = model._tokenizer
    ids = model._encode(ITEM.messages)
    asked = tokenizer.encode_chat(ITEM.messages[:1], add_generation_prompt=True).ids
    assert ids[: len(asked)] == asked
    assert tokenizer.decode(ids[len(asked) :]) == " 答案： "
    assert ids.count(tokenizer.bos_id) == 1
    assert tokenizer.eos_id not in ids
    assert model._encode(ITEM.messages[:1]) == asked


def test_server_is_asked_in_one_message() -> None:
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        bodies.append(json.loads(request.content))
        return httpx.Response(200, json={"choices": [{"message": {"content": "3952"}}]})

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        assert HttpModel("http://x", 8, client)([ITEM.messages]) == ["3952"]
    (message,) = bodies[0]["messages"]
    assert message == {"role": "user", "content": ITEM.prompt + "答案："}


def test_a_run_names_what_its_group_left_out(tiny_checkpoint: Path, tceval: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    result = evaluate_model(str(tiny_checkpoint), suites=["tceval-strict"], data=tceval, out=out, max_new_tokens=2)
    assert list(result["meta"]["skipped"]) == ["fgc@strict", "imdb@strict", "xsum@strict"]
    assert result["ttqa@strict"]["task"]["protocol"] == "strict"
    assert result["tmmlu@strict"]["task"]["edition"] == "tmmlu (2 subjects, 3 questions)"
