"""API keys: made, listed, revoked, asked for where they must be; scopes, requests a minute, tokens a day; CORS."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from tests.serve.conftest import ScriptedEngine
from tests.serve.operation.live import ASK, CHAT
from twllm.cli import app as cli
from twllm.errors import UserError
from twllm.feedback.access import AccessStore, day, digest, minute
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.operation import auth
from twllm.serve.operation.paths import scope_of
from twllm.serve.operation.service import ServeSettings, Service
from twllm.serve.start import check_keys

Serve = Callable[..., TestClient]
RATING = {
    "conversation_id": "c1",
    "turn": 1,
    "rating": 1,
    "messages": [{"role": "user", "content": "玉山多高？"}, {"role": "assistant", "content": "3,952 公尺。"}],
}


@pytest.fixture
def store(database: Path) -> Iterator[AccessStore]:
    with RatingStore(database) as opened:
        yield AccessStore(opened)


@pytest.fixture
def serve(scripted: ScriptedEngine, database: Path) -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(**settings: Any) -> TestClient:
            service = Service.single(scripted, RatingStore(database), "玉山-tiny", ServeSettings(**settings))
            return stack.enter_context(TestClient(create_app(service), raise_server_exceptions=False))

        yield start


def call(client: TestClient, key: str, path: str = CHAT, body: Any = None, method: str = "POST") -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return client.request(method, path, json=(body or ASK) if method == "POST" else None, headers=headers)


def test_keys_are_random_hashed_and_shown_once(store: AccessStore, database: Path) -> None:
    first, second = store.add("林小姐"), store.add("陳先生", ["generate"], rate_per_minute=5, days=1)
    assert len({first, second}) == 2
    assert len(first) >= len("twllm-") + 43  # 256 bits
    raw = database.read_bytes() + Path(f"{database}-wal").read_bytes()
    assert first.encode() not in raw
    assert digest(first).encode() in raw
    one, two = store.all()
    assert (one.name, one.scopes, one.expires, first.startswith(one.shown)) == (
        "林小姐",
        {"generate", "rate"},
        "",
        True,
    )
    assert (two.rate_per_minute, two.scopes) == (5, {"generate"})
    assert two.valid(datetime.now(UTC))
    assert not two.valid(datetime.now(UTC) + timedelta(days=2))
    assert store.find(first) == one
    assert store.find(first + "x") is None
    store.revoke("林小姐")
    revoked = store.find(first)
    assert revoked is not None
    assert not revoked.valid(datetime.now(UTC))
    assert store.add("林小姐") != first  # the name is free again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "bad name"),
        ({"name": "a\nb"}, "bad name"),
        ({"name": "長" * 65}, "bad name"),
        ({"name": "a", "scopes": ["genrate"]}, "no such scope"),
        ({"name": "a", "scopes": []}, "bad limits"),
        ({"name": "a", "rate_per_minute": -1}, "bad limits"),
        ({"name": "有了"}, "name in use"),
    ],
)
def test_bad_keys_are_refused(store: AccessStore, arguments: dict[str, Any], message: str) -> None:
    store.add("有了")
    with pytest.raises(UserError, match=message):
        store.add(**arguments)
    with pytest.raises(UserError, match="no such key"):
        store.revoke("沒有")
    assert len(store.all()) == 1


def test_commands(database: Path) -> None:
    run = CliRunner().invoke
    made = run(cli, ["keys", "add", "lab", "--db", str(database), "--scope", "admin", "--tokens", "1000"])
    assert made.exit_code == 0
    key = made.stdout.strip()
    listed = run(cli, ["keys", "list", "--db", str(database)], env={"COLUMNS": "200"})
    assert "lab" in listed.stdout
    assert "admin" in listed.stdout
    assert key not in listed.stdout
    assert run(cli, ["keys", "revoke", "lab", "--db", str(database)]).exit_code == 0
    assert "revoked" in run(cli, ["keys", "list", "--db", str(database)], env={"COLUMNS": "200"}).stdout


def test_without_keys_everything_is_open(serve: Serve) -> None:
    assert call(serve(), "").status_code == 200


def test_one_key_for_everything(serve: Serve) -> None:
    client = serve(api_key="one-key")
    for path in ("/health", "/live", "/ready", "/ping", "/", "/api/config", "/metrics"):
        assert client.get(path).status_code == 200, path
    for path in (CHAT, "/v1/completions", "/tokenize", "/api/rating"):
        for wrong in ("", "x", "one-ke", "one-key2"):
            assert call(client, wrong, path).status_code == 401, path
    assert client.post(CHAT, json=ASK, headers={"Authorization": "Basic one-key"}).status_code == 401
    assert client.post(f"{CHAT}?api_key=one-key", json=ASK).status_code == 401
    assert client.post(CHAT, json=ASK, headers=[(b"Authorization", b"Bearer \xe7\xa5\xff")]).status_code == 401
    assert call(client, "", "/v1/models", method="GET").status_code == 401
    refused = call(client, "wrong")
    assert refused.json()["error"] == {
        "message": "需要有效的 API 金鑰 (invalid API key)", "type": "invalid_request_error", "param": None, "code": "invalid_api_key",
    }  # fmt: skip
    assert refused.headers["www-authenticate"] == "Bearer"
    assert call(client, "", "/generate", {"inputs": "a"}).content == b""  # TGI's 401
    assert call(client, "one-key").status_code == 200
    assert call(client, "one-key", "/v1/models", method="GET").status_code == 200


def test_named_keys_scopes_and_revocation(serve: Serve, store: AccessStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "CACHE_S", 0.0)
    client = serve(require_keys=True, metrics_key=True)
    asks, rates = store.add("ask", ["generate"]), store.add("rate", ["rate"])
    admin, watches = store.add("admin", ["admin"]), store.add("watch", ["metrics"])
    assert [call(client, key).status_code for key in (asks, rates, admin, watches)] == [200, 403, 200, 403]
    found = [call(client, key, "/api/rating", RATING).status_code for key in (asks, rates, admin)]
    assert found == [403, 200, 200]
    metrics = [
        client.get("/metrics", headers={"Authorization": f"Bearer {k}"}).status_code for k in (asks, watches, admin)
    ]
    assert metrics == [403, 200, 200]
    store.revoke("ask")
    assert call(client, asks).status_code == 401


def test_expired_keys(serve: Serve, store: AccessStore) -> None:
    client = serve(require_keys=True)
    key = store.add("short", days=0.000001)
    import time

    time.sleep(1.1)
    assert call(client, key).status_code == 401


def test_requests_per_minute_are_counted_for_all_gateways(serve: Serve, store: AccessStore) -> None:
    key = store.add("slow", rate_per_minute=3)
    clients = [serve(require_keys=True), serve(require_keys=True)]
    started = minute(datetime.now(UTC))
    found = [call(clients[i % 2], key) for i in range(5)]
    if minute(datetime.now(UTC)) != started:
        pytest.skip("the minute ended in the middle")
    assert [response.status_code for response in found] == [200, 200, 200, 429, 429]
    assert found[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(found[-1].headers["retry-after"]) <= 60


def test_tokens_per_day(serve: Serve, store: AccessStore) -> None:
    key = store.add("small", tokens_per_day=40)
    client = serve(require_keys=True)
    usage = call(client, key, body={**ASK, "max_tokens": 30}).json()["usage"]
    (access,) = store.all()
    assert store.used(access, day(datetime.now(UTC))) == usage["total_tokens"]
    if usage["total_tokens"] < 40:
        call(client, key)
    refused = call(client, key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")


def test_old_minutes_are_forgotten(store: AccessStore) -> None:
    store.add("a", rate_per_minute=3)
    (access,) = store.all()
    now = datetime(2026, 11, 25, 4, 12, tzinfo=UTC)
    assert [store.use(access, minute(now), 1) for _ in range(2)] == [1, 2]
    store.use(access, day(now), 50)
    assert store.use(access, minute(now + timedelta(minutes=1)), 1) == 1
    assert store.used(access, minute(now)) == 0
    assert store.used(access, day(now)) == 50


def test_a_server_that_nobody_could_use_does_not_start(database: Path) -> None:
    with RatingStore(database) as opened:
        settings = ServeSettings(require_keys=True)
        with pytest.raises(UserError, match="no API keys"):
            check_keys(opened, settings)
        AccessStore(opened).add("a")
        check_keys(opened, settings)
        for key in ("祕密", "two words", "line\n"):
            with pytest.raises(UserError, match="printable ASCII"):
                check_keys(opened, ServeSettings(api_key=key))


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", CHAT, "generate"),
        ("POST", "/", "generate"),
        ("GET", "/", None),
        ("GET", "/v1/models", "generate"),
        ("POST", "/api/arena/vote", "rate"),
        ("DELETE", "/api/ratings", "rate"),
        ("GET", "/api/leaderboard", None),
        ("OPTIONS", CHAT, None),
        ("GET", "/api/admin/x", "admin"),
        ("POST", "/no/such/route", "generate"),
        ("GET", "/metrics", None),
    ],
)
def test_what_needs_which_scope(method: str, path: str, scope: str | None) -> None:
    assert scope_of(method, path) == scope


def test_cors_only_for_the_named_pages(serve: Serve) -> None:
    client = serve(api_key="k", cors_origins=("https://a.tw",))
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed = client.options(CHAT, headers={"Origin": "https://a.tw", **ask})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://a.tw")
    other = client.options(CHAT, headers={"Origin": "https://b.tw", **ask})
    assert "access-control-allow-origin" not in other.headers
    refused = client.post(CHAT, json=ASK, headers={"Origin": "https://a.tw"})  # the page must be able to read the 401
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://a.tw")
    assert "access-control-allow-origin" not in serve().get("/v1/models", headers={"Origin": "https://a.tw"}).headers
