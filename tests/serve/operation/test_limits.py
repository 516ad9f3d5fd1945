"""Bodies, places, queue, time limits: who is refused, in which shape, and what is free again afterwards."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.conftest import ANSWER, ScriptedEngine
from tests.serve.operation.live import ASK, CHAT, Live, live, until
from twllm.feedback.store import RatingStore
from twllm.serve.engines.torch.engine import TorchEngine
from twllm.serve.operation import lifecycle
from twllm.serve.operation.places import Full, Places
from twllm.serve.operation.service import ServeSettings, Service

Serve = Callable[..., Live]


@pytest.fixture
def serve(scripted: ScriptedEngine, database: Path) -> Iterator[Serve]:
    """Start a server with other settings."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(**settings: Any) -> Live:
            service = Service.single(scripted, RatingStore(database), "玉山-tiny", ServeSettings(**settings))
            return stack.enter_context(live(service))

        yield start


def text_of(response: httpx.Response) -> str:
    events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    return "".join(c["delta"].get("content") or "" for event in events for c in event.get("choices", []))


# -- places ---------------------------------------------------------------------------------------------------------


def test_places_go_to_the_poorest_caller_and_everything_is_given_back() -> None:
    async def scene() -> list[str]:
        places, order = Places(running=2, waiting=8), []

        async def caller(name: str) -> None:
            if not places.try_take(name):
                await places.wait(name, 5)
            with places.held(name):
                order.append(name)
                await asyncio.sleep(0.01)

        greedy = [asyncio.create_task(caller("greedy")) for _ in range(6)]
        await asyncio.sleep(0)
        await asyncio.gather(*greedy, *(asyncio.create_task(caller(name)) for name in ("a", "b")))
        assert (places.num_running, places.num_waiting, places.waiting, places.running) == (0, 0, {}, {})
        return order

    order = asyncio.run(scene())
    assert order[:2] == ["greedy", "greedy"]
    assert set(order[2:4]) == {"a", "b"}  # before the four that were there first


def test_full_queue_makes_room_for_newcomers_only() -> None:
    async def scene() -> None:
        places = Places(running=1, waiting=3)
        assert places.try_take("greedy")
        waiting = [asyncio.create_task(places.wait("greedy", 5)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Full):
            await places.wait("greedy", 5)
        newcomer = asyncio.create_task(places.wait("new", 5))
        await asyncio.sleep(0.01)
        with pytest.raises(Full):
            waiting[2].result()
        assert (places.num_waiting, newcomer.done()) == (3, False)
        with pytest.raises(Full):  # it has a place in the queue already
            await places.wait("new", 5)
        newcomer.cancel()
        waiting[0].cancel()
        await asyncio.sleep(0.01)
        assert places.num_waiting == 1
        places.give_back("greedy")
        await waiting[1]
        places.give_back("greedy")
        assert (places.num_running, places.num_waiting) == (0, 0)

    asyncio.run(scene())


def test_a_wait_cancelled_in_the_moment_it_is_granted_gives_the_place_back() -> None:
    async def scene() -> None:
        places = Places(running=1, waiting=1)
        assert places.try_take("a")
        waiting = asyncio.create_task(places.wait("b", 5))
        await asyncio.sleep(0)
        places.give_back("a")  # grants it to b
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert places.num_running == 0

    asyncio.run(scene())


def test_limit_of_one_caller() -> None:
    places = Places(running=9, waiting=9, per_client=2)
    assert places.try_take("a")
    assert places.try_take("a")
    with pytest.raises(Full):
        places.try_take("a")
    assert places.try_take("b")


# -- the queue over HTTP --------------------------------------------------------------------------------------------


def test_more_than_fit_are_refused_and_the_others_are_answered_in_turn(scripted: ScriptedEngine, serve: Serve) -> None:
    scripted.delay_s = 0.01
    server = serve(max_running=2, max_waiting=3)
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda _: server.post(CHAT), range(12)))
    answered = [response for response in found if response.status_code == 200]
    refused = [response for response in found if response.status_code == 429]
    assert len(answered) + len(refused) == 12
    assert len(answered) >= 5
    assert refused
    assert all(response.json()["choices"][0]["message"]["content"] == ANSWER for response in answered)
    for response in refused:
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert response.json()["error"]["code"] == "overloaded"
    metrics = server.get("/metrics").text
    assert f'tgi_request_failure{{err="overloaded"}} {len(refused)}.0' in metrics
    assert f"tgi_request_success {len(answered)}.0" in metrics
    until(lambda: server.service.places.num_running == 0)


