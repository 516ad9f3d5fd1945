"""Warm-up, readiness, and an end that cuts nobody off: `/live`, `/ready`, and a uvicorn server that drains.

On SIGTERM or Ctrl-C: `/ready` answers 503 at once, new generation requests get 503, running answers go on for at most
`grace_s` and then end with an error event; ratings are still taken. A second signal ends it at once. A rating that was acknowledged
is on disk before the acknowledgement is sent (feedback/store), so no signal can lose it.
`/live` says whether restarting the process would help; `/ready` whether requests should be sent here.
"""

import asyncio
import logging
import signal
import time
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from fastapi import APIRouter
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from twllm.serve.engines.interface import Engine, Sampling

if TYPE_CHECKING:
    from twllm.serve.operation.service import Service

log = logging.getLogger("twllm.serve")
WARM_UP_TOKENS = 8  # compiles the steps of a prompt and of a token; chosen
RETRY_S = 5.0  # between tries to warm up, where a remote engine is not there yet
STOP_S = 2.0  # for the last events and connections after the grace period
HEADER_TIMEOUT_S = 20.0  # a connection that has not sent a whole request head by then is closed


class Lifecycle:
    """Whether the server is warm, whether it is going away, what is being answered."""

    def __init__(self, warm: bool = True) -> None:
        self.warm, self.draining, self.ended = warm, False, False
        self.in_flight = 0  # HTTP requests
        self._running: set[asyncio.Timeout] = set()

    def begin(self, limit: asyncio.Timeout) -> None:
        """A request is being generated for; `limit` is how to end it."""
        self._running.add(limit)

    def done(self, limit: asyncio.Timeout) -> None:
        """It is not any more."""
        self._running.discard(limit)

    def end(self) -> None:
        """End all running answers now."""
        self.ended = True
        for limit in list(self._running):
            limit.reschedule(asyncio.get_running_loop().time())


async def warm_up(service: "Service") -> None:
    """A short answer from every model, again until it comes; then the service is ready."""

    def answer(engine: Engine) -> None:
        ids = engine.tokenizer.encode_chat([{"role": "user", "content": "你好"}], add_generation_prompt=True).ids
        for _ in engine.generate(ids, Sampling(max_tokens=WARM_UP_TOKENS)):
            pass

    for model in service.models.values():
        while not service.lifecycle.draining:
            try:
                started = time.perf_counter()
                await asyncio.to_thread(answer, model.engine)
                log.info("warm-up of %s: %.1f s", model.name, time.perf_counter() - started)
                break
            except Exception as error:
                log.warning("warm-up of %s failed: %s", model.name, type(error).__name__)
                await asyncio.sleep(RETRY_S)
    service.lifecycle.warm = True


def lifecycle_routes(service: "Service") -> APIRouter:
    """GET /live and /ready."""
    router = APIRouter()
    lifecycle = service.lifecycle

    def dead(*, local_only: bool) -> list[str]:
        return [
            name
            for name, model in service.models.items()
            if not (local_only and getattr(model.engine, "remote", False)) and not model.engine.alive()
        ]

    @router.get("/live")
    def live() -> JSONResponse:
        found = dead(local_only=True)
        return JSONResponse({"status": "dead" if found else "alive", "dead": found}, 503 if found else 200)

    @router.get("/ready")
    def ready() -> JSONResponse:
        found = dead(local_only=False)
        state = (
            "draining"
            if lifecycle.draining
            else "warming up"
            if not lifecycle.warm
            else "unhealthy"
            if found
            else "ready"
        )
        return JSONResponse({"status": state, "dead": found}, 200 if state == "ready" else 503)

    return router


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that does not wait forever for the head of a first request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._hurry = self.loop.call_later(HEADER_TIMEOUT_S, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._hurry.cancel()
        super().connection_lost(exc)


class DrainingServer(uvicorn.Server):
    """uvicorn, but it goes on listening while it drains, so that callers are told 503 and not cut off."""

    def __init__(self, config: uvicorn.Config, service: "Service") -> None:
        super().__init__(config)
        self._service = service
        self._draining_since: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: go. Signals are not raised again, an orderly end is exit code 0."""
        if self._service.lifecycle.draining:
            self.should_exit = self.force_exit = True
        self._service.lifecycle.draining = True
        if sig == signal.SIGINT:
            log.info("stopping; once more to stop at once")

    async def on_tick(self, counter: int) -> bool:
        """Whether to leave the main loop."""
        lifecycle = self._service.lifecycle
        if await super().on_tick(counter):
            return True
        if not lifecycle.draining:
            return False
        now = time.monotonic()
        if self._draining_since is None:
            self._draining_since = now
            log.info("draining: %d requests", lifecycle.in_flight)
        waited = now - self._draining_since
        if waited > self._service.settings.grace_s and not lifecycle.ended:
            log.warning("grace period over, ending %d requests", lifecycle.in_flight)
            lifecycle.end()
        return lifecycle.in_flight == 0 or waited > self._service.settings.grace_s + STOP_S
