"""Ratings through the app, the page's files, and what `serve` checks before it loads a model."""

import json
import re
import socket
import sqlite3
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from tests.serve.conftest import ScriptedEngine
from twllm.errors import UserError
from twllm.feedback.store import RatingStore
from twllm.serve.start import bind, serve
from twllm.serve.web.pages import WEB

RATING = {
    "conversation_id": "c1",
    "turn": 1,
    "rating": 1,
    "consent": True,
    "user": "隨機編號",
    "messages": [{"role": "user", "content": "玉山多高？"}, {"role": "assistant", "content": "3,952 公尺。"}],
}


def rate(client: TestClient, **change: Any) -> httpx.Response:
    body = json.dumps({**RATING, **change})  # not json=: it cannot send the lone surrogate of one test below
    return client.post("/api/rating", content=body, headers={"Content-Type": "application/json"})


def test_rating_is_stored_with_model_and_template(client: TestClient, database: Path, scripted: ScriptedEngine) -> None:
    response = rate(client, comment="很好！", rating=-1)
    assert (response.status_code, response.json()) == (200, {"stored": True, "id": 1})
    (row,) = RatingStore(database, create=False).latest()
    assert (row.conversation_id, row.turn, row.rating, row.consent, row.comment) == ("c1", 1, -1, True, "很好！")
    assert row.messages == RATING["messages"]
    assert (row.model, row.model_fingerprint) == ("玉山-tiny", "feedbeef00000001")
    assert row.template_fingerprint == scripted.tokenizer.template_fingerprint
    assert row.user_hash
    assert "隨機編號".encode() not in database.read_bytes() + Path(f"{database}-wal").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"rating": 0},
        {"rating": 2},
        {"rating": None},
        {"turn": -1},
        {"conversation_id": ""},
        {"conversation_id": "x" * 65},
        {"comment": "長" * 4001},
        {"comment": "\ud800"},
        {"messages": []},
        {"messages": RATING["messages"][:1]},
        {"messages": RATING["messages"] * 2 + RATING["messages"][:1]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]},
        {"messages": [{"role": "user", "content": "長" * 200_000}, RATING["messages"][1]]},
        {"messages": [{"role": "tool", "content": "a"}, RATING["messages"][1]]},
    ],
)
def test_bad_ratings_are_refused_and_not_stored(client: TestClient, database: Path, change: dict[str, Any]) -> None:
    response = rate(client, **change)
    assert response.status_code == 400
    assert response.json()["error"]["message"]
    assert RatingStore(database).clicks() == 0


def test_a_rating_that_cannot_be_stored_is_not_acknowledged(client: TestClient, database: Path) -> None:
    connection = sqlite3.connect(database)
    connection.execute("DROP TABLE ratings")
    connection.close()
    response = rate(client)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "not_stored"
    assert "sqlite" not in response.text.lower()


def test_config_for_the_page(client: TestClient) -> None:
    config = client.get("/api/config").json()
    assert (config["model"], config["context"], config["temperature"]) == ("玉山-tiny", 400, 0.0)


def test_page_and_its_files_are_served_and_ask_nobody_else(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert 'lang="zh-Hant-TW"' in page.text
    for file in (file for file in WEB.rglob("*") if file.is_file()):
        assert client.get(f"/{file.relative_to(WEB).as_posix()}").status_code == 200
        if file.suffix not in (".html", ".css", ".js"):
            continue
        text = re.sub(r"http://www\.w3\.org/[\w/]+", "", file.read_text(encoding="utf-8"))  # names, never fetched
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text


def test_port_in_use_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError) as refused:
            serve([tmp_path], port=port, db=str(tmp_path / "r.db"))
    assert str(port) in refused.value.what
    assert f"--port {port + 1}" in refused.value.fix
    assert not (tmp_path / "r.db").exists()


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 0), ("203.0.113.7", 0), ("127.0.0.1", 99999)])
def test_addresses_that_cannot_be_bound(host: str, port: int) -> None:
    with pytest.raises(UserError):
        bind(host, port)


def test_bad_database_and_missing_model_are_told(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("這不是資料庫" * 200)
    with pytest.raises(UserError, match="database"):
        serve([tmp_path], port=0, db=str(tmp_path / "text.db"))
    with pytest.raises(UserError, match="no such model folder"):
        serve([tmp_path / "no" / "model"], port=0, db=str(tmp_path / "no" / "r.db"))
    assert not (tmp_path / "no").exists()


def test_serve_answers_rates_and_stops(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The whole command in a process of its own, killed hard right after a rating was acknowledged."""
    code = "import sys, pathlib; from twllm.serve.start import serve;serve([sys.argv[1]], port=0, db=sys.argv[2])"
    database = tmp_path / "deep" / "ratings.db"
    command = [sys.executable, "-X", "utf8", "-c", code, str(tiny_checkpoint), str(database)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "API" in line)
        address = next(word for word in line.replace("：", " ").split() if word.endswith("/"))
        assert urllib.parse.urlsplit(address).port
        try:
            body = {"messages": [{"role": "user", "content": "你好"}], "max_tokens": 5}
            answer = httpx.post(f"{address}v1/chat/completions", json=body, timeout=30)
            assert answer.status_code == 200
            acknowledged = httpx.post(f"{address}api/rating", json=RATING, timeout=30).json()
        finally:
            process.kill()
    assert acknowledged == {"stored": True, "id": 1}
    (row,) = RatingStore(database, create=False).latest()
    assert row.messages == RATING["messages"]
    assert row.model == tiny_checkpoint.name
