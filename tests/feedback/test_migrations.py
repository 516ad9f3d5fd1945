"""Databases of version 1 come along without loss; the tables that migrations make are those that the code uses."""

import hashlib
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from tests.feedback.test_store import MESSAGES, rating
from twllm.feedback.database import SCHEMA
from twllm.feedback.store import RatingStore, StoreError
from twllm.feedback.tables import metadata

NUMBER = "00112233445566778899aabbccddeeff"
# What version 1 ran: its CREATE TABLE statements, for both databases
V1 = """
CREATE TABLE schema_version (version INTEGER NOT NULL, PRIMARY KEY (version));
CREATE TABLE ratings (id {id}, conversation_id VARCHAR(64) NOT NULL, turn INTEGER NOT NULL, rating INTEGER NOT NULL,
 comment TEXT NOT NULL, consent BOOLEAN NOT NULL, user_hash VARCHAR(64) NOT NULL, model VARCHAR(255) NOT NULL,
 model_fingerprint VARCHAR(64) NOT NULL, template_fingerprint VARCHAR(64) NOT NULL, messages JSON NOT NULL, created VARCHAR(32) NOT NULL);
CREATE INDEX ratings_answer ON ratings (conversation_id, turn, user_hash);
INSERT INTO schema_version (version) VALUES (1)
"""


def make_v1(url: str, rows: int) -> None:
    """A database as version 1 left it; three people, one of them without a number."""
    own = url.replace("postgresql://", "postgresql+psycopg://")
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(own)
    person = hashlib.sha256(NUMBER.encode()).hexdigest()[:32]
    id = "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT" if url.startswith("sqlite") else "SERIAL PRIMARY KEY"
    insert = text(
        "INSERT INTO ratings (conversation_id, turn, rating, comment, consent, user_hash, model, model_fingerprint,"
        " template_fingerprint, messages, created) VALUES (:c, 1, :r, :k, :y, :u, :m, 'f', 't', :x, '2026-01-02T03:04:05.678Z')"
    )
    with engine.begin() as connection:
        for statement in V1.format(id=id).split(";\n"):
            connection.execute(text(statement))
        for i in range(rows):
            chat = [{"role": "user", "content": f"問題{i % 5}"}, *MESSAGES[1:]]
            values = {"c": f"c{i // 2}", "r": [1, -1][i % 2], "k": f"評{i}", "y": i % 2 == 0, "m": f"模型{i % 3}"}
            values |= {"u": [person, "", "另一個"][i % 3], "x": json.dumps(chat, ensure_ascii=False)}
            connection.execute(insert, values)
        connection.execute(text("DELETE FROM ratings WHERE id = 2"))  # ids have a gap
    engine.dispose()


def test_version_1_is_migrated_without_loss(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_v1(url, 1103)
    with RatingStore(url) as store:
        assert "版本 1 更新到" in capsys.readouterr().err
        found = list(store.latest())
        assert store.clicks() == 1102
        assert sum(r.user_hash == store.pseudonym(NUMBER) for r in found) >= 300  # the browser keeps its ratings
        by_id = {r.id: r for r in found}
        assert 2 not in by_id and by_id[1103].comment == "評1102" and by_id[1103].model == "模型1"
        assert by_id[1103].messages == [{"role": "user", "content": "問題2"}, *MESSAGES[1:]]
        assert by_id[1].created == "2026-01-02T03:04:05.678Z" and by_id[1].consent
        assert all(r.rating == [1, -1][(r.id - 1) % 2] and r.consent == (r.id % 2 == 1) for r in found)
        assert store.add(rating()) == 1104  # the counter goes on
        assert store.erase(NUMBER)["ratings"] == 368
    RatingStore(url).close()
    assert capsys.readouterr().err == ""  # once is enough


def test_eight_programs_that_find_version_1_migrate_it_once(url: str) -> None:
    make_v1(url, 40)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: RatingStore(url).close(), range(8)))
    with RatingStore(url) as store:
        assert store.clicks() == 39


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'r.db'}"
    make_v1(url, 4)
    connection = sqlite3.connect(tmp_path / "r.db")
    connection.execute("UPDATE ratings SET messages = 'not json' WHERE id = 4")
    connection.commit()
    before = list(connection.execute("SELECT * FROM ratings"))
    with pytest.raises((StoreError, ValueError)):
        RatingStore(url)
    assert list(connection.execute("SELECT * FROM ratings")) == before
    assert list(connection.execute("SELECT version FROM schema_version")) == [(1,)]
    connection.close()


def test_an_old_program_refuses_the_new_database(tmp_path: Path) -> None:
    RatingStore(tmp_path / "r.db").close()
    connection = sqlite3.connect(tmp_path / "r.db")
    assert (
        connection.execute("SELECT max(version) FROM schema_version").fetchone()[0] > 1
    )  # all that version 1 looks at
    connection.close()


def test_migrations_make_the_tables_of_the_code(url: str) -> None:
    with RatingStore(url) as store, store.reading() as connection:
        found = inspect(connection)
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == SCHEMA
        for table in metadata.sorted_tables:
            columns = {c["name"]: (c["nullable"], str(c["type"]).split("(")[0]) for c in found.get_columns(table.name)}
            expected = {c.name: (bool(c.nullable), str(c.type).split("(")[0]) for c in table.columns}
            assert columns.keys() == expected.keys(), table.name
            assert {n: v[0] for n, v in columns.items()} == {n: v[0] for n, v in expected.items()}, table.name
            indexed = {tuple(i["column_names"]) for i in found.get_indexes(table.name) if not i.get("unique")}
            assert {tuple(c.name for c in i.columns) for i in table.indexes} <= indexed, table.name