def test_refusal_on_a_tgi_route_has_tgis_shape(scripted: ScriptedEngine, serve: Serve) -> None:
    scripted.delay_s = 0.02
    server = serve(max_running=1, max_waiting=0)
    with server.stream() as first:
        lines = first.iter_lines()  # kept: dropping it would close the stream
        next(lines)
        refused = server.post("/generate", {"inputs": "玉山"})
        assert (refused.status_code, refused.json()) == (
            429, {"error": "Model is overloaded", "error_type": "overloaded"},
        )  # fmt: skip


def test_waited_too_long(scripted: ScriptedEngine, serve: Serve) -> None:
    scripted.delay_s = 0.05
    server = serve(max_running=1, queue_timeout_s=0.1)
    with server.stream() as first:
        lines = first.iter_lines()  # kept: dropping it would close the stream
        next(lines)
        late = server.post(CHAT)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "queue_timeout")


def test_who_leaves_the_queue_or_the_stream_frees_the_place(scripted: ScriptedEngine, serve: Serve) -> None:
    scripted.delay_s = 0.03
    server = serve(max_running=1)
    places = server.service.places
    with server.stream() as first:
        lines = first.iter_lines()  # kept: dropping it would close the stream
        next(lines)
        with pytest.raises(httpx.ReadTimeout):
            server.post(CHAT, timeout=0.2)
        until(lambda: places.num_waiting == 0)
        assert places.num_running == 1
    until(lambda: places.num_running == 0 and scripted.load() == (0, 0))
    assert scripted.cancelled.is_set()


def test_disconnect_frees_the_engine(tiny_checkpoint: Path, database: Path) -> None:
    engine = TorchEngine(tiny_checkpoint, threads=1)
    with live(Service.single(engine, RatingStore(database), "tiny")) as server:
        body = {**ASK, "stream": True, "max_tokens": 200, "temperature": 1.0, "seed": 1, "ignore_eos": True}
        streams = [server.http.stream("POST", CHAT, json=body) for _ in range(3)]
        lines = [stream.__enter__().iter_lines() for stream in streams]
        for each in lines:
            next(each)
        assert sum(engine.load()) == server.service.places.num_running == 3
        for stream in streams:
            stream.__exit__(None, None, None)
        until(lambda: sum(engine.load()) == 0)
        assert server.service.places.num_running == 0


def test_time_limit_ends_an_answer_and_a_stream(scripted: ScriptedEngine, serve: Serve) -> None:
    scripted.delay_s = 0.05
    server = serve(request_timeout_s=0.25)
    whole = server.post(CHAT)
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "timeout")
    with server.stream() as streamed:
        assert streamed.status_code == 200
        lines = [line for line in streamed.iter_lines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "timeout"
    assert scripted.cancelled.wait(3)
    until(lambda: server.service.places.num_running == 0)


# -- bodies ---------------------------------------------------------------------------------------------------------


def test_large_bodies_are_refused_announced_or_chunked(serve: Serve) -> None:
    server = serve(max_body_bytes=2000)
    big = json.dumps({"messages": [{"role": "user", "content": "長" * 1000}]}).encode()
    headers = {"Content-Type": "application/json"}
    announced = server.http.post(CHAT, content=big, headers=headers)
    chunked = server.http.post(CHAT, content=(big[i : i + 500] for i in range(0, len(big), 500)), headers=headers)
    rating = server.http.post("/api/rating", content=big, headers=headers)
    for response in (announced, chunked, rating):
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    tgi = server.http.post("/generate", content=big, headers=headers)
    assert tgi.json()["error_type"] == "body"
    small = json.dumps(ASK).encode()
    assert (
        server.http.post(CHAT, content=(small[i : i + 7] for i in range(0, len(small), 7)), headers=headers).status_code
        == 200
    )


def test_slow_heads_and_bodies_are_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "HEADER_TIMEOUT_S", 0.3)
    monkeypatch.setattr("twllm.serve.operation.limits.BODY_TIMEOUT_S", 0.3)
    server = serve()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n")
        assert slow.recv(100) == b""
    with socket.create_connection((host, int(port)), timeout=5) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        assert slow.recv(12) == b"HTTP/1.1 408"


def test_many_streams_at_once_are_each_whole(scripted: ScriptedEngine, serve: Serve) -> None:
    scripted.script = lambda prompt: prompt[-8:] + ANSWER
    server = serve(max_running=8, max_waiting=40)
    answers: list[tuple[int, str]] = []
    lock = threading.Lock()

    def one(number: int) -> None:
        body = {"messages": [{"role": "user", "content": f"第{number}題"}], "stream": True}
        with server.http.stream("POST", CHAT, json=body) as response:
            text = text_of(response)
        with lock:
            answers.append((number, text))

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(one, range(32)))
    expected = {n: server.post(CHAT, {"messages": [{"role": "user", "content": f"第{n}題"}]}) for n in (0, 31)}
    for number, response in expected.items():
        assert dict(answers)[number] == response.json()["choices"][0]["message"]["content"]
    assert all(text.endswith(ANSWER) for _, text in answers)
