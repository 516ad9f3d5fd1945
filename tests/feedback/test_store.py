"""The rating store: durable, append-only, the latest counts, errors explained."""

import hashlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.feedback.conftest import new_database
from twllm.feedback.key import ENV, secret_file
from twllm.feedback.stats import stats
from twllm.feedback.store import Rating, RatingStore, StoreError
from twllm.feedback.tables import consents, messages

MESSAGES = [{"role": "user", "content": "「拍謝」是什麼意思？"}, {"role": "assistant", "content": "不好意思。ㄅㄆㄇ🧋"}]


def rating(**change: Any) -> Rating:
    return Rating(**{"conversation_id": "c", "turn": 1, "rating": 1, "messages": MESSAGES, "user_hash": "u", **change})


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "評分" / "ratings.db"


def test_what_goes_in_comes_out(url: str) -> None:
    given = rating(
        comment="很好", reason="local", consent=True, model="玉山", model_fingerprint="f1", template_fingerprint="t1", chat_id="h"
    )  # fmt: skip
    with RatingStore(url) as store:
        assert store.add(given) == 1
    with RatingStore(url, create=False) as store:
        (found,) = store.latest()
    assert found == Rating(**{**vars(given), "id": 1})
    assert found.created.endswith("Z")


def test_every_click_is_a_row_and_the_latest_counts(url: str) -> None:
    with RatingStore(url) as store:
        for change in (
            {"rating": 1},
            {"rating": -1},
            {"rating": -1, "comment": "答錯了", "consent": True, "reason": "wrong"},
            {"turn": 3},
            {"user_hash": "v"},
            {"conversation_id": "d", "consent": True},
        ):
            store.add(rating(**change))
        assert store.clicks() == 6
        latest = [(r.id, r.conversation_id, r.turn, r.user_hash, r.rating) for r in store.latest()]
    assert latest == [(3, "c", 1, "u", -1), (4, "c", 3, "u", 1), (5, "c", 1, "v", 1), (6, "d", 1, "u", 1)]
    counts = stats(url)
    assert counts.pop("models") == {" ()": {"up": 3, "down": 1}}
    (day,) = counts.pop("days").values()
    assert day == {"up": 3, "down": 1, "votes": 0}
    assert counts.pop("agreement") == {
        "answers": 1,
        "pairs": 1,
        "share": 1.0,
    }  # u's last word on the answer is "up", as v's
    assert counts.pop("reasons") == {"down: wrong": 1}
    assert counts == {
        "clicks": 6, "ratings": 4, "up": 3, "down": 1, "comments": 1, "consent": 2, "users": 2, "votes": 0, "votes_flagged": 0,
        "consent_events": 5, "erasures": 0,
    }  # fmt: skip


def test_messages_are_stored_once_linked_to_their_parents_and_not_shared_between_people(url: str) -> None:
    longer = [*MESSAGES, {"role": "user", "content": "再說一次"}, {"role": "assistant", "content": "不好意思。"}]
    with RatingStore(url) as store:
        store.add(rating())
        store.add(rating(turn=3, messages=longer))
        store.add(rating(user_hash="v", messages=longer))
        with store.reading() as connection:
            rows = connection.execute(select(messages)).all()
        assert len(rows) == 4 + 4
        own = {row.hash: row for row in rows if row.user_hash == "u"}
        assert sorted(len(list(_ancestors(own, address))) for address in own) == [1, 2, 3, 4]
        assert [len(found.messages) for found in store.latest()] == [2, 4, 4]


def _ancestors(rows: dict[str, Any], address: str) -> Iterator[str]:
    while address:
        yield address
        address = rows[address].parent


