"""ASGI middleware: how large a body may be and how long it may take, and a place at the engines for requests that generate.

Bodies are read whole before a request waits or runs (2 MB at most, chunked ones too), so that a slow sender holds no place.
A refusal is 413, 408, 429 with Retry-After, or 503, in the shape of the route's API; a stream that has begun ends with an error event.
A request counts as one place however many answers it asks for; the engines' own queues share out the rest.
"""

import asyncio
import time
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twllm.serve.errors import CLIENT_CLOSED
from twllm.serve.operation.paths import Refusal, generates
from twllm.serve.operation.places import Full
from twllm.serve.operation.record import CURRENT, Record
from twllm.serve.operation.service import Service

BODY_TIMEOUT_S = 30.0  # for a whole body; chosen
LAST_EVENT_S = 5.0  # for a client to take the last event

OVERLOADED = "Model is overloaded"  # TGI's words


class BodyLimit:
    """Reads the body, refuses one that is too large or too slow, hands it on in one piece."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.limit = app, service.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        refusal = None
        body = bytearray()
        try:
            if self._announced(scope) > self.limit:
                raise ValueError
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    if len(body) > self.limit:
                        raise ValueError
                    if not message.get("more_body", False):
                        break
        except ValueError:
            text = f"內容超過 {self.limit:,} 位元組 (body too large)"
            refusal = Refusal(413, text, "body", "request_too_large")
        except TimeoutError:
            refusal = Refusal(408, "內容送得太慢 (the body took too long)", "body", "request_timeout")
        if refusal:
            await refuse(refusal, scope, send)
            return
        await self.app(scope, after({"type": "http.request", "body": bytes(body), "more_body": False}, receive), send)

    @staticmethod
    def _announced(scope: Scope) -> int:
        for name, value in scope["headers"]:
            if name == b"content-length":
                return int(value) if value.isdigit() else 0
        return 0


class Admission:
    """A place for each request that generates; time limits; and an end of running ones when the server stops."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service, self.settings = app, service, service.settings
        self.places = service.places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or not generates(scope["method"], scope["path"]):
            await self.app(scope, receive, send)
            return
        record = CURRENT.get() or Record("", scope["method"], scope["path"])
        replay = after(await receive(), receive)  # the whole body, see BodyLimit
        refusal = await self._enter(record, receive)
        if refusal:
            await refuse(refusal, scope, send)
            return
        if record.status == CLIENT_CLOSED:
            return
        with self.places.held(record.client):
            await self._run(scope, replay, send, record)

    async def _enter(self, record: Record, receive: Receive) -> Refusal | None:
        """Get a place, or say why not; a client that goes away while it waits leaves `record.status` CLIENT_CLOSED."""
        if self.service.lifecycle.draining:
            return shutting_down()
        started = time.perf_counter()
        try:
            if self.places.try_take(record.client):
                return None
            place = asyncio.ensure_future(self.places.wait(record.client, self.settings.queue_timeout_s))
            leaving = asyncio.ensure_future(receive())
            try:
                await asyncio.wait({place, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if not place.done():
                    record.status = CLIENT_CLOSED
                else:
                    place.result()
            finally:
                place.cancel()
                leaving.cancel()
                await asyncio.gather(place, leaving, return_exceptions=True)
        except Full:
            wait = self.places.retry_after_s()
            return Refusal(429, OVERLOADED, "overloaded", type="rate_limit_error", retry_after_s=wait)
        except TimeoutError:
            text = "排隊太久，請稍後再試 (waited too long)"
            return Refusal(503, text, "queue_timeout", type="server_error", retry_after_s=self.places.retry_after_s())
        finally:
            record.queued_s = time.perf_counter() - started
        if self.service.lifecycle.draining and record.status != CLIENT_CLOSED:
            self.places.give_back(record.client)
            return shutting_down()
        return None

    async def _run(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        limit = asyncio.timeout(self.settings.request_timeout_s)
        try:
            async with limit:
                self.service.lifecycle.begin(limit)
                await self.app(scope, receive, watched)
        except TimeoutError:
            if not limit.expired():
                raise
            refusal = shutting_down() if self.service.lifecycle.ended else too_long()
            if begun:
                record.refused = refusal.reason
                last = {"type": "http.response.body", "body": refusal.event(scope["path"]), "more_body": False}
                with suppress(TimeoutError):
                    async with asyncio.timeout(LAST_EVENT_S):
                        await send(last)
            else:
                await refuse(refusal, scope, send)
        finally:
            self.service.lifecycle.done(limit)


def after(first: Message, receive: Receive) -> Receive:
    """`receive` that gives `first` once more before what follows."""
    waiting: list[Message] = [first]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def refuse(refusal: Refusal, scope: Scope, send: Send) -> None:
    """Answer with a refusal, and remember why in the request's record."""
    if record := CURRENT.get():
        record.refused = refusal.reason
    await refusal.send(scope["path"], send)


def shutting_down() -> Refusal:
    """What callers are told while the server drains."""
    text = "伺服器正在關閉 (server is shutting down)"
    return Refusal(503, text, "shutdown", "shutting_down", type="server_error", retry_after_s=5)


def too_long() -> Refusal:
    """What a caller is told whose answer took longer than the limit."""
    return Refusal(503, "回答超過時間上限 (request timed out)", "timeout", "timeout", type="server_error")
