"""Whole runs of self-play against a local server with planted faults; replay, resume, budget."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.synth.conftest import endpoint, everything, read, rows_of
from tests.synth.fault_server import FaultServer, Reply
from tests.synth.planted import FAULTS, Dialogues, planted_in
from twllm import data
from twllm.errors import UserError
from twllm.synth.config import BudgetConfig, SelfplayConfig, make
from twllm.synth.endpoint import worst_case
from twllm.synth.prompts import load_prompts, topic_leaves
from twllm.synth.run import Session, make_rows
from twllm.synth.selfplay import Selfplay, plan_of, request_seed
from twllm.tokens.conversation import read_conversations


def config(num: int, **more: Any) -> SelfplayConfig:
    return make(SelfplayConfig, {"num_dialogues": num, "max_turns": 3, **more})


def play(
    out: Path,
    url: str,
    settings: SelfplayConfig,
    budget: BudgetConfig | None = None,
    timeout_s: float = 5.0,
    **more: Any,
) -> dict[str, Any]:
    session = Session(out, endpoint(url, timeout_s=timeout_s), budget or BudgetConfig(), **more)
    return make_rows(Selfplay(settings, load_prompts(), "m"), session)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FaultServer, dict[str, Any]]:
    """200 dialogues, every second with a fault; the server is gone when the tests look."""
    out = tmp_path_factory.mktemp("full") / "out"
    settings = config(200)
    with FaultServer(Dialogues(settings), slow_s=6.0) as server:
        manifest = play(out, server.url, settings)
    return out, server, manifest


def test_planted_faults_are_caught_and_good_dialogues_kept(full: tuple[Path, FaultServer, dict[str, Any]]) -> None:
    out, _, manifest = full
    reasons = {row["id"]: row["reason"] for row in read(out / "dropped.jsonl")}
    wrong = Counter[str]()
    for number in range(200):
        name = planted_in(number)
        expected = FAULTS[name].reasons if name else ("",)
        wrong[name] += reasons.get(f"selfplay-0-{number:06d}", "") not in expected
    false_drops = wrong.pop("")
    assert set(FAULTS) == {planted_in(number) for number in range(200)} - {""}
    assert wrong.total() <= 5, wrong  # of 100 planted
    assert false_drops <= 2, wrong  # of 100 good
    assert manifest["counts"]["kept"] + manifest["counts"]["dropped"] == 200
    assert manifest["reasons"] == dict(sorted(Counter(reasons.values()).items()))


def test_rows_say_where_they_come_from_and_can_be_read(full: tuple[Path, FaultServer, dict[str, Any]]) -> None:
    out, _, manifest = full
    kept = list(read_conversations(out / "conversations.jsonl"))
    assert len(kept) == manifest["counts"]["kept"]
    prompts = load_prompts()
    leaves = topic_leaves((), prompts.topics.skip)
    for conversation in kept:
        roles = [message["role"] for message in conversation.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert 2 <= len(roles) // 2 <= 3
        assert conversation.source == "twllm synth selfplay: m"
        assert conversation.license.startswith("未指明")
        assert conversation.metadata["topic"] in leaves
        assert conversation.metadata["persona"] in prompts.personas.names
    for row in read(out / "dropped.jsonl"):
        assert row["detail"]
        assert row["row"]["id"] == row["id"]


def test_nothing_is_paid_twice_and_the_replay_is_the_same(full: tuple[Path, FaultServer, dict[str, Any]]) -> None:
    out, server, manifest = full
    assert set(server.answered.values()) <= {0, 1}
    assert manifest["answers"] == server.answered.total()
    size = sum(len(message["content"]) for body in server.bodies for message in body["messages"])
    assert 0 < manifest["tokens"]["in"] <= size
    before = everything(out)
    play(out, server.url, config(200))  # the server is gone
    assert everything(out) == before
    play(out, server.url, config(200), offline=True)
    assert everything(out) == before


def test_failures_can_be_tried_again(tmp_path: Path) -> None:
    settings = config(4, seed=3)
    dialogues = Dialogues(settings, ("dead",))
    with FaultServer(dialogues) as server:
        assert play(tmp_path / "out", server.url, settings)["reasons"] == {"endpoint": 2}
        dialogues.names = ("http_500",)
        assert play(tmp_path / "out", server.url, settings)["reasons"] == {"endpoint": 2}
        num_seen = server.seen.total()
        assert play(tmp_path / "out", server.url, settings, retry_failed=True)["reasons"] == {}
        assert server.seen.total() > num_seen
        assert set(server.answered.values()) <= {0, 1}


def test_budget_stops_before_it_is_exceeded_and_goes_on(tmp_path: Path) -> None:
    settings = config(24, seed=1)
    names = ("meta", "fence", "half")
    patient = 60.0  # an answer that came too late for a busy machine would count at its worst
    with FaultServer(Dialogues(settings, names)) as server:
        whole = play(tmp_path / "whole", server.url, settings, timeout_s=patient)
    total = whole["tokens"]["in"] + whole["tokens"]["out"]
    worst = max(sum(worst_case(body)) for body in server.bodies)
    budget = BudgetConfig(max_tokens_total=total * 2 // 3)
    with FaultServer(Dialogues(settings, names)) as server:
        part = play(tmp_path / "part", server.url, settings, budget, patient)
        assert (part["complete"], part["stopped_by"]) == (False, "budget")
        assert 0 < part["counts"]["unfinished"] < 24
        assert part["counts"]["kept"] > 0
        paid = part["tokens"]["in"] + part["tokens"]["out"]
        assert total * 2 // 3 - worst < paid <= total * 2 // 3
        # Places that requests in flight held back are free again, so a small request more may fit in.
        again = play(tmp_path / "part", server.url, settings, budget, patient)
        assert paid <= again["tokens"]["in"] + again["tokens"]["out"] <= total * 2 // 3
        assert (again["complete"], again["stopped_by"]) == (False, "budget")
        assert play(tmp_path / "part", server.url, settings, timeout_s=patient)["complete"]
        assert set(server.answered.values()) == {1}
    assert rows_of(tmp_path / "part") == rows_of(tmp_path / "whole")


def test_offline_leaves_out_what_was_not_paid_for(tmp_path: Path) -> None:
    with FaultServer(Dialogues(config(4), ("meta",))) as server:
        play(tmp_path / "out", server.url, config(4))
        manifest = play(tmp_path / "out", server.url, config(9), offline=True)
    assert manifest["counts"]["unfinished"] == 5
    assert manifest["counts"]["kept"] + manifest["counts"]["dropped"] == 4


def test_the_plan_depends_on_seed_and_number_alone() -> None:
    topics = topic_leaves((), load_prompts().topics.skip)
    personas = load_prompts().personas.names
    plans = [plan_of(number, config(10), topics, personas) for number in range(2 * len(topics))]
    assert plans == [plan_of(number, config(500), topics, personas) for number in range(2 * len(topics))]
    assert Counter(plan.topic for plan in plans) == dict.fromkeys(topics, 2)  # every topic in turn
    assert [plan.topic for plan in plans[: len(topics)]] != [plan.topic for plan in plans[len(topics) :]]
    assert {plan.num_turns for plan in plans} == {2, 3}
    assert len({plan.persona for plan in plans}) == len(personas)
    assert plans[5] != plan_of(5, config(10, seed=1), topics, personas)
    seeds = {
        request_seed(0, number, turn, role)
        for number in range(50)
        for turn in range(3)
        for role in ("user", "assistant")
    }
    assert len(seeds) == 300


def test_both_roles_see_their_own_side(tmp_path: Path) -> None:
    settings = config(2, min_turns=2, max_turns=2, user_model="user-model", topics=("程式/Python",))
    with FaultServer(Dialogues(settings, ("http_500",))) as server:
        play(tmp_path / "out", server.url, settings)
    row = read(tmp_path / "out" / "conversations.jsonl")[0]
    mine = [body for body in server.bodies if body["seed"] == request_seed(0, 0, 1, "user")]
    (asked,) = mine
    assert asked["model"] == "user-model"
    assert [message["role"] for message in asked["messages"]] == ["system", "user", "assistant", "user"]
    assert "程式/Python" in asked["messages"][0]["content"]
    assert row["persona"] in asked["messages"][0]["content"]
    assert [message["content"] for message in asked["messages"][2:]] == [
        message["content"] for message in row["messages"][:2]
    ]
    (answered,) = [body for body in server.bodies if body["seed"] == request_seed(0, 0, 1, "assistant")]
    assert answered["model"] == "m"
    assert answered["messages"][1:] == row["messages"][:3]


def test_a_fault_ends_its_dialogue_at_once(tmp_path: Path) -> None:
    settings = config(2, min_turns=3)
    with FaultServer(lambda body, before: Reply("作為一個AI，我沒有意見。")) as server:
        manifest = play(tmp_path / "out", server.url, settings)
    assert manifest["reasons"] == {"meta": 2}
    assert server.seen.total() == 2


def test_mistakes_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(lambda *_: Reply("好")) as server:
        with pytest.raises(UserError, match="話題樹") as error:
            Selfplay(config(1, topics=("飲食/小喫",)), load_prompts(), "m")
        assert "小吃" in str(error.value)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("不要蓋掉", encoding="utf-8")
        with pytest.raises(UserError, match="不覆蓋"):
            play(tmp_path / "mine", server.url, config(1))
        with pytest.raises(UserError, match="prices"):
            play(tmp_path / "out", server.url, config(1), BudgetConfig(max_cost=1.0))
        with pytest.raises(UserError, match="not set"):
            make_rows(
                Selfplay(config(1), load_prompts(), "m"),
                Session(tmp_path / "out", endpoint(server.url, api_key_env="NO_SUCH_KEY")),
            )
        with pytest.raises(UserError, match="max_leaks"):
            make(SelfplayConfig, {}, ["filters.max_leak=3"])
        with pytest.raises(UserError, match="num_dialogues"):
            make(SelfplayConfig, {"num_dialogues": 0})
        assert server.seen.total() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[selfplay]\nopening = "換你"\n', encoding="utf-8")
    own, shipped = load_prompts(file), load_prompts()
    assert own.selfplay.opening == "換你"
    assert own.selfplay.user == shipped.selfplay.user
    assert own.fingerprint != shipped.fingerprint
    for text, word in (('[selfplay]\nuser = "你好"', "{persona}"), ("[selfply]", "selfplay"), ("[", "TOML"), ('[patterns]\nmeta = ["("]', "meta"), ("[personas]\nnames = []", "personas")):  # fmt: skip
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as error:
            load_prompts(file)
        assert word in str(error.value)
    with pytest.raises(UserError):
        load_prompts(tmp_path / "nobody.toml")


def test_topic_rules_name_topics_of_the_tree() -> None:
    prompts = load_prompts()
    named = [topic for rule in prompts.topics.model_dump().values() for topic in rule]
    assert topic_leaves(named, ())  # raises for one that the tree does not have
    assert (data.ROOT / "topics.toml").is_file()
    assert json.dumps(prompts.model_dump(mode="json"), ensure_ascii=False).count("{topic}") == 1
