"""Several models at once: /api/compare (one chat, two to four named models, one stream) and /api/culture (questions to ask).

Also the streaming that the arena uses. Each model answers with its own template and defaults; one that fails does not
stop the others. The questions are those that may be shown: what the shipped data teaches and what `twllm compare` asks,
none of the held-out benchmark, so that nobody rates, and nothing learns, a benchmark answer.
Not covered: sides that wait for each other; a slow model is simply later.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import StreamingResponse

from twllm import data
from twllm.serve.api.bridge import Answers
from twllm.serve.api.chat.fit import fit
from twllm.serve.api.event_stream import STREAM_HEADERS, sse
from twllm.serve.engines.interface import Sampling
from twllm.serve.errors import ApiError
from twllm.serve.operation.service import Model, Service
from twllm.serve.web.ratings import MAX_TEXT, Body, RatedMessage

MAX_ANSWER_TOKENS = 1024  # of one side; chosen
QUESTIONS_PER_TOPIC = 6
FAILED = "這個模型沒有回答完，請再試一次 (no answer)"  # says nothing about which model it is
log = logging.getLogger("twllm.serve")
Chat = list[dict[str, str]]


class CompareSampling(Body):
    """Settings for all sides; what is not given comes from each model's defaults."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None


class CompareRequest(Body):
    """Body of POST /api/compare."""

    messages: Annotated[list[RatedMessage], Field(min_length=1, max_length=1000)]
    models: Annotated[list[str], Field(min_length=2, max_length=4)]
    sampling: CompareSampling = CompareSampling()


@dataclass(frozen=True)
class Side:
    """One of the models that answer at once: the ids it is given and its settings."""

    model: Model
    prompt_ids: list[int]
    sampling: Sampling


@dataclass(frozen=True)
class Piece:
    """Something one side did: text, the end (`finish_reason`), or a failure."""

    side: str
    text: str = ""
    finish_reason: str | None = None
    failed: bool = False


def make_side(service: Service, model: Model, chat: Chat, given: Mapping[str, Any] | None = None) -> Side:
    """A model ready to answer `chat`.

    Raises:
        ApiError: 400, the chat does not fit.
    """
    engine = model.engine
    sampling = replace(engine.defaults, **(given or {}))
    sampling = replace(sampling, max_tokens=min(sampling.max_tokens or MAX_ANSWER_TOKENS, MAX_ANSWER_TOKENS))

    def encode(messages: list[dict[str, Any]]) -> list[int]:
        return engine.tokenizer.encode_chat(messages, add_generation_prompt=True).ids

    drop = service.settings.context_policy == "drop-oldest"
    ids, _ = fit(chat, encode, service.context(model), sampling.max_tokens, drop=drop)
    return Side(model, ids, sampling)


async def together(sides: Mapping[str, Side]) -> AsyncIterator[Piece]:
    """Pieces of all sides as they come; when this iterator is closed, all of them stop."""
    queue: asyncio.Queue[Piece] = asyncio.Queue()

    async def run(name: str, side: Side) -> None:
        reason = None
        try:
            async with Answers(side.model.engine, [(side.prompt_ids, side.sampling)]) as answers:
                async for _, event in answers:
                    if event.text:
                        await queue.put(Piece(name, event.text))
                    reason = event.finish_reason or reason
            await queue.put(Piece(name, finish_reason=reason, failed=reason is None))
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("one of several models failed")
            await queue.put(Piece(name, failed=True))

    tasks = [asyncio.create_task(run(name, side)) for name, side in sides.items()]
    running = len(tasks)
    try:
        while running:
            piece = await queue.get()
            running -= piece.failed or piece.finish_reason is not None
            yield piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def event_of(key: str, piece: Piece) -> str:
    """The piece as a server-sent event; `key` is "model" or "side"."""
    if piece.failed:
        return sse(
            {key: piece.side, "error": {"message": FAILED, "type": "server_error", "param": None, "code": "no_answer"}}
        )
    if piece.finish_reason is not None:
        return sse({key: piece.side, "done": True, "finish_reason": piece.finish_reason})
    return sse({key: piece.side, "delta": piece.text})


def compare_routes(service: Service) -> APIRouter:
    """The router of a service."""
    router = APIRouter()

    @router.get("/api/culture")
    def culture() -> dict[str, Any]:
        return culture_questions()

    @router.post("/api/compare")
    async def compare(body: CompareRequest) -> StreamingResponse:
        if len(set(body.models)) < len(body.models):
            raise ApiError("同一個模型選了兩次 (a model twice)", param="models")
        chat = [message.model_dump() for message in body.messages]
        if chat[-1]["role"] != "user" or sum(len(message["content"]) for message in chat) > MAX_TEXT:
            raise ApiError(
                "對話要以使用者的話結尾，且不能太長 (must end with the user, not too long)", param="messages"
            )
        given = body.sampling.model_dump(exclude_none=True)
        sides = {}
        for name in body.models:
            if name not in service.models:
                raise ApiError(f"沒有叫 {name} 的模型 (no such model)", 404, param="models", code="model_not_found")
            try:
                sides[name] = make_side(service, service.models[name], chat, given)
            except ApiError as error:
                raise ApiError(f"{name}：{error.message}", param="messages", code=error.code) from error

        async def events() -> AsyncIterator[str]:
            async for piece in together(sides):
                yield event_of("model", piece)
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream", headers=STREAM_HEADERS)

    return router


@cache
def culture_questions() -> dict[str, Any]:
    """A few dozen questions about Taiwan by topic, with the expected word where there is one."""
    topics: dict[str, list[dict[str, Any]]] = {}
    for name in ("compare", "culture/taught", "culture_dev"):
        for file in sorted(data.resolve(f"{data.PREFIX}{name}").glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                found = topics.setdefault(row["topic"].split("/")[0], [])
                if row.get("form", "open") == "open" and not row.get("held_out") and len(found) < QUESTIONS_PER_TOPIC:
                    answer = {"answer": row["accept"][0]} if row.get("accept") else {}
                    found.append({"id": row["id"], "question": row["question"], **answer})
    named = [(f"t{number}", name, rows) for number, (name, rows) in enumerate(topics.items(), 1) if rows]
    return {
        "topics": [{"id": id, "name": name} for id, name, _ in named],
        "questions": [{**row, "topic": id} for id, _, rows in named for row in rows],
    }
