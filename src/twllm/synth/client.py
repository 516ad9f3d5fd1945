"""One request to an OpenAI-compatible endpoint: asked once, retried with patience, paid once, stored before use.

Retried: 408, 409, 429, 5xx, cut connections, timeouts, answers that are not what the API promises. Not retried: other 4xx;
401, 402, 403, 404 and an exhausted quota concern every request and end the run; so does a run of failures with no answer in
between, and those failures are forgotten, so that the next run tries them again. What is left is a failure of one request
(too long for the context, refused by a content filter), stored like an answer.
"""

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import httpx

from twllm.errors import UserError
from twllm.synth.cache import Cache, Stored, request_key
from twllm.synth.config import EndpointConfig
from twllm.synth.endpoint import Answer, address, answer_of, api_key, public_url, usage_of, worst_case
from twllm.synth.limits import Budget, RateLimit, Stop, seconds_of

RETRIED = {408, 409, 425, 429}
EVERY_REQUEST = {
    401: "金鑰不對或沒有給 (API key)：--api-key-env 指名放金鑰的環境變數",
    402: "帳戶餘額不足 (payment required)：儲值後用同一個指令接著跑",
    403: "金鑰沒有權限 (forbidden)：檢查金鑰與模型的使用權",
    404: "位址或模型名稱不對 (not found)：檢查 --url 與 --model",
    405: "位址不對 (not an API endpoint)：檢查 --url",
}
ONE_REQUEST = ("context_length", "context length", "content_filter", "content management policy", "too long", "太長")
MAX_BACKOFF_S = 60.0


class RequestFailed(Exception):
    """This request was given up; the row it belongs to is dropped."""


@dataclass(frozen=True)
class _Again:
    """Why an attempt has to be repeated."""

    why: str
    wait_s: float | None = None  # None: back off
    unknown_cost: bool = False
    limited: bool = False  # the rate limit: patience, not a failure


