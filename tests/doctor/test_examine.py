"""Each of a dozen servers with one fault: the doctor names that fault and no other."""

from pathlib import Path

import pytest

from tests.doctor.conftest import ANSWERS, Fault, fake_server
from twllm.doctor.examine import examine, make_plan, reference_server
from twllm.doctor.probe import QUESTION, Server
from twllm.errors import UserError
from twllm.tokens.template import load_template

V2 = load_template("taiwan-llm-v2")
SYSTEM = V2[V2.index("你是") : V2.index("'", V2.index("你是"))]
FAULTS = {
    "another template": (
        Fault(template=load_template("chatml").replace("<|im_start|>", "").replace("<|im_end|>", "")),
        "template",
    ),
    "a template of the same length": (Fault(template=V2.replace("USER: ", "USER，")), "template"),
    "no default system text": (Fault(template=V2.replace(SYSTEM, "")), "system"),
    "another default system text": (Fault(template=V2.replace(SYSTEM, SYSTEM[::-1])), "system"),
    "system message thrown away": (Fault(drop_system=True), "system"),
    "double BOS": (Fault(bos=2), "bos"),
    "no BOS": (Fault(bos=0), "bos"),
    "typed control tokens count": (Fault(parse_controls=True), "injection"),
    "end token unknown": (Fault(no_end=True), "end_token"),
    "one stop string too many": (Fault(extra_stop="，"), "end_token"),
    "samples by default": (Fault(temperature=2.0), "sampling"),
    "repetition penalty by default": (Fault(penalty=8.0), "sampling"),
    "temperature 0 ignored": (Fault(always_sample=True), "temperature"),
    "quantised": (Fault(weights="int8"), "precision"),
    "other weights": (Fault(weights="other"), "weights"),
    "short context": (Fault(context=256), "context"),
    "answers cut short": (Fault(max_tokens=8), "max_tokens"),
    "characters cut in the stream": (Fault(cut_stream=True), "stream"),
    "stop strings ignored": (Fault(ignore_stop=True), "stop"),
    "stop strings kept": (Fault(keep_stop=True), "stop"),
    "leading space": (Fault(lead=" "), "spaces"),
    "another tokenizer": (Fault(normalise=True), "tokenizer"),
}


def named(url: str, reference: str) -> set[str]:
    return {f.kind for f in examine(url, reference) if f.level in ("fault", "warning")}


def test_the_demo_gives_its_answers(right: str) -> None:
    server = Server(right)
    answer = server.ask([{"role": "user", "content": QUESTION}], temperature=0)
    server.close()
    assert answer is not None and answer.text == ANSWERS["plain"] and answer.finish == "stop"


def test_the_plan_holds_what_the_reference_tells(right: str) -> None:
    with reference_server(right) as server:
        plan = make_plan(server)
    assert plan.system == SYSTEM and plan.controls == ("<s>", "</s>")
    assert plan.prompt.startswith("<s>") and QUESTION in plan.prompt and len(plan.answer_ids) > 5


@pytest.mark.parametrize("fault", FAULTS)
def test_names_the_fault(fault: str, demo: Path, right: str) -> None:
    kind = FAULTS[fault][1]
    with fake_server(demo, FAULTS[fault][0]) as url:
        assert named(url, right) == {kind}


def test_a_faithful_copy_is_healthy(demo: Path, right: str) -> None:
    with fake_server(demo, Fault()) as url:
        assert named(url, right) == set()


@pytest.mark.parametrize(
    "fault",
    [
        "another template",
        "no default system text",
        "double BOS",
        "end token unknown",
        "samples by default",
        "other weights",
    ],
)
def test_names_the_fault_of_a_server_that_tells_nothing(fault: str, demo: Path, right: str) -> None:
    import dataclasses

    with fake_server(demo, dataclasses.replace(FAULTS[fault][0], reticent=True)) as url:
        assert named(url, right) == {FAULTS[fault][1]}


def test_without_a_reference_it_finds_what_no_server_may_do(demo: Path) -> None:
    for fault in ("temperature 0 ignored", "characters cut in the stream"):
        with fake_server(demo, FAULTS[fault][0]) as url:
            assert {f.kind for f in examine(url, None) if f.level == "fault"} == {FAULTS[fault][1]}


def test_nobody_there() -> None:
    with pytest.raises(UserError, match="cannot reach"):
        examine("http://127.0.0.1:9", None)
