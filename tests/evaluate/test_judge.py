"""Judges: a real local endpoint that follows a script (always the first, always the longer, garbage, dying, contradicting)."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.synth.fault_server import FaultServer, Reply
from twllm.cli import app
from twllm.errors import UserError
from twllm.evaluate.judge import load_prompts, read_rating, read_verdict
from twllm.evaluate.kinds import Options, Session, find_kind
from twllm.evaluate.model import Messages, Model
from twllm.evaluate.report_judge import judge_lines
from twllm.evaluate.responses import ResponseFile
from twllm.evaluate.runner import evaluate_model
from twllm.evaluate.sources import read_items
from twllm.evaluate.task import Item, tasks
from twllm.evaluate.turns import AnswerFile
from twllm.evaluate.verdicts import mean_rating, outcome_of, pair_score

OURS = {"1": "短。", "2": "這個回答寫得長得多，前因後果都說了。", "3": "print('玉山')  # 加上說明", "4": "三"}
THEIRS = {"1": "這個回答比較長一點。", "2": "短短的。", "3": "print('玉山')", "4": "答案是三，因為一加二。"}
FAST = ["endpoint.backoff_s=0.01", "endpoint.max_attempts=2", "endpoint.concurrency=2"]


def write(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def published(file: Path, answers: dict[str, str]) -> Path:
    return write(file, [{"question_id": int(id), "choices": [{"turns": [text]}]} for id, text in answers.items()])


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Four questions in zh_tw_bench's layout: two without and two with a reference."""
    asked = [("generic", "玉山在哪裡？"), ("generic", "怎麼存錢？"), ("coding", "印出玉山。"), ("math", "一加二？")]
    rows = [
        {"index": at, "question_id": at + 1, "category": name, "turns": [text], "reference": None}
        for at, (name, text) in enumerate(asked)
    ]
    write(tmp_path / "bench/question.jsonl", rows)
    gold = [{"question_id": id, "choices": [{"turns": [f"標準解 {id}"]}]} for id in (3, 4)]
    write(tmp_path / "bench/reference_answer/gpt.jsonl", gold)
    return tmp_path / "bench"


@pytest.fixture
def two_turns(tmp_path: Path) -> Path:
    """Three questions of two turns in MT-Bench-TW's layout, one of them with references."""
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["寫一句玉山。", "再短一點。"]},
        {"question_id": 82, "category": "writing", "turns": ["寫一句淡水。", "換個說法。"]},
        {"question_id": 111, "category": "math", "turns": ["一加二？", "再加四？"]},
    ]
    write(tmp_path / "mt/question.jsonl", rows)
    gold = [{"question_id": 111, "choices": [{"turns": ["等於三", "等於七"]}]}]
    write(tmp_path / "mt/reference_answer/human.jsonl", gold)
    return tmp_path / "mt"


class Scripted:
    """Answers in the model's place: `answers` maps the last message to an answer. Counts what it was asked."""

    fingerprint, template_fingerprint = "model", "template"

    def __init__(self, answers: dict[str, str], budget: int = 1000) -> None:
        self.answers, self.budget, self.asked = answers, budget, list[Messages]()

    def __call__(self, chats: Sequence[Messages]) -> list[str | None]:
        if len(self.asked) + len(chats) > self.budget:
            raise KeyboardInterrupt
        self.asked += chats
        return [self.answers.get(chat[-1]["content"], "好") for chat in chats]


def more(server: FaultServer | None, **options: Any) -> dict[str, Any]:
    return {"judge_url": server.url if server else "", "judge_model": "裁判", "judge_set": FAST, **options}


