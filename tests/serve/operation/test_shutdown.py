"""Warm-up and readiness; an end that finishes answers, tells newcomers, loses no rating; kill -9 in the middle of ratings."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from tests.serve.conftest import ANSWER, ScriptedEngine
from tests.serve.operation.live import CHAT, live, until
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.operation import lifecycle
from twllm.serve.operation.service import ServeSettings, Service

RATING = {
    "conversation_id": "c1",
    "turn": 1,
    "rating": 1,
    "messages": [{"role": "user", "content": "玉山多高？"}, {"role": "assistant", "content": "3,952 公尺。"}],
}


def text_of(lines: list[str]) -> str:
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(c["delta"].get("content") or "" for event in events for c in event.get("choices", []))


def test_ready_after_a_warm_up_and_live_all_the_time(scripted: ScriptedEngine, database: Path) -> None:
    scripted.delay_s = 0.1
    service = Service.single(scripted, RatingStore(database), "tiny", ServeSettings(warm_up=True))
    with TestClient(create_app(service)) as client:
        early = client.get("/ready")
        assert (early.status_code, early.json()["status"]) == (503, "warming up")
        assert client.get("/live").status_code == 200
        until(lambda: client.get("/ready").status_code == 200)
        assert scripted.seen[0].max_tokens == lifecycle.WARM_UP_TOKENS


def test_warm_up_is_tried_again(scripted: ScriptedEngine, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "RETRY_S", 0.05)
    scripted.fail_after = 1
    service = Service.single(scripted, RatingStore(database), "tiny", ServeSettings(warm_up=True))
    with TestClient(create_app(service)) as client:
        until(lambda: len(scripted.seen) > 2)
        assert client.get("/ready").status_code == 503
        scripted.fail_after = None
        until(lambda: client.get("/ready").status_code == 200)


def test_a_dead_engine_is_neither_live_nor_ready_a_dead_remote_one_is_live(
    scripted: ScriptedEngine, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TestClient(create_app(Service.single(scripted, RatingStore(database), "tiny"))) as client:
        monkeypatch.setattr(scripted, "alive", lambda: False)
        assert [client.get(path).status_code for path in ("/live", "/ready")] == [503, 503]
        monkeypatch.setattr(scripted, "remote", True, raising=False)
        assert [client.get(path).status_code for path in ("/live", "/ready")] == [200, 503]


def test_draining_finishes_answers_and_refuses_new_ones(scripted: ScriptedEngine, database: Path) -> None:
    scripted.delay_s = 0.02
    with live(Service.single(scripted, RatingStore(database), "tiny")) as server:
        assert server.get("/ready").status_code == 200
        with server.stream() as running:
            lines = running.iter_lines()
            seen = [next(lines)]
            server.server.handle_exit(signal.SIGTERM, None)
            assert (server.get("/ready").status_code, server.get("/live").status_code) == (503, 200)
            for path, body in ((CHAT, None), ("/generate", {"inputs": "a"})):
                refused = server.post(path, body)
                assert refused.status_code == 503
                assert "retry-after" in refused.headers
            rated = server.post("/api/rating", RATING)
            assert rated.json()["stored"]
            seen += list(lines)
        assert text_of(seen) == ANSWER
        assert seen[-2:] == ["data: [DONE]", ""] or "data: [DONE]" in seen
        server.thread.join(5)
        assert not server.thread.is_alive()
    with RatingStore(database) as store:
        assert store.clicks() == 1


def test_who_waits_when_it_drains_is_told(scripted: ScriptedEngine, database: Path) -> None:
    scripted.delay_s = 0.02
    service = Service.single(scripted, RatingStore(database), "tiny", ServeSettings(max_running=1))
    with live(service) as server, server.stream() as running, ThreadPoolExecutor(1) as pool:
        lines = running.iter_lines()
        next(lines)
        waiting = pool.submit(server.post, CHAT)
        until(lambda: server.service.places.num_waiting == 1)
        server.server.handle_exit(signal.SIGTERM, None)
        assert "data: [DONE]" in list(lines)
        assert (waiting.result().status_code, waiting.result().json()["error"]["code"]) == (503, "shutting_down")


def test_after_the_grace_period_streams_end_with_an_event(scripted: ScriptedEngine, database: Path) -> None:
    scripted.delay_s = 0.2
    service = Service.single(scripted, RatingStore(database), "tiny", ServeSettings(grace_s=0.3))
    with live(service) as server:
        with server.stream() as running:
            lines = running.iter_lines()
            next(lines)
            server.server.handle_exit(signal.SIGTERM, None)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        server.thread.join(5)
        assert not server.thread.is_alive()
        assert scripted.cancelled.is_set()


def test_second_signal_ends_at_once(scripted: ScriptedEngine, database: Path) -> None:
    scripted.delay_s = 0.2
    with live(Service.single(scripted, RatingStore(database), "tiny", ServeSettings(grace_s=60))) as server:
        with suppress(httpx.HTTPError), server.stream() as running:
            lines = running.iter_lines()
            next(lines)
            server.server.handle_exit(signal.SIGTERM, None)
            time.sleep(0.15)
            assert server.thread.is_alive()
            server.server.handle_exit(signal.SIGTERM, None)
            server.thread.join(3)
        assert not server.thread.is_alive()


# -- processes of their own ---------------------------------------------------------------------------

COMMAND = "import sys; from twllm.cli import main; sys.argv[0] = 'twllm'; main()"
RATED = """
import sys
from pathlib import Path
from tests.serve.conftest import ScriptedEngine
from twllm.feedback.store import RatingStore
from twllm.serve.operation.service import Service
from twllm.serve.start import bind, run
from twllm.tokens.tokenizer import ChatTokenizer

