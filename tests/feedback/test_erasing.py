"""Deletion on request and retention: rows and text are gone, also from the files; others keep theirs."""

from pathlib import Path

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from tests.feedback.test_store import MESSAGES, rating
from twllm.cli import app
from twllm.errors import UserError
from twllm.feedback.battles import Battles, Known
from twllm.feedback.export import export_feedback
from twllm.feedback.guards import Limits
from twllm.feedback.stats import stats
from twllm.feedback.store import RatingStore
from twllm.feedback.tables import erasures, messages

ANNA, BEN = "aa" * 16, "bb" * 16
SECRET = "我住在某某路的秘密住址"
OPEN = Limits(min_gap_s=0)


def fill(url: str) -> None:
    """Two people with a rating and a battle each; the same texts but for Anna's secret."""
    with RatingStore(url) as store:
        for user in (ANNA, BEN):
            name = store.pseudonym(user)
            store.add(rating(user_hash=name, consent=True))
            chat = [{"role": "user", "content": SECRET if user == ANNA else "天氣"}, *MESSAGES[1:]]
            store.add(rating(user_hash=name, consent=True, turn=3, messages=chat, comment="意見" + user))
            battles = Battles(store)
            id = battles.begin(name, {"a": Known("甲", "1"), "b": Known("乙", "2")})
            for side in "ab":
                battles.answer(id, name, 1, side, [*chat[:1], {"role": "assistant", "content": f"答{side}"}], "stop")
            battles.vote(battles.get(id, name), "a", consent=True)


def contents(url: str) -> bytes:
    """All bytes of a SQLite database and its side files."""
    folder = Path(url.removeprefix("sqlite:///")).parent
    return b"".join(file.read_bytes() for file in folder.iterdir() if file.is_file())


def test_everything_of_one_person_is_erased_and_nothing_else(url: str, tmp_path: Path) -> None:
    fill(url)
    if url.startswith("sqlite"):
        assert SECRET.encode() in contents(url)
    with RatingStore(url) as store:
        counts = store.erase(ANNA)
        assert counts == {"ratings": 2, "votes": 1, "battles": 1, "messages": 6, "consents": 1}
        assert {r.user_hash for r in store.latest()} == {store.pseudonym(BEN)}
        assert [r.messages[0]["content"] for r in store.latest()] == [MESSAGES[0]["content"], "天氣"]
        assert len(Battles(store).outcomes()) == 1
        with store.reading() as connection:
            (stone,) = connection.execute(select(erasures)).all()
            texts = connection.execute(select(messages.c.content)).scalars().all()
        assert stone.reason == "user" and stone.user_hash == store.pseudonym(ANNA) and '"ratings": 2' in stone.counts
        assert SECRET not in texts
        if url.startswith("sqlite"):
            assert SECRET.encode() not in contents(url) and ANNA.encode() not in contents(url)
    for format in ("ratings", "kto", "dpo"):
        export_feedback(url, tmp_path / f"{format}.jsonl", format, limits=OPEN)
        assert SECRET not in (tmp_path / f"{format}.jsonl").read_text(encoding="utf-8")
    assert stats(url)["erasures"] == 1 and stats(url)["ratings"] == 2
    with RatingStore(url) as store:
        assert not any(store.erase(ANNA).values())  # nothing left, and no second tombstone
    assert stats(url)["erasures"] == 1


def test_by_command_with_the_number_or_the_stored_name(url: str) -> None:
    fill(url)
    with RatingStore(url) as store:
        name = store.pseudonym(BEN)
    run = CliRunner().invoke(app, ["feedback", "delete", "--db", url, "--user", ANNA])
    assert run.exit_code == 0 and "ratings 2" in run.output
    assert CliRunner().invoke(app, ["feedback", "delete", "--db", url, "--user", name]).exit_code == 0
    assert stats(url)["ratings"] == 0
    nobody = CliRunner().invoke(app, ["feedback", "delete", "--db", url, "--user", ANNA])
    assert isinstance(nobody.exception, UserError) and "nothing stored" in nobody.exception.what
    with RatingStore(url) as store, pytest.raises(UserError, match="no user"):
        store.erase(" ")


def test_retention_erases_what_is_older(url: str) -> None:
    with RatingStore(url) as store:
        longer = [*MESSAGES, {"role": "user", "content": "舊的問題"}, {"role": "assistant", "content": "舊的回答"}]
        store.add(rating(turn=3, messages=longer, created="2020-01-01T00:00:00.000Z"))
        store.add(rating())  # shares its messages with the beginning of the old one
        counts = store.expire(30)
        assert counts == {"ratings": 1, "votes": 0, "battles": 0, "messages": 2}
        assert [r.messages for r in store.latest()] == [MESSAGES]
        assert not any(store.expire(30).values())
    run = CliRunner().invoke(app, ["feedback", "expire", "--db", url, "--days", "0"])
    assert run.exit_code == 0 and "ratings 1" in run.output
    assert stats(url)["ratings"] == 0 and stats(url)["erasures"] == 2