def test_eight_writers_lose_nothing(url: str) -> None:
    def write(number: int) -> None:
        with RatingStore(url) as own:
            for i in range(12):
                own.add(rating(turn=number * 100 + i, user_hash=f"u{number % 3}", model=f"模型{i % 4}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    with RatingStore(url) as store:
        assert store.clicks() == 96
        found = list(store.latest())
        assert len({r.turn for r in found}) == 96
        assert all(r.messages == MESSAGES for r in found)


def test_a_database_opened_by_eight_at_once_is_made_once(url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: RatingStore(url).close(), range(8)))
    with RatingStore(url) as store:
        assert store.add(rating()) == 1


def test_nobody_is_found_by_hashing_numbers(url: str, tmp_path: Path) -> None:
    """Without the secret the stored name cannot be computed from the browser's number."""
    number = "0123456789abcdef0123456789abcdef"
    with RatingStore(url) as store:
        name = store.pseudonym(number)
        with RatingStore(url) as again:
            assert name == again.pseudonym(number)  # the same person, every time
        assert name != store.pseudonym("1" + number[1:]) and store.pseudonym("") == ""
        for plain in (number, hashlib.sha256(number.encode()).hexdigest()[:32]):
            assert name != plain
    if url.startswith("sqlite"):
        with RatingStore(tmp_path / "another.db") as other:
            assert other.pseudonym(number) != name


def test_another_key_is_refused_until_it_is_accepted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with RatingStore(url) as store:
        store.add(rating())
    monkeypatch.setenv(ENV, "some other secret of some length")
    with pytest.raises(StoreError, match="another feedback secret"):
        RatingStore(url)
    assert stats(url)["ratings"] == 1  # reading needs no key
    with RatingStore(url, create=False) as store:
        with pytest.raises(StoreError, match="another feedback secret"):
            store.erase("somebody")
        store.new_key()
    RatingStore(url).close()


def test_postgresql_wants_a_secret(postgres: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV, raising=False)
    with pytest.raises(StoreError, match="no feedback secret") as refused:
        RatingStore(new_database(postgres))
    assert "openssl rand" in refused.value.fix
    monkeypatch.setenv(ENV, "short")
    with pytest.raises(StoreError, match="too short"):
        RatingStore(new_database(postgres))


def test_the_key_file_is_private(database: Path) -> None:
    RatingStore(database).close()
    assert secret_file(database).stat().st_mode & 0o077 == 0


def test_consent_is_an_event_when_it_changes(url: str) -> None:
    with RatingStore(url) as store:
        for consent, text in ((True, "t1"), (True, "t1"), (False, "t1"), (True, "t2")):
            store.add(rating(consent=consent), text)
        with store.reading() as connection:
            events = [tuple(row) for row in connection.execute(select(consents.c.consent, consents.c.text))]
    assert events == [(True, "t1"), (False, "t1"), (True, "t2")]


def test_sqlite_is_told_to_be_durable(database: Path) -> None:
    with RatingStore(database) as store, store.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA secure_delete").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_no_acknowledged_rating_is_lost_by_kill_minus_nine(database: Path) -> None:
    """Two writers are killed in the middle of their writes; what they had been told is stored is there, whole."""
    code = (
        "import sys; from twllm.feedback.store import *\n"
        "M = [{'role': 'user', 'content': '問' * 500}, {'role': 'assistant', 'content': '答' * 500}]\n"
        "with RatingStore(sys.argv[1]) as store:\n"
        "    for turn in range(100000):\n"
        "        store.add(Rating(conversation_id=sys.argv[2], turn=turn, rating=1, messages=M, user_hash=sys.argv[2]))\n"
        "        print(turn, flush=True)\n"
    )
    RatingStore(database).close()
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(database), name], stdout=subprocess.PIPE, text=True)
        for name in ("甲", "乙")
    ]
    told = []
    for number, writer in enumerate(writers):
        assert writer.stdout is not None
        while int(writer.stdout.readline()) < 40 + 7 * number:
            pass
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        rest = writer.communicate()[0].split()
        told.append(max([40, *map(int, rest)]))
    with RatingStore(database, create=False) as store:
        found = list(store.latest())
        with store.reading() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    for name, last in zip(("甲", "乙"), told, strict=True):
        turns = [r.turn for r in found if r.conversation_id == name]
        assert turns == list(range(len(turns))) and len(turns) > last
    assert all(len(r.messages) == 2 for r in found)


def test_text_that_databases_refuse_is_cleaned(url: str) -> None:
    with RatingStore(url) as store:
        store.add(rating(comment="a\0b\ud800", messages=[{"role": "assistant", "content": "\ud83d好\0"}]))
        (found,) = store.latest()
    assert found.comment == "ab\ufffd"
    assert found.messages == [{"role": "assistant", "content": "\ufffd好"}]


def test_newer_schema_is_refused(url: str) -> None:
    RatingStore(url).close()
    with RatingStore(url) as store, store.writing() as connection:  # the same version again is fine
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0099'")
    for create in (True, False):
        with pytest.raises(StoreError, match=r"schema 0099 > "):
            RatingStore(url, create=create)


def test_files_that_are_no_database(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("不是資料庫" * 300)
    with pytest.raises(StoreError, match="database error") as refused:
        RatingStore(text)
    assert str(text) in str(refused.value)
    assert text.read_text().startswith("不是資料庫")
    with pytest.raises(StoreError):
        RatingStore(tmp_path)  # a folder
    with pytest.raises(StoreError, match="no ratings table"):
        other = tmp_path / "other.db"
        connection = sqlite3.connect(other)
        connection.execute("CREATE TABLE x (y)")
        connection.close()
        stats(other)


def test_damaged_database_is_explained(database: Path) -> None:
    with RatingStore(database) as store:
        for turn in range(200):
            store.add(rating(turn=turn))
    data = bytearray(database.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    database.write_bytes(data)
    with pytest.raises(StoreError, match="database error"):
        stats(database)


def test_missing_database_is_not_created_by_reading(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no ratings database"):
        stats(tmp_path / "none.db")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["nosuch://x/y", "://"])
def test_bad_urls_are_explained(url: str) -> None:
    with pytest.raises(StoreError):
        RatingStore(url)
