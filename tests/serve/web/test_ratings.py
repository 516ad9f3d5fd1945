"""POST /api/rating and DELETE /api/ratings through the real app."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serve.test_app import RATING, rate
from twllm.artifact import fingerprint
from twllm.feedback.store import RatingStore
from twllm.feedback.tables import consents
from twllm.serve.operation.service import ServeSettings

USER = "0123456789abcdef" * 2


def stored(database: Path) -> list[Any]:
    with RatingStore(database, create=False) as store:
        return list(store.latest())


def test_reason_chat_and_a_second_word(client: TestClient, database: Path) -> None:
    rate(client, user=USER, chat_id="cc" * 16)
    rate(client, user=USER, chat_id="cc" * 16, reason="local", comment="道地", rating=1)
    rate(client, user=USER, conversation_id="c2", reason="no such reason", rating=-1)
    first, second = stored(database)
    assert (first.id, first.reason, first.comment, first.chat_id) == (2, "local", "道地", "cc" * 16)
    assert (second.reason, second.rating) == ("other", -1)
    assert first.user_hash == second.user_hash and len(first.user_hash) == 32 and first.user_hash != USER


def test_a_rating_names_the_model_that_answered_and_unknown_names_the_default(
    client: TestClient, database: Path
) -> None:
    rate(client, model="玉山-tiny")
    rate(client, model="no such", conversation_id="c2")
    assert {row.model for row in stored(database)} == {"玉山-tiny"}


def test_consent_is_kept_with_what_was_agreed_to(client: TestClient, database: Path) -> None:
    rate(client, user=USER, consent=True)
    rate(client, user=USER, consent=False)
    with RatingStore(database) as store, store.reading() as connection:
        rows = [(row.consent, row.text) for row in connection.execute(consents.select())]
    agreed_to = fingerprint(ServeSettings().consent_text)
    assert rows == [(True, agreed_to), (False, agreed_to)]


def test_a_browser_erases_its_own_ratings_and_no_others(client: TestClient, database: Path) -> None:
    rate(client, user=USER, messages=[{"role": "user", "content": "我的秘密問題"}, *RATING["messages"][1:]])
    rate(client, user="f" * 32)
    assert client.request("DELETE", "/api/ratings", json={"user": USER}).json() == {"deleted": 1}
    assert client.request("DELETE", "/api/ratings", json={"user": USER}).json() == {"deleted": 0}
    assert len(stored(database)) == 1
    everything = b"".join(file.read_bytes() for file in database.parent.glob("ratings.db*"))
    assert "我的秘密問題".encode() not in everything


@pytest.mark.parametrize("body", [{}, {"user": ""}, {"user": "x" * 300}, {"user": None}])
def test_erasing_needs_a_number(client: TestClient, body: dict[str, Any]) -> None:
    response = client.request("DELETE", "/api/ratings", content=json.dumps(body))
    assert response.status_code == 400 and response.json()["error"]["message"]