def judge(name: str, model: Model, data: Path, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    task = tasks()[name]
    session = Session(model, ResponseFile(out / "r.responses.jsonl"), Options(data=data, more=options, batch_size=1))
    return find_kind(task.kind)(task, read_items(task, "", data), session)


def pair(server: FaultServer, bench: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Our published answers against theirs."""
    ours = AnswerFile(published(out / "ours.jsonl", OURS))
    theirs = published(out / "theirs.jsonl", THEIRS)
    return judge("zh_tw_bench", ours, bench, out, more(server, against=str(theirs), **options))


def answers_in(body: dict[str, Any]) -> tuple[str, str]:
    """(A's answer, B's answer) in a request."""
    text = body["messages"][1]["content"]
    found = re.findall(r"【助理 [AB] 的回答】\n(.*?)\n【助理 [AB] 的回答結束】", text, re.DOTALL)
    return found[0], found[1]


def ours_is_first(body: dict[str, Any]) -> bool:
    return answers_in(body)[0] in OURS.values()


def longer(body: dict[str, Any], before: int) -> Reply:
    a, b = answers_in(body)
    return Reply(f"比長度。\n[[{'A' if len(a) > len(b) else 'B'}]]")


# -- pairs --------------------------------------------------------------------------------------------------------


def test_judge_that_always_prefers_the_first(bench: Path, tmp_path: Path) -> None:
    with FaultServer(lambda body, before: Reply("第一個好。[[A]]")) as server:
        block = pair(server, bench, tmp_path)
    assert block["counts"] == {"win": 0, "tie": 0, "loss": 0, "inconsistent": 4, "failed": 0}
    assert block["agreement"]["share"] == 0
    assert block["position"]["first"] == {"share": 1.0, "count": 8, "n": 8, "interval": [0.675592, 1.0]}
    assert block["inconsistent"] == {"always_first": 4, "always_second": 0, "tie_in_one_order": 0}
    assert (block["score"], block["n"], block["failures"]) == (0.5, 4, {"total": 0})
    assert {row["outcome"] for row in block["items"]} == {"inconsistent"}
    assert server.answered.total() == 8


def test_judge_that_prefers_the_longer(bench: Path, tmp_path: Path) -> None:
    with FaultServer(longer) as server:
        block = pair(server, bench, tmp_path)
    assert [row["outcome"] for row in block["items"]] == ["loss", "win", "win", "loss"]
    assert (block["score"], block["agreement"]["share"], block["length"]["longer"]["share"]) == (0.5, 1.0, 1.0)
    assert block["position"]["first"]["share"] == 0.5
    assert {name: topic["score"] for name, topic in block["topics"].items()} == {"generic": 0.5, "coding": 1, "math": 0}
    assert block["judge"]["model"] == "裁判"
    assert block["judge"]["temperature"] == 0
    assert block["judge"]["prompts"]["hash"] == load_prompts("judge_pair").hash
    assert block["items"][1]["judge"] == ["比長度。\n[[A]]", "比長度。\n[[B]]"]
    assert {body["temperature"] for body in server.bodies} == {0}
    lines = "\n".join(judge_lines(block))
    assert "| 勝 win | 2/4 | 50.0% |" in lines
    assert "| 兩序一致 agreement | 4/4 | 100.0% |" in lines


def test_references_are_shown_where_the_category_has_them(bench: Path, tmp_path: Path) -> None:
    with FaultServer(longer) as server:
        pair(server, bench, tmp_path)
    shown = [re.findall(r"標準解 (\d)", body["messages"][1]["content"]) for body in server.bodies]
    assert sorted(shown) == [[]] * 4 + [["3"]] * 2 + [["4"]] * 2


def test_orders_that_contradict_each_other(bench: Path, tmp_path: Path) -> None:
    """A win in one order is no win: against a loss (second place twice) as against a tie."""

    def script(body: dict[str, Any], before: int) -> Reply:
        if "印出玉山" in body["messages"][1]["content"]:
            return Reply("[[B]]")
        return Reply("[[A]]" if ours_is_first(body) else "[[C]]")

    with FaultServer(script) as server:
        block = pair(server, bench, tmp_path)
    assert block["counts"]["inconsistent"] == 4
    assert block["inconsistent"] == {"always_first": 0, "always_second": 1, "tie_in_one_order": 3}
    assert block["agreement"]["share"] == 0
    assert (block["score"], block["counts"]["win"]) == (0.5, 0)


def test_ties_are_ties(bench: Path, tmp_path: Path) -> None:
    with FaultServer(lambda body, before: Reply("一樣。[[C]]")) as server:
        block = pair(server, bench, tmp_path)
    assert (block["counts"]["tie"], block["agreement"]["share"], block["score"]) == (4, 1.0, 0.5)
    assert block["length"]["longer"]["n"] == 0


def test_garbage_is_counted_and_is_neither_win_nor_tie(bench: Path, tmp_path: Path) -> None:
    def script(body: dict[str, Any], before: int) -> Reply:
        text = body["messages"][1]["content"]
        if "玉山在哪裡" in text:
            return Reply("A 比較好，[A]，勝者：A" if ours_is_first(body) else "[[B]]")
        if "怎麼存錢" in text:
            return Reply("先看 [[A]]，不過 [[B]] 也行" if ours_is_first(body) else "")
        if "印出玉山" in text:
            return Reply(status=400, raw={"error": {"message": "content_filter"}})
        return Reply("[[A]]" if ours_is_first(body) else "[[B]]")

    with FaultServer(script) as server:
        block = pair(server, bench, tmp_path)
        again = pair(server, bench, tmp_path)
    assert [row["outcome"] for row in block["items"]] == ["failed", "failed", "failed", "win"]
    assert block["failures"] == {"total": 5, "none": 2, "several": 1, "refused": 2}
    assert (block["score"], block["n"], block["asked"], block["agreement"]["n"]) == (1.0, 1, 4, 1)
    assert block["interval"][0] == pytest.approx(0.2065, abs=1e-4)
    assert block["topics_without_verdict"] == ["generic", "coding"]
    assert "content_filter" in block["items"][2]["refused"][0]
    assert again == block
    assert server.seen.total() == 8


def test_nothing_readable_is_no_score(bench: Path, tmp_path: Path) -> None:
    with FaultServer(lambda body, before: Reply("嗯嗯嗯")) as server:
        for _ in range(2):
            with pytest.raises(UserError, match="none 8"):
                pair(server, bench, tmp_path)
    assert server.seen.total() == 8  # paid once


def test_judge_that_dies_half_way(bench: Path, tmp_path: Path) -> None:
    """The run ends with an error; the next asks what is missing, at another address, and gets what an unbroken run gets."""

    def dies(body: dict[str, Any], before: int) -> Reply:
        return longer(body, before) if dying.answered.total() < 3 else Reply(status=503, raw="")

    with FaultServer(dies) as dying, pytest.raises(UserError, match="裁判有 5 個請求沒有回答"):
        pair(dying, bench, tmp_path)
    assert dying.answered.total() == 3
    with pytest.raises(UserError, match="沒有回答"):
        pair(dying, bench, tmp_path)  # the port is closed now
    with FaultServer(longer) as alive:
        block = pair(alive, bench, tmp_path)
    assert alive.answered.total() == 5
    assert not alive.answered.keys() & {key for key, count in dying.answered.items() if count}
    with FaultServer(longer) as server:
        whole = pair(server, bench, tmp_path / "whole")
    block["judge"].pop("endpoint"), whole["judge"].pop("endpoint")
    block["opponent"].pop("name"), whole["opponent"].pop("name")
    assert block == whole


def test_budget_ends_the_run_and_is_raised_later(bench: Path, tmp_path: Path) -> None:
    small = [*FAST, "budget.max_tokens_total=3500", "max_tokens=100"]
    with FaultServer(longer) as server:
        with pytest.raises(UserError, match="預算"):
            pair(server, bench, tmp_path, judge_set=small)
        assert 0 < server.answered.total() < 8
        block = pair(server, bench, tmp_path, judge_set=[*FAST, "max_tokens=100"])
    assert block["n"] == 4
    assert server.answered.total() == 8


def test_against_another_model(bench: Path, tmp_path: Path) -> None:
    """The other model answers over HTTP; its answers have a file of their own, and neither is asked again."""
    model = Scripted({"玉山在哪裡？": "在南投、嘉義、高雄交界。"})
    with FaultServer(lambda body, before: Reply("好")) as other, FaultServer(longer) as server:
        listed = {"data": [{"id": "對手"}]}
        with serving_models(other, listed):
            options = more(server, against=other.url)
            block = judge("zh_tw_bench", model, bench, tmp_path, options)
            assert judge("zh_tw_bench", model, bench, tmp_path, options)["items"] == block["items"]
        assert other.answered.total() == 4
    assert len(model.asked) == 4
    assert block["items"][0]["outcome"] == "win"
    stored = (tmp_path / "r.against.responses.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in stored] == ["1/1", "2/1", "3/1", "4/1"]


class serving_models:
    """Let the fault server answer GET /v1/models too, as HttpModel asks first."""

    def __init__(self, server: FaultServer, value: dict[str, Any]) -> None:
        self.handler, self.value = server._server.RequestHandlerClass, value

    def __enter__(self) -> None:
        value = self.value
        self.handler.do_GET = lambda handler: handler._send(200, value, {})  # type: ignore[attr-defined]

    def __exit__(self, *error: object) -> None:
        del self.handler.do_GET  # type: ignore[attr-defined]


# -- ratings ------------------------------------------------------------------------------------------------------


def rate(body: dict[str, Any], before: int) -> Reply:
    """8 for a first turn, 5 for a second; 2 where a reference is shown."""
    text = body["messages"][1]["content"]
    return Reply(f"評分：[[{2 if '參考答案' in text else 5 if '兩輪對話' in text else 8}]]")


def test_two_turns_rated_one_by_one(two_turns: Path, tmp_path: Path) -> None:
    model = Scripted({"一加二？": "是三", "再加四？": "是七"})
    with FaultServer(rate) as server:
        block = judge("mt_bench_tw", model, two_turns, tmp_path, more(server))
    assert [row["rating"] for row in block["items"]] == [8, 5, 8, 5, 2, 2]
    assert (block["score"], block["n"], block["questions"], block["scale"]) == (5.0, 6, 3, [1, 10])
    assert block["turns"]["1"]["score"], block["turns"]["2"]["score"] == (6.0, 4.0)
    assert {name: topic["score"] for name, topic in block["topics"].items()} == {"writing": 6.5, "math": 2.0}
    assert block["topics"]["writing"]["turns"]["2"] == {"score": 5.0, "n": 2, "interval": [5.0, 5.0], "failed": 0}
    low, high = block["interval"]
    assert 2 <= low < 5 < high <= 6.5
    math = next(chat for chat in model.asked if len(chat) == 3 and chat[0]["content"] == "一加二？")
    assert [message["content"] for message in math] == ["一加二？", "是三", "再加四？"]
    (second,) = [body["messages"][1]["content"] for body in server.bodies if "再加四" in body["messages"][1]["content"]]
    assert all(text in second for text in ("一加二？", "是三", "是七", "等於三", "等於七"))
    assert "| 全部 all | 5.00" in "\n".join(judge_lines(block))


def test_unreadable_ratings_are_counted(two_turns: Path, tmp_path: Path) -> None:
    replies = {"玉山": "我給八分", "再短": "[[11]]", "淡水": "[[3]] 或 [[4]]"}

    def script(body: dict[str, Any], before: int) -> Reply:
        text = body["messages"][1]["content"]
        if "兩輪對話" in text and "淡水" in text:
            return Reply("評分：7")
        return Reply(next((reply for word, reply in reversed(replies.items()) if word in text), "評分：[[6]]"))

    with FaultServer(script) as server:
        block = judge("mt_bench_tw", Scripted({}), two_turns, tmp_path, more(server))
    assert [row["problem"] for row in block["items"]] == ["none", "out_of_range", "several", "", "", ""]
    assert [row["rating"] for row in block["items"]] == [None, None, None, 7, 6, 6]
    assert block["failures"] == {"total": 3, "none": 1, "out_of_range": 1, "several": 1}
    assert (block["score"], block["n"], block["asked"]) == (19 / 3, 3, 6)
    assert block["turns"]["1"] == {"score": 6.0, "n": 1, "interval": [6.0, 6.0], "failed": 2}
    assert block["items"][0]["judge"] == "我給八分"


def test_answers_resume_turn_by_turn(two_turns: Path, tmp_path: Path) -> None:
    with FaultServer(rate) as server:
        broken = Scripted({}, budget=4)
        with pytest.raises(KeyboardInterrupt):
            judge("mt_bench_tw", broken, two_turns, tmp_path, more(server))
        assert not server.bodies
        model = Scripted({})
        block = judge("mt_bench_tw", model, two_turns, tmp_path, more(server))
        assert len(model.asked) == 2
        whole = judge("mt_bench_tw", Scripted({}), two_turns, tmp_path / "whole", more(server))
        assert block["items"] == whole["items"]


def test_another_first_answer_asks_the_second_turn_again(two_turns: Path, tmp_path: Path) -> None:
    with FaultServer(rate) as server:
        judge("mt_bench_tw", Scripted({}), two_turns, tmp_path, more(server))
        stored = (tmp_path / "r.responses.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in stored.splitlines()]
        for row in rows:
            row["output"] = "換了" if row["id"] == "81/1" else row["output"]
        write(tmp_path / "r.responses.jsonl", rows)
        model = Scripted({})
        judge("mt_bench_tw", model, two_turns, tmp_path, more(server))
    assert [[message["content"] for message in chat] for chat in model.asked] == [
        ["寫一句玉山。", "換了", "再短一點。"]
    ]


def test_turn_that_does_not_fit(two_turns: Path, tmp_path: Path) -> None:
    """No second turn after a first one that was not asked; both are judged as the empty answers they are."""

    class Small(Scripted):
        def __call__(self, chats: Sequence[Messages]) -> list[str | None]:
            said = super().__call__(chats)
            return [None if "玉山" in chat[0]["content"] else text for chat, text in zip(chats, said, strict=True)]

    model = Small({})
    with FaultServer(rate) as server:
        block = judge("mt_bench_tw", model, two_turns, tmp_path, more(server))
    assert (block["too_long"], len(model.asked)) == (2, 5)
    assert [row["answer"] for row in block["items"][:2]] == ["", ""]


def test_leak_rate_is_told(bench: Path, two_turns: Path, tmp_path: Path) -> None:
    with FaultServer(rate) as server:
        block = judge("mt_bench_tw", Scripted({"寫一句玉山。": "这个视频"}), two_turns, tmp_path, more(server))
    assert block["leak_rate"] == pytest.approx(4 / 9, abs=0.12)
    with FaultServer(longer) as server:
        block = pair(server, bench, tmp_path)
    assert (block["leak_rate"], block["leak_rate_other"]) == (0, 0)


# -- parsing and numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("理由。\n[[A]]", ("A", "")),
        ("[[C]] 不相上下 [[C]]", ("C", "")),
        ("[[A]] 但也許 [[B]]", ("", "several")),
        ("[A]", ("", "none")),
        ("[[a]]", ("", "none")),
        ("[[D]]", ("", "none")),
        ("A 比較好", ("", "none")),
        ("", ("", "none")),
    ],
)
def test_verdicts(text: str, expected: tuple[str, str]) -> None:
    assert read_verdict(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("評分：[[7]]", (7.0, "")),
        ("Rating: [[10]]", (10.0, "")),
        ("好。\n評分: 6.5\n", (6.5, "")),
        ("評分：[[7]]\n評分：7", (7.0, "")),
        ("[[7]] … [[8]]", (None, "several")),
        ("[[0]]", (None, "out_of_range")),
        ("[[10.5]]", (None, "out_of_range")),
        ("[[100]]", (None, "none")),
        ("[[rating]]", (None, "none")),
        ("[7]", (None, "none")),
        ("評分：7/10", (None, "none")),
        ("評分：七", (None, "none")),
        ("若照評分：7 的標準", (None, "none")),
        ("", (None, "none")),
    ],
)
def test_ratings(text: str, expected: tuple[float | None, str]) -> None:
    assert read_rating(text) == expected


def test_outcomes_and_score() -> None:
    table = {"AB": "win", "BA": "loss", "CC": "tie", "AA": "inconsistent", "BB": "inconsistent", "CA": "inconsistent"}
    assert {verdicts: outcome_of(verdicts) for verdicts in table} == table
    score = pair_score(["win"] * 3 + ["tie", "inconsistent", "loss", "failed"])
    assert (score["score"], score["n"], score["counts"]["failed"]) == (4 / 6, 6, 1)
    assert score["shares"]["win"]["share"] == 0.5
    assert pair_score(["failed"])["score"] is None


def test_interval_of_a_mean_keeps_the_turns_of_a_question_together() -> None:
    """Two equal turns add no information: the interval is that of one turn each, not narrower."""
    one = mean_rating([[float(value)] for value in (2, 4, 5, 7, 9, 10)])
    two = mean_rating([[float(value)] * 2 for value in (2, 4, 5, 7, 9, 10)])
    assert (one["score"], one["interval"]) == (two["score"], two["interval"])
    assert one["interval"][1] - one["interval"][0] == pytest.approx(2 * 1.96 * 2.79 / 6**0.5, rel=0.1)
    assert mean_rating([[None]]) == {"score": None, "n": 0, "interval": None, "failed": 1}


def test_prompts_keep_braces_and_hash_every_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prompts = load_prompts("judge_pair")
    _, user = prompts.messages("plain", question="{x}", answer_a="{answer_b}", answer_b='{"a": 1}')
    assert "{x}" in user["content"]
    assert "{answer_b}" in user["content"]
    assert '{"a": 1}' in user["content"]
    monkeypatch.setattr("twllm.evaluate.judge.FOLDER", tmp_path)
    for name, tail in (("same", ""), ("word", "！")):
        text = f'version = {prompts.version}\nsystem = """\n{prompts.system}{tail}"""\n[templates]\n'
        text += "".join(f'{key} = """\n{value}"""\n' for key, value in prompts.templates.items())
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    assert load_prompts("same").hash == prompts.hash != load_prompts("word").hash


# -- data and answer files ----------------------------------------------------------------------------------------


def items(name: str, data: Path) -> list[Item]:
    return read_items(tasks()[name], "", data)


def test_readers(bench: Path, two_turns: Path) -> None:
    read = items("zh_tw_bench", bench)
    assert [(item.id, item.topic, item.references) for item in read][1:3] == [
        ("2", "generic", ()), ("3", "coding", ("標準解 3",)),
    ]  # fmt: skip
    assert [item.turns for item in items("mt_bench_tw", two_turns)][2] == ("一加二？", "再加四？")
    with pytest.raises(UserError, match="2 turns, expected 1"):
        items("zh_tw_bench", two_turns)


def test_missing_reference_and_broken_questions(bench: Path) -> None:
    file = bench / "reference_answer/gpt.jsonl"
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.splitlines()[0], encoding="utf-8")
    with pytest.raises(UserError, match=r"question 4 \(math\)"):
        items("zh_tw_bench", bench)
    file.write_text(whole, encoding="utf-8")
    (bench / "reference_answer/other.jsonl").write_text(whole, encoding="utf-8")
    with pytest.raises(UserError, match="several files"):
        items("zh_tw_bench", bench)
    (bench / "reference_answer/other.jsonl").unlink()
    with (bench / "question.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"question_id": 1, "category": "generic", "turns": ["又一次"]}\n')
    with pytest.raises(UserError, match="twice"):
        items("zh_tw_bench", bench)


def test_answer_files_in_three_formats(bench: Path, tmp_path: Path) -> None:
    asked = items("zh_tw_bench", bench)
    seed = [{"id": str(int(id) - 1), "generated_text": text, "model_name": "m"} for id, text in OURS.items()]
    own = [{"task": "zh_tw_bench", "id": f"{id}/1", "output": text} for id, text in OURS.items()]
    own.insert(0, {"task": "culture", "id": "山-1", "output": "玉山"})
    expected = [[text] for text in OURS.values()]
    assert AnswerFile(published(tmp_path / "a.jsonl", OURS)).turns(asked) == expected
    assert AnswerFile(write(tmp_path / "b.jsonl", seed)).turns(asked) == expected
    assert AnswerFile(write(tmp_path / "c.jsonl", own)).turns(asked) == expected
    with pytest.raises(UserError, match="1 題沒有回答"):
        AnswerFile(write(tmp_path / "d.jsonl", seed[1:])).turns(asked)
    with pytest.raises(UserError, match="two answers to 1"):
        AnswerFile(write(tmp_path / "e.jsonl", [*seed, {"id": "0", "generated_text": "別的"}])).turns(asked)
    with pytest.raises(UserError, match="看不懂的回答檔"):
        AnswerFile(write(tmp_path / "f.jsonl", [{"answer": "x"}])).turns(asked)
    with pytest.raises(UserError, match="不能拿來問"):
        AnswerFile(tmp_path / "a.jsonl")([])


# -- whole runs ---------------------------------------------------------------------------------------------------


def test_two_files_on_the_command_line(bench: Path, tmp_path: Path) -> None:
    ours, theirs = published(tmp_path / "ours.jsonl", OURS), published(tmp_path / "theirs.jsonl", THEIRS)
    out = tmp_path / "out" / "pair.json"
    with FaultServer(longer) as server:
        args = ["eval", str(ours), "--suite", "zh_tw_bench", "--data", str(bench), "--out", str(out)]
        args += ["--against", str(theirs), "--judge-url", server.url, "--judge-model", "j", "--judge-set", FAST[0]]
        run = CliRunner().invoke(app, args)
    assert run.exit_code == 0, run.output
    block = json.loads(out.read_text(encoding="utf-8"))["zh_tw_bench"]
    assert (block["counts"]["win"], block["counts"]["loss"]) == (2, 2)
    assert block["opponent"]["name"] == str(theirs)
    assert "| 負 loss | 2/4 |" in out.with_suffix(".md").read_text(encoding="utf-8")


def test_a_real_model_through_both_suites(tiny_checkpoint: Path, bench: Path, two_turns: Path, tmp_path: Path) -> None:
    theirs = published(tmp_path / "theirs.jsonl", THEIRS)

    def script(body: dict[str, Any], before: int) -> Reply:
        return rate(body, before) if "打分數" in body["messages"][0]["content"] else longer(body, before)

    with FaultServer(script) as server:
        for suite, data in (("zh_tw_bench", bench), ("mt_bench_tw", two_turns)):
            settings: dict[str, Any] = {"data": data, "out": tmp_path / f"{suite}.json", "max_new_tokens": 6}
            settings |= more(server, against=str(theirs))
            first = evaluate_model(str(tiny_checkpoint), suites=[suite], **settings)
            sent = server.seen.total()
            second = evaluate_model(str(tiny_checkpoint), suites=[suite], **settings)
            assert server.seen.total() == sent
            assert second[suite] == first[suite]
            assert second["meta"]["reused_answers"] == {"zh_tw_bench": 4, "mt_bench_tw": 6}[suite]
    assert first["mt_bench_tw"]["n"] == 6


def test_mistakes_are_told_before_the_model_is_loaded(bench: Path, tmp_path: Path) -> None:
    theirs = published(tmp_path / "theirs.jsonl", THEIRS)
    good = {"judge_url": "http://127.0.0.1:9", "judge_model": "j", "against": str(theirs)}

    def run(**change: Any) -> None:
        evaluate_model(
            str(tmp_path / "沒有"), suites=["zh_tw_bench"], data=bench, out=tmp_path / "r.json", **{**good, **change}
        )

    for change, said in (
        ({"judge_url": ""}, "--judge-url"),
        ({"judge_url": "ftp://x"}, "http"),
        ({"judge_model": ""}, "--judge-model"),
        ({"judge_set": ["temperatur=1"]}, "沒有這個設定"),
        ({"judge_set": ["budget.max_cost=1"]}, "價錢"),
        ({"judge_key_env": "TWLLM_NO_SUCH_KEY"}, "環境變數"),
        ({"against": ""}, "--against"),
        ({"against": str(tmp_path / "x.jsonl")}, "找不到檔案"),
        ({"against": str(published(tmp_path / "few.jsonl", {"1": "好"}))}, "3 題沒有回答"),
    ):
        with pytest.raises(UserError, match=said):
            run(**change)
    assert list(tmp_path.glob("r.*")) == []


@pytest.mark.shared_data
def test_published_answers_of_both_models(shared_data: Path, tmp_path: Path) -> None:
    """All 80 questions of each suite are read; v1.0 against GPT-3.5 by length is what their lengths say."""
    asked = items("zh_tw_bench", shared_data)
    assert (len(asked), sum(bool(item.references) for item in asked)) == (80, 10)
    turns = items("mt_bench_tw", shared_data)
    assert (len(turns), sum(len(item.references) for item in turns)) == (80, 60)
    folder = shared_data / "zh_tw_bench/model_answer"
    ours, theirs = AnswerFile(folder / "v1.0.jsonl"), folder / "gpt-3.5-turbo.jsonl"
    lengths = zip(ours.turns(asked), AnswerFile(theirs).turns(asked), strict=True)
    expected = sum(len(mine[0]) > len(other[0]) for mine, other in lengths)
    with FaultServer(longer, one_by_one=False) as server:
        block = judge("zh_tw_bench", ours, shared_data, tmp_path, more(server, against=str(theirs)))
    assert (block["n"], block["counts"]["win"], block["agreement"]["share"]) == (80, expected, 1.0)
    assert {name: topic["n"] for name, topic in block["topics"].items()}["coding"] == 7
    assert server.answered.total() == 160