class Client:
    """Asks, through cache, budget and rate limit. `used` are the keys and costs of all answers this run used."""

    def __init__(self, config: EndpointConfig, cache: Cache, budget: Budget, stop: Stop, offline: bool = False) -> None:
        self.config, self.cache, self.budget, self.stop, self.offline = config, cache, budget, stop, offline
        self.address, self._key = address(config.url), api_key(config)
        self.rate = RateLimit()
        self.used: dict[str, Stored] = {}
        self.num_sent = self.num_paid = 0
        self.on_paid: Callable[[], None] = lambda: None
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._failed_in_a_row: list[str] = []
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(None, connect=min(10.0, config.timeout_s)),
            limits=httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ask(self, messages: list[dict[str, str]], sample: int = 0, **settings: Any) -> Answer:
        """The model's answer, from the cache or from the endpoint.

        Raises:
            RequestFailed: given up, now or in an earlier run.
            Stopped: the run is ending.
            UserError: the endpoint refuses every request, or answers none.
        """
        fields = {"model": self.config.model, "messages": messages, **settings, **self.config.body}
        body = {key: value for key, value in fields.items() if value is not None}
        key = request_key(body, sample)
        async with self._locks.setdefault(key, asyncio.Lock()):  # the same words at the same time: ask once
            stored = self.cache.get(key)
            if stored is None:
                if failure := self.cache.failure(key):
                    raise RequestFailed(failure)
                if self.offline:
                    self.stop.set("offline")
                self.stop.check()
                stored = await self._pay(key, body)
        self.used[key] = replace(stored, response={"model": stored.response.get("model")})  # the text is in the row
        return answer_of(stored.response)

    async def _pay(self, key: str, body: dict[str, Any]) -> Stored:
        """Send until there is an answer or no attempt is left."""
        worst = worst_case(body)
        if not worst[1] and self.budget.limited:
            what = "有預算就要有每次回答的上限 (a budget needs max_tokens)"
            raise UserError(what, "--body", "不要拿掉 max_tokens，或改給 max_completion_tokens")
        why, failed, limited, refused = "", 0, 0, 0
        while failed < self.config.max_attempts and limited < 10 * self.config.max_attempts:
            outcome = await self._attempt(key, body, worst, f"{key[:40]}-{refused}")
            if isinstance(outcome, Stored):
                self._failed_in_a_row.clear()
                return outcome
            why, failed, limited = outcome.why, failed + (not outcome.limited), limited + outcome.limited
            refused += not outcome.unknown_cost
            backoff = min(MAX_BACKOFF_S, self.config.backoff_s * 2 ** min(failed + limited - 1, 10))
            wait = outcome.wait_s if outcome.wait_s is not None else backoff
            self._refuse_long_wait(wait)
            if failed < self.config.max_attempts:
                await self.stop.sleep(wait + random.uniform(0, backoff / 2))
        raise self._given_up(key, f"{why}；試了 {failed + limited} 次 (attempts)", counts=True)

    async def _attempt(self, key: str, body: dict[str, Any], worst: tuple[int, int], once: str) -> Stored | _Again:
        """One request, its cost settled whatever happens; a cost nobody knows is kept at its worst.

        once: the Idempotency-Key; the same after a cut connection or a kill, so that an endpoint that honours it answers
        (and charges) once; another after an error, which such an endpoint would repeat.
        """
        await self.budget.reserve(*worst, self.stop)
        paid, sent, settled = (0, 0), 0, False
        try:
            await self._pace(sum(worst))
            sent = self.cache.note_sent(key, *worst)
            self.num_sent += 1
            outcome = await self._send(key, body, sum(worst), once)
            if isinstance(outcome, _Again):
                paid, settled = (worst, True) if outcome.unknown_cost else ((0, 0), False)
                return outcome
            paid = usage_of(outcome, worst)
            stored, settled = self.cache.put(key, outcome, *paid, sent), True
            self.num_paid += 1
            self.on_paid()
            return stored
        except asyncio.CancelledError:
            settled = True  # under way: it may have been paid for
            raise
        finally:
            if sent and not settled:
                self.cache.settle(sent)
            await self.budget.settle(worst, *paid)

    async def _pace(self, tokens: int) -> None:
        """Wait until the rate limit allows a request of so many tokens."""
        while wait := self.rate.wait_s(tokens):
            self._refuse_long_wait(wait)
            await self.stop.sleep(wait)
        self.stop.check()
        self.rate.take(tokens)

    def _refuse_long_wait(self, wait: float) -> None:
        if wait > self.config.max_wait_s:
            self.stop.set("rate", f"{wait:.0f}")
        self.stop.check()

    async def _send(self, key: str, body: dict[str, Any], tokens: int, once: str) -> dict[str, Any] | _Again:
        """The parsed answer of one POST, or why to try again; what cannot succeed is raised."""
        try:
            async with asyncio.timeout(self.config.timeout_s):
                response = await self._http.post(self.address, json=body, headers={"Idempotency-Key": once})
        except TimeoutError:
            return _Again(f"{self.config.timeout_s:g} 秒內沒有回答 (timeout)", unknown_cost=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return _Again(f"連不上 (cannot connect)：{error}")
        except httpx.TransportError as error:
            return _Again(f"連線中斷 (connection lost)：{type(error).__name__}", unknown_cost=True)
        finally:
            self.rate.give_back(tokens)
        self.rate.update(response.headers)
        if response.status_code != 200:
            return self._refused(key, response)
        try:
            answer = json.loads(response.content)
            answer_of(answer)
        except (ValueError, LookupError, TypeError, AttributeError):
            return _Again(f"回答不完整 (not a chat completion)：{self._plain(response.text)}", unknown_cost=True)
        return answer  # type: ignore[no-any-return]

    def _refused(self, key: str, response: httpx.Response) -> _Again:
        """An HTTP error: try again, give the request up, or end the run."""
        status, told = response.status_code, self._plain(response.text)
        if status == 429 and "insufficient_quota" in response.text:
            raise self._end(f"額度用完了 (quota exhausted)：{told}", "儲值後用同一個指令接著跑，付過的都在快取裡")
        if status in RETRIED or status >= 500:
            wait = seconds_of(response.headers.get("retry-after", ""))
            if wait is not None:
                self.rate.block(min(wait, self.config.max_wait_s + 1))
            return _Again(f"HTTP {status}：{told}", wait, unknown_cost=status in (504, 524), limited=status == 429)
        if status in EVERY_REQUEST or status < 400:
            raise self._end(
                f"端點不接受 (HTTP {status})：{told}", EVERY_REQUEST.get(status, "位址會轉址，改用最後的位址")
            )
        one = any(sign in response.text.casefold() for sign in ONE_REQUEST)
        raise self._given_up(key, f"HTTP {status}：{told}", counts=not one)

    def _given_up(self, key: str, detail: str, counts: bool) -> Exception:
        """RequestFailed, stored; or, after many in a row with no answer in between, what ends the run."""
        self.cache.put_failure(key, detail)
        if counts:
            self._failed_in_a_row.append(key)
        if len(self._failed_in_a_row) < max(8, 2 * self.config.concurrency):
            return RequestFailed(detail)
        self.cache.forget_failures(self._failed_in_a_row)
        what = f"端點一直失敗，連續 {len(self._failed_in_a_row)} 個請求都沒有回答 (endpoint keeps failing)：{detail}"
        return self._end(what, "看端點的狀況與 --body 的設定；修好後用同一個指令接著跑")

    def _end(self, what: str, fix: str) -> UserError:
        self.stop.set("error")
        return UserError(what, public_url(self.address), fix)

    def _plain(self, text: str) -> str:
        """The message of an error body, short, without the key."""
        try:
            told = json.loads(text)
            told = told.get("error", told)
            told = told.get("message", told) if isinstance(told, dict) else told
        except (ValueError, AttributeError):
            told = text
        words = " ".join(str(told).split())[:200]
        return words.replace(self._key, "…") if self._key else words
