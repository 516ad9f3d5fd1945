"""Routes of the OpenAI API: /v1/chat/completions (whole and streamed), /v1/models, /health.

A stream is: role, text pieces, finish_reason, usage if asked for, `[DONE]`. An error before the first event is a
plain HTTP error; one after it is an event, and the stream ends. When the client goes away, its request stops using
the model. Each running request has a thread that waits for the engine: fine for hundreds, not for tens of thousands.
"""

import asyncio
import json
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from twllm.serve.generation import ContextLengthError, Engine, Sampling, TokenEvent, require_room
from twllm.serve.protocol import ApiError, ChatRequest

log = logging.getLogger("twllm.serve")
CLIENT_CLOSED = 499  # nginx's code for a client that went away; nobody reads it


async def ask(engine: Engine, prompt_ids: list[int], sampling: Sampling) -> AsyncIterator[TokenEvent]:
    """`engine.generate` for asyncio: a thread iterates, closing this iterator cancels the request."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[TokenEvent | Exception | None] = asyncio.Queue()
    cancel = threading.Event()

    def tell(event: TokenEvent | Exception | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(events.put_nowait, event)

    def work() -> None:
        try:
            for event in engine.generate(prompt_ids, sampling, cancel):
                tell(event)
            tell(None)
        except Exception as error:  # raised again in the event loop, below
            tell(error)

    threading.Thread(target=work, name="twllm-request", daemon=True).start()
    try:
        while (event := await events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event
    finally:
        cancel.set()


class Answer:
    """The parts that all chunks of one answer share, and its token counts."""

    def __init__(self, model: str, fingerprint: str, prompt_tokens: int, on_text: Callable[[str], None]) -> None:
        self.on_text = on_text  # told the whole text of a finished answer
        self.pieces: list[str] = []
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.model, self.fingerprint = model, fingerprint
        self.prompt_tokens, self.completion_tokens = prompt_tokens, 0

    def add(self, event: TokenEvent) -> None:
        """Take in one more token."""
        self.completion_tokens += 1
        self.pieces.append(event.text)

    def finish(self) -> str:
        """The whole text, once it is all there."""
        text = "".join(self.pieces)
        self.on_text(text)
        return text

    def usage(self) -> dict[str, int]:
        """Token counts; the end token counts as generated."""
        total = self.prompt_tokens + self.completion_tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": total}

    def body(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """An object of the API: kind is chat.completion or chat.completion.chunk."""
        shared = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**shared, "system_fingerprint": self.fingerprint, "choices": choices, **more}

    def whole(self, text: str, finish_reason: str) -> dict[str, Any]:
        """The answer in one piece."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return self.body("chat.completion", [choice], usage=self.usage())


def chat_routes(engine: Engine, model_name: str, on_text: Callable[[str], None] = lambda _: None) -> APIRouter:
    """The router for one engine; `on_text` is told each finished answer."""
    router = APIRouter()
    started = int(time.time())

    @router.get("/health")
    async def health() -> JSONResponse:
        alive = engine.alive()
        return JSONResponse({"status": "ok" if alive else "unhealthy"}, 200 if alive else 503)

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": model_name, "object": "model", "created": started, "owned_by": "twllm"}],
        }

    @router.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        body.refuse_unsupported()
        messages, begun = body.begun_answer()
        prompt_ids = engine.tokenizer.encode_chat(messages, add_generation_prompt=True, begin_answer=begun).ids
        try:
            require_room(prompt_ids, engine.context)
        except ContextLengthError as error:
            raise ApiError(f"{error.what}；{error.fix}", param="messages", code="context_length_exceeded") from error
        answer = Answer(model_name, engine.model_fingerprint, len(prompt_ids), on_text)
        events = ask(engine, prompt_ids, body.sampling(engine.defaults))
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second is for nginx
            return StreamingResponse(stream(answer, events, usage), media_type="text/event-stream", headers=headers)
        return await collect(answer, events, request)

    return router


async def collect(answer: Answer, events: AsyncIterator[TokenEvent], request: Request) -> Response:
    """The whole answer as JSON; given up when the client goes away."""
    finish_reason = None

    async def gather() -> None:
        nonlocal finish_reason
        async with aclosing(events):  # type: ignore[type-var]  # an async generator
            async for event in events:
                answer.add(event)
                finish_reason = event.finish_reason

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(gather()), asyncio.create_task(leave())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            return Response(status_code=CLIENT_CLOSED)
        tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if finish_reason is None:
        raise ApiError("伺服器正在關閉 (server is shutting down)", 503, type="server_error")
    return JSONResponse(answer.whole(answer.finish(), finish_reason))


async def stream(answer: Answer, events: AsyncIterator[TokenEvent], include_usage: bool) -> AsyncIterator[str]:
    """The answer as server-sent events, in OpenAI's order."""

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return sse(answer.body("chat.completion.chunk", [choice], **({"usage": None} if include_usage else {})))

    finish_reason = None
    try:
        async with aclosing(events):  # type: ignore[type-var]  # an async generator
            yield chunk({"role": "assistant", "content": ""})
            async for event in events:
                answer.add(event)
                if event.text:
                    yield chunk({"content": event.text})
                finish_reason = event.finish_reason
        if finish_reason is None:
            raise ApiError("伺服器正在關閉 (server is shutting down)", 503, type="server_error")
        answer.finish()
        yield chunk({}, finish_reason)
        if include_usage:
            yield sse(answer.body("chat.completion.chunk", [], usage=answer.usage()))
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield sse(error.body())
    except Exception:
        log.exception("generation failed")
        yield sse(internal_error().body())


def internal_error() -> ApiError:
    """What a client learns of our own bugs; the rest is in the log."""
    return ApiError("伺服器內部錯誤，詳情在伺服器的記錄裡 (internal error)", 500, type="server_error")


def sse(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
