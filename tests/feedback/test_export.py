"""Ratings and votes out of the store: what counts, what is left out and why, formats, and the readers that training uses."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.feedback.test_store import MESSAGES, rating
from twllm.artifact import read_manifest
from twllm.cli import app
from twllm.errors import UserError
from twllm.feedback.battles import Battles, Known
from twllm.feedback.commands import Format
from twllm.feedback.export import FORMATS, export_feedback
from twllm.feedback.guards import Limits
from twllm.feedback.store import RatingStore
from twllm.tokens.config import DatasetConfig
from twllm.tokens.conversation import read_conversations
from twllm.tokens.preferences import read_preferences

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def fill(url: str, clicks: list[dict[str, Any]]) -> None:
    """Ratings ten seconds apart, each of its own answer, unless they say otherwise."""
    with RatingStore(url) as store:
        for number, click in enumerate(clicks):
            own = {"conversation_id": f"c{number}", "consent": True, "created": at(10 * number)}
            store.add(rating(**{**own, "messages": chat(f"問題{number}", f"回答{number}"), **click}))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def left_out(url: str, tmp_path: Path, **limits: Any) -> dict[str, int]:
    return export_feedback(url, tmp_path / "o.jsonl", limits=Limits(**limits))["left_out"]


def test_rows_read_back_as_rated_conversations(url: str, tmp_path: Path) -> None:
    fill(
        url,
        [
            {},
            {
                "rating": -1,
                "comment": "應該說「不好意思」",
                "reason": "local",
                "model": "玉山",
                "model_fingerprint": "f1",
            },
        ],
    )
    out = tmp_path / "out" / "rows.jsonl"
    report = export_feedback(url, out)
    assert (report["rows"], report["up"], report["down"], report["left_out"]) == (2, 1, 1, {})
    found = list(read_conversations(out))
    assert [(c.id, c.rating, c.license) for c in found] == [
        ("rating-1", 1, "user-feedback"),
        ("rating-2", -1, "user-feedback"),
    ]
    assert list(found[1].messages) == chat("問題1", "回答1")
    assert found[1].metadata["comment"] == "應該說「不好意思」" and found[1].generator == "玉山@f1"
    row = rows_of(out)[1]
    about = {"comment", "reasons", "votes", "model", "template", "time", "license", "consent"}
    assert set(row) == {"id", "messages", "rating"} | about  # and nothing about who it was
    shipped = next(read_conversations("twllm:taiwan_feedback"))
    assert [sorted(m) for m in shipped.messages] == [sorted(m) for m in found[0].messages]


def test_without_consent_only_when_asked(url: str, tmp_path: Path) -> None:
    fill(url, [{}, {"consent": False}, {"consent": False, "rating": -1}])
    assert left_out(url, tmp_path) == {"no_consent": 2}
    report = export_feedback(url, tmp_path / "all.jsonl", consent_only=False)
    assert (report["rows"], report["left_out"]) == (3, {})
    assert [row["consent"] for row in rows_of(tmp_path / "all.jsonl")] == [True, False, False]


def test_the_latest_click_decides_consent_too(url: str, tmp_path: Path) -> None:
    same = {"conversation_id": "c", "messages": MESSAGES}
    fill(url, [{**same}, {**same, "rating": -1, "consent": False}])
    assert left_out(url, tmp_path) == {"no_consent": 1}


def test_every_rule_has_somebody_it_catches_and_somebody_it_does_not(url: str, tmp_path: Path) -> None:
    quick = [{"user_hash": "快手", "created": at(1000 + 0.3 * i), "rating": [1, -1][i % 2]} for i in range(4)]
    many = [{"user_hash": "連發", "created": at(2000 + 1.2 * i), "rating": [1, -1][i % 2]} for i in range(20)]
    slow = [{"user_hash": "從容", "created": at(2000 + 8 * i), "rating": [1, -1][i % 2]} for i in range(6)]
    same = [{"user_hash": "都好", "created": at(3000 + 60 * i)} for i in range(10)]
    told = [{"user_hash": "有說", "created": at(3000 + 60 * i), "comment": "好" if i == 5 else ""} for i in range(10)]
    short = [{"messages": chat("問", "好"), "user_hash": "短"}]
    fill(url, [*quick, *many, *slow, *same, *told, *short])
    limits = {"burst": 10, "same": 10, "per_user": 4}
    assert left_out(url, tmp_path, **limits) == {
        "burst": 20, "all_same": 10, "over_cap": 2 + 6, "too_fast": 3, "too_short": 1
    }  # fmt: skip
    kept = [row["id"] for row in rows_of(tmp_path / "o.jsonl")]
    assert (
        len(kept) == 1 + 4 + 4
    )  # the quick one's first click; the newest four of the slow one and of the one who told why
    assert left_out(url, tmp_path, burst=0, same=0, per_user=0, min_gap_s=0, min_chars=0) == {}


def test_the_same_answer_rated_by_many_is_one_row(url: str, tmp_path: Path) -> None:
    liked = {"messages": chat("甲", "好答案"), "reason": "clear"}
    split = {"messages": chat("乙", "普通答案")}
    fill(
        url,
        [
            {**liked, "user_hash": "1", "comment": "讚"}, {**liked, "user_hash": "2"}, {**liked, "user_hash": "3", "rating": -1},
            {**liked, "user_hash": "1"}, {**split, "user_hash": "1"}, {**split, "user_hash": "2", "rating": -1},
        ],
    )  # fmt: skip
    assert left_out(url, tmp_path) == {"merged": 2, "disagree": 2, "duplicate": 1}
    (row,) = rows_of(tmp_path / "o.jsonl")
    assert row["rating"] == 1 and row["votes"] == {"up": 2, "down": 1} and row["reasons"] == ["clear"]


def test_personal_data_is_scrubbed_everywhere(url: str, tmp_path: Path) -> None:
    talk = chat("我的手機是0912345678", "好，寄到 a.b@ntu.edu.tw")
    fill(url, [{"messages": talk, "comment": "身分證A123456789"}])
    report = export_feedback(url, tmp_path / "o.jsonl")
    assert report["scrubbed"] == {"手機號碼": 1, "電子郵件": 1, "身分證字號": 1}
    text = (tmp_path / "o.jsonl").read_text(encoding="utf-8")
    assert "〔手機號碼〕" in text and not any(secret in text for secret in ("0912345678", "ntu.edu", "A123456789"))


def battle(
    store: RatingStore, user: str, prompt: str, answers: tuple[str, str], vote: str, flag: str = "", turns: int = 1
) -> None:
    battles = Battles(store)
    id = battles.begin(user, {"a": Known("甲", "f1"), "b": Known("乙", "f2")})
    chats: dict[str, list[dict[str, str]]] = {"a": [], "b": []}
    for turn in range(1, turns + 1):
        if turn > 1:
            battles.claim(id, user)
        for side, answer in zip("ab", answers, strict=True):
            chats[side] = [*chats[side], *chat(f"{prompt}{turn}", f"{answer}{turn}")]
            battles.answer(id, user, turn, side, chats[side], "stop")
    battles.vote(battles.get(id, user), vote, consent=True, flag=flag)


def test_pairs_from_regenerated_answers_and_from_the_arena(url: str, tmp_path: Path) -> None:
    same = [chat("玉山多高？", "3,952 公尺。"), chat("玉山多高？", "八千公尺。"), chat("別的", "沒有對手")]
    fill(url, [{"messages": m, "rating": r} for m, r in zip(same, (1, -1, 1), strict=True)])
    with RatingStore(url) as store:
        battle(store, "x", "晚餐", ("牛肉麵", "漢堡"), "b", turns=2)
        battle(store, "x", "早餐", ("蛋餅", "土司"), "tie")
        battle(store, "x", "點心", ("糖", "鹽"), "bad")
        battle(store, "x", "誰", ("甲", "乙"), "a", flag="identity")
        battle(store, "x", "同", ("一樣", "一樣"), "a")
    report = export_feedback(url, tmp_path / "d.jsonl", "dpo", limits=Limits(min_gap_s=0))
    assert report["left_out"] == {"tie": 1, "identity": 1, "same_answer": 1}
    thumbs, arena = rows_of(tmp_path / "d.jsonl")
    assert (thumbs["chosen"][0]["content"], thumbs["rejected"][0]["content"]) == ("3,952 公尺。", "八千公尺。")
    assert thumbs["prompt"] == [{"role": "user", "content": "玉山多高？"}] and thumbs["source"] == "thumbs"
    assert [m["content"] for m in arena["prompt"]] == ["晚餐1"]
    assert [m["content"] for m in arena["chosen"]] == ["漢堡1", "晚餐2", "漢堡2"]
    assert [m["content"] for m in arena["rejected"]] == ["牛肉麵1", "晚餐2", "牛肉麵2"]
    assert arena["model"] == "乙@f2 > 甲@f1" and arena["source"] == "arena"
    export_feedback(url, tmp_path / "k.jsonl", "kto", limits=Limits(min_gap_s=0))
    labels = {row["completion"][-1]["content"]: row["label"] for row in rows_of(tmp_path / "k.jsonl")}
    assert labels == {
        "3,952 公尺。": True,
        "八千公尺。": False,
        "沒有對手": True,
        "糖1": False,
        "鹽1": False,
    }  # both bad: down


def test_a_vote_quicker_than_reading_is_left_out(url: str, tmp_path: Path) -> None:
    with RatingStore(url) as store:
        battle(store, "x", "問", ("甲答案", "乙答案"), "a")
    assert left_out(url, tmp_path, min_gap_s=30) == {"too_fast": 1}


@pytest.mark.parametrize("method", ["kto", "dpo"])
def test_training_reads_what_is_exported(url: str, tmp_path: Path, method: Any) -> None:
    same = [chat("甲", "對"), chat("甲", "錯錯")]
    fill(url, [{"messages": m, "rating": r} for m, r in zip(same, (1, -1), strict=True)])
    for format in ("ratings", method):
        folder = tmp_path / format
        export_feedback(url, folder, format, limits=Limits(min_chars=1))
        found, facts = read_preferences(DatasetConfig(path=str(folder)), method)
        assert len(found) == (2 if method == "kto" else 1)
        assert facts["licenses"] == {"user-feedback": len(found) if format == method else 2}
    wrong = "dpo" if method == "kto" else "kto"
    with pytest.raises(UserError, match=f"made for {method}"):
        read_preferences(DatasetConfig(path=str(tmp_path / method)), wrong)  # type: ignore[arg-type]


def test_a_folder_is_a_frozen_snapshot(url: str, tmp_path: Path) -> None:
    fill(url, [{}, {"consent": False}])
    export_feedback(url, tmp_path / "snapshot")
    assert sorted(p.name for p in (tmp_path / "snapshot").iterdir()) == ["manifest.json", "report.md", "rows.jsonl"]
    manifest = read_manifest(tmp_path / "snapshot")
    assert (
        manifest
        and manifest["config"]["limits"]["per_user"] == 100
        and manifest["metrics"]["left_out"] == {"no_consent": 1}
    )
    assert "沒有同意" in (tmp_path / "snapshot" / "report.md").read_text(encoding="utf-8")
    assert len(list(read_conversations(tmp_path / "snapshot"))) == 1
    first = manifest["fingerprint"]
    export_feedback(url, tmp_path / "snapshot")  # replaced whole, and the same
    assert (read_manifest(tmp_path / "snapshot") or {})["fingerprint"] == first


def test_export_is_whole_or_not_at_all(tmp_path: Path) -> None:
    database, out = tmp_path / "r.db", tmp_path / "rows.jsonl"
    fill(str(database), [{}])
    export_feedback(database, out)
    first = out.read_bytes()
    export_feedback(database, out)
    assert out.read_bytes() == first
    database.write_bytes(b"broken" * 1000)
    with pytest.raises(UserError):
        export_feedback(database, out)
    assert out.read_bytes() == first
    with pytest.raises(UserError, match="no such format"):
        export_feedback(database, out, "csv")


def test_commands_tell_what_was_left_out_and_draw(url: str, tmp_path: Path) -> None:
    fill(url, [{"model": "玉山"}, {"consent": False, "reason": "clear"}])
    with RatingStore(url) as store:
        battle(store, "x", "晚餐", ("牛肉麵", "漢堡"), "b")
    run = CliRunner().invoke(app, ["feedback", "export", "--db", url, "--out", str(tmp_path / "o.jsonl")])
    assert run.exit_code == 0 and "rows 1" in run.output and "沒有同意" in run.output
    run = CliRunner().invoke(app, ["feedback", "stats", "--db", url, "--plot", str(tmp_path / "s.png")])
    assert run.exit_code == 0 and "玉山 (): up 1、down 0" in run.output and "votes: 1" in run.output
    assert (tmp_path / "s.png").stat().st_size > 10_000
    run = CliRunner().invoke(app, ["feedback", "leaderboard", "--db", url])
    assert run.exit_code == 0 and "乙" in run.output
    assert {one.value for one in Format} == set(FORMATS)
