"""Server-sent events: OpenAI's form, errors as last events, silence filled with comments, an end that frees the engine."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from twllm.errors import UserError
from twllm.serve.engines.interface import EngineUnavailable
from twllm.serve.errors import ApiError

log = logging.getLogger("twllm.serve")
KEEP_ALIVE_S = 15.0  # longest silence of a stream; TGI's
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second is for nginx


class Closable(Protocol):
    """Something to be closed when a stream ends."""

    def close(self) -> None:
        """Cancel what is still running."""
        ...


class EventStream(StreamingResponse):
    """Server-sent events; an error becomes the last one. `answers` are closed at the end, and when the client goes away."""

    def __init__(self, events: AsyncIterator[str], answers: Closable | None, headers: Mapping[str, str] = {}) -> None:
        super().__init__(with_errors(events), media_type="text/event-stream", headers={**STREAM_HEADERS, **headers})
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI; where nothing is said for a while, a comment keeps proxies from closing the connection."""
        clock = asyncio.get_running_loop().time
        said: float | None = None

        async def tell(message: Message) -> None:
            nonlocal said
            said = clock()
            await send(message)

        async def keep_alive() -> None:
            while True:
                await asyncio.sleep(KEEP_ALIVE_S / 2)
                if said is not None and clock() - said >= KEEP_ALIVE_S / 2:
                    await tell({"type": "http.response.body", "body": b":\n\n", "more_body": True})

        keeper = asyncio.create_task(keep_alive())
        try:
            await super().__call__(scope, receive, tell)
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            if self._answers:
                self._answers.close()


async def with_errors(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """The events, and an error as the last one."""
    try:
        async for event in events:
            yield event
    except ApiError as error:
        yield sse(error.body())
    except UserError as error:
        yield sse(api_error(error).body())
    except Exception as error:
        log.exception("generation failed")
        yield sse(internal_error(error).body())


def api_error(error: UserError) -> ApiError:
    """What is wrong with the request, in OpenAI's shape."""
    return ApiError(f"{error.what}；{error.fix}", param=str(error.where) or None)


def internal_error(error: Exception | None = None) -> ApiError:
    """What a client learns of our own bugs, or of an engine that is away; the rest is in the log."""
    if isinstance(error, EngineUnavailable):
        what = "模型暫時無法回答，請稍後再試 (engine unavailable)"
        return ApiError(what, 503, type="server_error", code="engine_unavailable")
    return ApiError("伺服器內部錯誤，詳情在伺服器的記錄裡 (internal error)", 500, type="server_error")


def sse(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
