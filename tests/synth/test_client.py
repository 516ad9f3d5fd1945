"""Requests against a real local server: retried, paced, paid once, given up, and when the whole run has to end."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.synth.conftest import MakeClient
from tests.synth.fault_server import FaultServer, Reply, completion
from twllm.errors import UserError
from twllm.synth.cache import Cache
from twllm.synth.client import Client, RequestFailed
from twllm.synth.config import BudgetConfig
from twllm.synth.endpoint import Answer, address, answer_of, public_url, usage_of
from twllm.synth.limits import RateLimit, Stopped, seconds_of

OVERLOADED = {"error": {"message": "overloaded"}}
FAULTS = {
    "500": Reply(status=500, raw=OVERLOADED),
    "503": Reply(status=503, raw="<html>"),
    "408": Reply(status=408, raw=OVERLOADED),
    "409": Reply(status=409, raw=OVERLOADED),
    "429": Reply(status=429, raw=OVERLOADED),
    "reset": Reply(how="reset"),
    "cut": Reply("半個", how="cut"),
    "slow": Reply("太慢", how="slow"),
    "broken": Reply(raw='{"choices": ['),
    "error in 200": Reply(raw=OVERLOADED),
    "no choices": Reply(raw={"choices": []}),
    "no message": Reply(raw={"choices": [{"index": 0}]}),
    "a list": Reply(raw=[1, 2]),
}


def ask(
    make: MakeClient, server: FaultServer, questions: list[str], at_once: int = 1, **more: Any
) -> tuple[list[Any], Client]:
    """Answers (or what was raised) to the questions, `at_once` at a time."""

    async def go() -> tuple[list[Any], Client]:
        client = make(server.url, concurrency=at_once, **more)
        left, results = list(enumerate(questions)), dict[int, Any]()

        async def worker() -> None:
            while left:
                at, question = left.pop(0)
                try:
                    results[at] = await client.ask([{"role": "user", "content": question}], max_tokens=50)
                except (UserError, RequestFailed, Stopped) as error:
                    results[at] = error

        await asyncio.gather(*(worker() for _ in range(at_once)))
        await client.close()
        return [results[at] for at in sorted(results)], client

    return asyncio.run(go())


@pytest.mark.parametrize("name", FAULTS)
def test_a_passing_fault_is_retried_and_the_answer_paid_once(name: str, make_client: MakeClient, cache: Cache) -> None:
    def script(body: dict[str, Any], before: int) -> Reply:
        return FAULTS[name] if before < 2 else Reply("好，沒問題。")

    with FaultServer(script) as server:
        (answer,), client = ask(make_client, server, ["嗨"], timeout_s=0.5 if name == "slow" else 5.0)
        assert answer == Answer("好，沒問題。", "stop")
        assert (server.seen.total(), server.answered.total()) == (3, 1)
        (again,), _ = ask(make_client, server, ["嗨"])
        assert again == answer
        assert server.seen.total() == 3  # from the cache
        keys = {headers["Idempotency-Key"] for headers in server.headers}
    assert cache.paid() == (1, 6)
    maybe_paid = name in ("reset", "cut", "slow", "broken", "error in 200", "no choices", "no message", "a list")
    assert cache.unknown() == ((38, 100) if maybe_paid else (0, 0))  # twice 3 bytes + 16, twice 50 tokens
    assert len(keys) == (1 if maybe_paid else 3)  # the same request again, or a new one
    assert client.budget.tokens_out == 6 + (100 if maybe_paid else 0)


def test_a_failure_of_one_request_is_given_up_and_remembered(make_client: MakeClient, cache: Cache) -> None:
    def script(body: dict[str, Any], before: int) -> Reply:
        if body["messages"][0]["content"] == "壞":
            return Reply(status=500, raw=OVERLOADED)
        if body["messages"][0]["content"] == "長":
            return Reply(status=400, raw={"error": {"message": "This model's maximum context length is 10 tokens"}})
        return Reply("好")

    with FaultServer(script) as server:
        (bad, long, good), _ = ask(make_client, server, ["壞", "長", "嗨"])
        assert isinstance(bad, RequestFailed)
        assert "HTTP 500" in str(bad)
        assert "maximum context length" in str(long)
        assert good == Answer("好", "stop")
        assert sorted(server.seen.values()) == [1, 1, 4]  # four attempts for the 500, one for the 400
        again, _ = ask(make_client, server, ["壞", "長"])
        assert [str(error) for error in again] == [str(bad), str(long)]
        assert server.seen.total() == 6


@pytest.mark.parametrize("status", [401, 402, 403, 404, 302])
def test_what_concerns_every_request_ends_the_run(
    status: int, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret123")
    reply = Reply(status=status, raw={"error": {"message": "Incorrect API key provided: sk-secret123"}})
    with FaultServer(lambda body, before: reply) as server:
        results, _ = ask(make_client, server, ["一", "二", "三"])
        assert isinstance(results[0], UserError)
        assert str(status) in str(results[0])
        assert "sk-secret123" not in str(results[0])
        assert all(isinstance(error, Stopped) for error in results[1:])
        assert server.seen.total() == 1
        assert server.headers[0]["Authorization"] == "Bearer sk-secret123"


def test_quota_and_an_endpoint_that_only_fails_end_the_run(make_client: MakeClient, cache: Cache) -> None:
    with FaultServer(
        lambda *_: Reply(status=429, raw={"error": {"message": "no", "code": "insufficient_quota"}})
    ) as server:
        (error,), _ = ask(make_client, server, ["一"])
        assert "quota" in str(error)
    with FaultServer(lambda *_: Reply(status=400, raw={"error": {"message": "unknown field seed"}})) as server:
        results, _ = ask(make_client, server, [str(number) for number in range(20)])
        assert [type(error) for error in results[:8]] == [RequestFailed] * 7 + [UserError]
        assert "unknown field seed" in str(results[7])
        assert server.seen.total() == 8
    with FaultServer(lambda *_: Reply("好")) as server:  # mended: nothing was given up for good
        results, _ = ask(make_client, server, [str(number) for number in range(20)])
        assert results == [Answer("好", "stop")] * 20


def test_nobody_there(make_client: MakeClient) -> None:
    with FaultServer(lambda *_: Reply("好")) as server:
        pass
    results, _ = ask(make_client, server, [str(number) for number in range(9)], max_attempts=2)
    assert isinstance(results[7], UserError)
    assert "cannot connect" in str(results[7])


def test_retry_after_holds_everybody_back(make_client: MakeClient) -> None:
    def script(body: dict[str, Any], before: int) -> Reply:
        first = body["messages"][0]["content"] == "0" and not before
        return Reply(status=429, raw=OVERLOADED, headers={"Retry-After": "0.4"}) if first else Reply("好")

    with FaultServer(script) as server:
        results, _ = ask(make_client, server, ["0", "1", "2", "3"])
        assert results == [Answer("好", "stop")] * 4
        assert server.times[1] - server.times[0] >= 0.4
    with FaultServer(lambda *_: Reply(status=429, raw=OVERLOADED, headers={"Retry-After": "3600"})) as server:
        started = time.monotonic()
        (stopped,), client = ask(make_client, server, ["很久"])
        assert isinstance(stopped, Stopped)
        assert (client.stop.reason, client.stop.detail) == ("rate", "3600")
        assert time.monotonic() - started < 60


def limited(per_window: int, window_s: float) -> Callable[[dict[str, Any], int], Reply]:
    """A server with a fixed window that tells what remains and answers 429 beyond it."""
    state = {"start": 0.0, "used": 0}

    def script(body: dict[str, Any], before: int) -> Reply:
        now = time.monotonic()
        if now - state["start"] > window_s:
            state.update(start=now, used=0)
        state["used"] += 1
        reset = window_s - (now - state["start"])
        headers = {
            "x-ratelimit-remaining-requests": str(max(0, per_window - int(state["used"]))),
            "x-ratelimit-reset-requests": f"{1000 * reset + 5:.0f}ms",
        }
        if state["used"] > per_window:
            return Reply(status=429, raw=OVERLOADED, headers=headers)
        return Reply("好", headers=headers)

    return script


def test_remaining_requests_are_honoured_before_a_429_comes(make_client: MakeClient) -> None:
    with FaultServer(limited(6, 0.3)) as server:
        results, _ = ask(make_client, server, [str(number) for number in range(24)], at_once=4)
        assert results == [Answer("好", "stop")] * 24
        assert server.seen.total() == 24  # not one was refused
        assert server.times[-1] - server.times[0] >= 3 * 0.3


def test_remaining_tokens_are_honoured(make_client: MakeClient) -> None:
    headers = {"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "0.3s"}
    with FaultServer(lambda *_: Reply("好", headers=headers)) as server:
        ask(make_client, server, ["1", "2", "3"])
        gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
        assert min(gaps) >= 0.3


def test_rate_limit_headers_in_all_their_spellings() -> None:
    assert seconds_of("Thu, 01 Jan 2026 00:00:30 GMT", 1767225600.0) == 30
    assert seconds_of("2026-01-01T00:00:12Z", 1767225600.0) == 12
    assert seconds_of("1767225660", 1767225600.0) == 60
    assert [seconds_of(text) for text in ("1m2.5s", "1h", "0", "", "nonsense")] == [62.5, 3600.0, 0.0, None, None]
    rate = RateLimit()
    rate.update({"x-ratelimit-remaining-requests": "soon", "x-ratelimit-reset-requests": "1s"})
    assert rate.wait_s(10) == 0


def test_the_same_words_at_the_same_time_are_asked_once(make_client: MakeClient) -> None:
    with FaultServer(lambda *_: Reply("好")) as server:
        results, _ = ask(make_client, server, ["嗨"] * 12, at_once=6)
        assert results == [Answer("好", "stop")] * 12
        assert server.seen.total() == 1


def test_concurrency_is_a_limit_and_is_used(make_client: MakeClient) -> None:
    with FaultServer(lambda *_: Reply("好", how="slow"), slow_s=0.1) as server:
        ask(make_client, server, [str(number) for number in range(12)], at_once=3)
        assert server.most_at_once == 3


def test_budget_counts_what_is_under_way_at_its_worst(make_client: MakeClient) -> None:
    with FaultServer(lambda *_: Reply("好", how="slow"), slow_s=0.02) as server:
        budget = BudgetConfig(max_tokens_total=210)  # worst case of one: 2 + 16 + 50; real: 2 + 1
        results, client = ask(make_client, server, [str(number) for number in range(10, 90)], at_once=6, budget=budget)
        assert server.most_at_once == 3
        paid = [result for result in results if isinstance(result, Answer)]
        assert len(paid) == server.seen.total() == 48  # 47 · 3 + 68 ≤ 210 < 48 · 3 + 68
        assert results[:48] == paid  # first come, first served
        assert client.stop.reason == "budget"
        assert client.budget.tokens_in + client.budget.tokens_out == 144


def test_cost_is_a_budget_too(make_client: MakeClient) -> None:
    budget = BudgetConfig(max_cost=0.0002, price_in=1.0, price_out=2.0)  # worst case of one: 118 millionths; real: 4
    with FaultServer(lambda *_: Reply("好")) as server:
        results, client = ask(make_client, server, [str(number) for number in range(10, 70)], budget=budget)
        assert sum(isinstance(result, Answer) for result in results) == 21  # 20 · 4 + 118 ≤ 200 < 21 · 4 + 118
        assert client.budget.cost(client.budget.tokens_in, client.budget.tokens_out) == pytest.approx(84e-6)


def test_a_budget_needs_a_limit_of_each_answer(make_client: MakeClient) -> None:
    with FaultServer(lambda *_: Reply("好")) as server:
        budget = BudgetConfig(max_tokens_total=1000)
        (error,), _ = ask(make_client, server, ["嗨"], budget=budget, body={"max_tokens": None})
        assert "max_tokens" in str(error)
        (answer,), _ = ask(
            make_client,
            server,
            ["嗨"],
            budget=budget,
            body={"max_tokens": None, "max_completion_tokens": 9, "top_k": 5},
        )
        assert answer == Answer("好", "stop")
        assert {"top_k": 5, "max_completion_tokens": 9}.items() <= server.bodies[-1].items()
        assert "max_tokens" not in server.bodies[-1]


def test_addresses() -> None:
    assert address("http://a:1") == address("http://a:1/v1/") == "http://a:1/v1/chat/completions"
    assert (
        address("https://a/api/v1/chat/completions") == address("https://a/api") == "https://a/api/v1/chat/completions"
    )
    assert address("https://g/v1beta/openai") == "https://g/v1beta/openai/chat/completions"
    assert public_url("https://me:pw@a:1/v1?key=x") == "https://a:1/v1"
    for wrong in ("a:1", "ftp://a", "http://"):
        with pytest.raises(UserError, match="http"):
            address(wrong)


def test_answers_of_many_shapes() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "嗨"}]}
    thinking = completion(body, "<think>他在打招呼</think>\n\n嗨！")
    assert answer_of(thinking).text == "嗨！"
    parts = completion(body, "")
    parts["choices"][0]["message"]["content"] = [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]
    assert answer_of(parts).text == "你好"
    parts["choices"][0]["message"] = {"content": None, "refusal": "不行"}
    assert answer_of(parts) == Answer("", "stop", "不行")
    assert "\ufffd" in answer_of(completion(body, "嗨\ud83d")).text
    assert usage_of({"usage": {"prompt_tokens": 3}}, (100, 200)) == (3, 200)
    assert usage_of({"usage": None}, (100, 200)) == (100, 200)