engine = ScriptedEngine(ChatTokenizer.load(Path(sys.argv[1])), str)
with bind("127.0.0.1", 0) as server:
    print(f"API http://127.0.0.1:{server.getsockname()[1]}", flush=True)
    run(Service.single(engine, RatingStore(sys.argv[2]), "tiny"), server)
"""


class Process:
    """A server in a process; its address is in the first line that says API."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
        assert self.process.stdout is not None
        line = next((line for line in self.process.stdout if "API" in line), None)
        assert line, self.process.stderr.read() if self.process.stderr else ""
        self.url = next(word for word in line.replace("：", " ").split() if word.startswith("http")).rstrip("/")

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=10)


def test_kill_9_during_ratings_loses_none_that_was_acknowledged(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A smaller copy of `benchmarks/serve_load.py --ratings`, which does 10,000."""
    database = tmp_path / "ratings.db"
    acknowledged: list[int] = []
    started = threading.Event()
    with Process([sys.executable, "-c", RATED, str(tiny_checkpoint), str(database)]) as server:

        async def rate() -> None:
            async with httpx.AsyncClient(base_url=server.url, timeout=20, verify=False) as http:

                async def one(worker: int) -> None:
                    for number in range(1000):
                        body: dict[str, Any] = {**RATING, "conversation_id": f"c{worker}-{number}"}
                        found = (await http.post("/api/rating", json=body)).json()
                        acknowledged.append(found["id"])
                        if len(acknowledged) >= 100:
                            started.set()

                with suppress(httpx.HTTPError):
                    await asyncio.gather(*(one(worker) for worker in range(8)))

        raters = threading.Thread(target=lambda: asyncio.run(rate()))
        raters.start()
        assert started.wait(30)
        server.process.kill()  # SIGKILL
        raters.join(10)
    with RatingStore(database) as store:
        stored = [rating.id for rating in store.latest()]
    assert len(acknowledged) >= 100
    assert len(set(acknowledged)) == len(acknowledged)
    assert set(acknowledged) <= set(stored)
    assert len(stored) - len(acknowledged) <= 8  # stored, but the answer did not arrive any more


def test_sigterm_ends_in_order_with_code_0_and_json_logs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    database = tmp_path / "ratings.db"
    options = ["--port", "0", "--db", str(database), "--threads", "1", "--engine", "torch", "--log-format", "json"]
    with Process([sys.executable, "-X", "utf8", "-c", COMMAND, "serve", str(tiny_checkpoint), *options]) as server:
        http = httpx.Client(base_url=server.url, timeout=20, verify=False)
        with http:
            until(lambda: http.get("/ready").status_code == 200, 20)
            body = {"messages": [{"role": "user", "content": "你好"}], "max_tokens": 60, "stream": True}
            with http.stream("POST", CHAT, json=body) as running:
                lines = running.iter_lines()
                next(lines)
                server.process.send_signal(signal.SIGTERM)
                assert "data: [DONE]" in list(lines)
        _, logged = server.process.communicate(timeout=15)
        assert server.process.returncode == 0
    rows = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
    assert [row for row in rows if row["event"] == "request" and row["path"] == CHAT and row["status"] == 200]
    assert any("draining" in row["event"] for row in rows)
