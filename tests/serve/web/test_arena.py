"""The arena through the real app: streams, hidden names, one vote, several gateways, the leaderboard; and comparisons."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serve.conftest import ScriptedEngine
from twllm.feedback.battles import Battles
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.operation.service import Model, ServeSettings, Service
from twllm.serve.web.arena import ASKS_NAME, draw, known_of
from twllm.tokens.tokenizer import ChatTokenizer

USER = "ab" * 16
NAMES = ["taiwan-llm-7b-v2", "breeze-hidden", "third-model"]
SAYS = {NAMES[0]: "台北是首都。", NAMES[1]: "首都是臺北！", NAMES[2]: "是臺北。"}
Make = Callable[..., Any]


@pytest.fixture
def make_client(tiny_tokenizer: ChatTokenizer, database: Path) -> Make:
    """An app on engines that say what SAYS tells, or `says`; further calls are further gateways of one database."""

    @contextmanager
    def make(names: list[str] = NAMES[:2], says: dict[str, str] | None = None, **settings: Any) -> Iterator[TestClient]:
        models, engines = {}, []
        for number, name in enumerate(names):
            engine = ScriptedEngine(tiny_tokenizer, lambda prompt, name=name: (says or SAYS)[name])  # type: ignore[misc]
            engine.model_fingerprint = f"fingerprint{number}"
            models[name] = Model(name, engine)
            engines.append(engine)
        service = Service(models, RatingStore(database), ServeSettings(**settings))
        with TestClient(create_app(service), raise_server_exceptions=False) as client:
            client.service, client.engines = service, engines  # type: ignore[attr-defined]
            yield client

    return make


def events(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def texts(found: list[dict[str, Any]], key: str = "side") -> dict[str, str]:
    sides = {event[key] for event in found if key in event}
    return {side: "".join(event.get("delta", "") for event in found if event.get(key) == side) for side in sides}


def begin(client: TestClient, prompt: str = "首都在哪裡？", user: str = USER) -> tuple[str, list[dict[str, Any]]]:
    found = events(client.post("/api/arena/battle", json={"prompt": prompt, "user": user}))
    return found[0]["battle"], found


def vote(client: TestClient, battle: str, choice: str = "a", user: str = USER) -> Any:
    return client.post("/api/arena/vote", json={"battle": battle, "vote": choice, "user": user, "consent": True})


def test_a_battle_a_further_turn_and_a_vote(make_client: Make) -> None:
    with make_client() as client:
        battle, found = begin(client)
        assert found[0] == {"battle": battle, "turn": 1} and re.fullmatch("[0-9a-f]{32}", battle)
        assert set(texts(found).values()) == {SAYS[name] for name in NAMES[:2]}
        assert [e["finish_reason"] for e in found if e.get("done")] == ["stop", "stop"]
        more = events(client.post(f"/api/arena/battle/{battle}/more", json={"prompt": "再說一次", "user": USER}))
        assert more[0] == {"battle": battle, "turn": 2} and texts(more) == texts(found)  # sides do not change
        prompts = [engine.prompts[-1] for engine in client.engines]
        assert all("首都在哪裡" in p and "再說一次" in p for p in prompts)
        answer = vote(client, battle, "b").json()
        assert answer["stored"] and answer["counted"]
        assert {side: SAYS[answer[side]["name"]] for side in "ab"} == texts(found)
        again = vote(client, battle, "a")
        assert again.status_code == 409 and again.json()["error"]["code"] == "voted"
        late = client.post(f"/api/arena/battle/{battle}/more", json={"prompt": "再", "user": USER})
        assert late.status_code == 409
        (stored,) = Battles(client.service.store).votes()
        assert (stored.vote, stored.consent, stored.flag) == ("b", True, "")
        assert [m["content"] for m in stored.chats["a"]] == [
            "首都在哪裡？",
            texts(found)["a"],
            "再說一次",
            texts(found)["a"],
        ]
        board = client.get("/api/leaderboard").json()
        assert board["models"][0]["name"] == answer["b"]["name"] and board["battles"] == 1 and board["updated"]
        assert {"rating", "low", "high", "battles", "wins", "losses", "ties"} <= set(board["models"][0])


def test_nothing_tells_the_models_before_the_vote(make_client: Make) -> None:
    """No name, no fingerprint, no tokenizer or template in any byte or header; ids and order say nothing either."""
    with make_client() as client:
        seen, first = "", Counter[str]()
        for number in range(30):
            response = client.post("/api/arena/battle", json={"prompt": "首都在哪裡？", "user": USER})
            battle, found = events(response)[0]["battle"], events(response)
            refused = client.post("/api/arena/vote", json={"battle": battle, "vote": "x"})
            seen += response.text + refused.text + json.dumps(dict(response.headers))
            seen += client.get("/api/leaderboard").text if number == 0 else ""
            first[texts(found)["a"]] += 1
        for name, model in client.service.models.items():
            hidden = {name, model.engine.model_fingerprint, model.engine.tokenizer.template_fingerprint}
            assert not any(word in seen for word in hidden)
        assert set(re.findall(r'"(\w+)":', seen)) <= {
            "battle", "turn", "side", "delta", "done", "finish_reason", "error", "message", "type", "param", "code",
            "models", "battles", "updated", "method", "error_type",
        } | {"content", "length"}  # fmt: skip
        assert min(first.values()) >= 4  # each model is side a sometimes: the chance of less in 30 is below 1 in 20,000


def test_an_engine_that_fails_tells_nothing_and_does_not_stop_the_other(make_client: Make) -> None:
    with make_client() as client:
        client.engines[0].fail_after = 2
        battle, found = begin(client)
        (failed,) = [event for event in found if "error" in event]
        assert "secret" not in json.dumps(found) and not any(name in failed["error"]["message"] for name in NAMES)
        assert [event["finish_reason"] for event in found if event.get("done")] == ["stop"]
        assert vote(client, battle).json()["error"]["code"] == "unfinished"
        assert client.post(f"/api/arena/battle/{battle}/more", json={"prompt": "再", "user": USER}).status_code == 409


def test_a_prompt_that_does_not_fit_is_refused_without_telling_for_whom(make_client: Make) -> None:
    with make_client() as client:
        response = client.post("/api/arena/battle", json={"prompt": "長" * 3000, "user": USER})
        assert response.status_code == 400 and not re.search(r"\d{3}", response.json()["error"]["message"])
        assert not Battles(client.service.store).counts()


@pytest.mark.parametrize(
    ("prompt", "says", "counted"),
    [
        ("首都在哪裡？", None, True),
        ("你是什麼模型？", None, False),
        ("Which model are you?", None, False),
        ("介紹", {NAMES[0]: "我是 Taiwan-LLM，很高興認識你。", NAMES[1]: "你好。"}, False),
        ("介紹", {NAMES[0]: "Breeze Hidden 是模型。", NAMES[1]: "你好。"}, False),
        ("介紹臺灣", {NAMES[0]: "Taiwan is an island; 我愛台灣。", NAMES[1]: "我是人工智慧助理。"}, True),
    ],
)  # fmt: skip
def test_a_vote_after_a_name_was_asked_or_heard_does_not_count(
    make_client: Make, prompt: str, says: dict[str, str] | None, counted: bool
) -> None:
    with make_client(says=says) as client:
        battle, _ = begin(client, prompt)
        answer = vote(client, battle).json()
        assert (answer["stored"], answer["counted"]) == (True, counted)
        assert client.get("/api/leaderboard").json()["battles"] == int(counted)


@pytest.mark.parametrize("text", ["玉山有多高？", "你好嗎", "這是誰的名字", "你覺得哪個模型好吃", "who are they"])
def test_other_questions_are_no_name_questions(text: str) -> None:
    assert not ASKS_NAME.search(text)


def test_battles_belong_to_their_person_and_go_on_at_another_gateway(make_client: Make) -> None:
    with make_client() as one, make_client() as two:
        battle, found = begin(one)
        for body in ({"user": "cd" * 16}, {}):
            assert two.post("/api/arena/vote", json={"battle": battle, "vote": "a", **body}).status_code == 404
        more = events(two.post(f"/api/arena/battle/{battle}/more", json={"prompt": "再", "user": USER}))
        assert more[0]["turn"] == 2 and texts(more) == texts(found)
        assert vote(one, battle).json()["stored"]
        assert vote(two, battle).status_code == 409
        assert vote(one, "0" * 32).status_code == 404
        erased = two.request("DELETE", "/api/ratings", json={"user": USER}).json()
        assert erased == {"deleted": 1} and one.get("/api/leaderboard").json()["models"] == []


def test_of_many_votes_at_once_one_counts(make_client: Make) -> None:
    with make_client() as client:
        battle, _ = begin(client)
        codes: list[int] = []
        threads = [threading.Thread(target=lambda: codes.append(vote(client, battle).status_code)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(codes) == [200] + [409] * 7


def test_pairs_are_balanced(make_client: Make) -> None:
    with make_client(NAMES) as client:
        battles = Battles(client.service.store)
        for _ in range(60):
            pair = draw(client.service, battles)
            battles.begin("u", {side: known_of(model) for side, model in pair.items()})
        met = battles.counts()
        assert (
            len(met) == 3 and sum(met.values()) == 60 and min(met.values()) >= 13
        )  # uniform draws: 13 or less is common


def test_no_arena_with_one_model_or_switched_off(make_client: Make) -> None:
    for arguments in ({"names": NAMES[:1]}, {"arena": False}):
        with make_client(**arguments) as client:
            refused = client.post("/api/arena/battle", json={"prompt": "嗨", "user": USER})
            assert refused.status_code == 404 and refused.json()["error"]["code"] == "no_arena"
            assert client.get("/api/leaderboard").json() | {"method": ""} == {
                "models": [], "battles": 0, "updated": None, "method": ""
            }  # fmt: skip


def test_compare_streams_each_model_under_its_name(make_client: Make) -> None:
    body = {
        "messages": [{"role": "user", "content": "首都？"}],
        "models": NAMES,
        "sampling": {"temperature": 0.5, "max_tokens": 50},
    }
    with make_client(NAMES) as client:
        found = events(client.post("/api/compare", json=body))
        assert texts(found, "model") == SAYS
        assert sum(bool(event.get("done")) for event in found) == 3
        for change in ({"models": NAMES[:1]}, {"models": [NAMES[0]] * 2}, {"messages": []}, {"sampling": {"top_p": 7}}):
            assert client.post("/api/compare", json={**body, **change}).status_code == 400
        assert client.post("/api/compare", json={**body, "models": [NAMES[0], "nope"]}).status_code == 404


def test_culture_questions_are_none_of_the_held_out_benchmark(make_client: Make) -> None:
    from twllm import data

    with make_client() as client:
        found = client.get("/api/culture").json()
    topics = {topic["id"] for topic in found["topics"]}
    assert len(found["questions"]) >= 36 and {q["topic"] for q in found["questions"]} == topics
    assert len({q["id"] for q in found["questions"]}) == len(found["questions"]) and all(
        q["question"] for q in found["questions"]
    )
    folder = data.resolve("twllm:culture/untaught")
    held_out = {
        json.loads(line)["question"] for file in folder.iterdir() for line in file.read_text("utf-8").splitlines()
    }
    assert not held_out & {q["question"] for q in found["questions"]}
