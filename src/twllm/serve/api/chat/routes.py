"""Routes of the OpenAI API: /v1/chat/completions (whole and streamed), /v1/models, /health.

A stream is: role, deltas, finish_reason, usage if asked for, `[DONE]`; with n > 1 the answers come mixed, by their index. An
error before the first event is a plain HTTP error; one after it is an event, and the stream ends. When the client goes away,
its request stops using the model. Answer j of n is drawn with `seed + j`.
Pictures in messages are looked at first (pictures.py). Not covered: audio, embeddings (404), the Responses API.
"""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from twllm.serve.api.bridge import Answers, Job, finished
from twllm.serve.api.chat.answer import Chat
from twllm.serve.api.chat.fit import fit
from twllm.serve.api.chat.pictures import look, place, seen_in
from twllm.serve.api.chat.shapes import ChatAnswer, ChatRequest
from twllm.serve.api.chat.tool_text import prepare
from twllm.serve.api.chat.tools import (
    ArgumentsReader,
    Forced,
    JsonReader,
    ObjectsReader,
    Reader,
    TagsReader,
    force,
    form_of,
)
from twllm.serve.api.event_stream import EventStream, sse
from twllm.serve.api.shapes import ERRORS, EVENTS
from twllm.serve.engines.interface import Sampling
from twllm.serve.errors import CLIENT_CLOSED, ApiError
from twllm.serve.operation.service import Model, Service

if TYPE_CHECKING:
    from twllm.serve.engines.torch.pictures import Seen

UNKNOWN = [
    "embeddings",
    "responses",
    "images/generations",
    "images/edits",
    "audio/speech",
    "audio/transcriptions",
    "audio/translations",
    "moderations",
    "files",
    "batches",
    "assistants",
    "threads",
    "fine_tuning/jobs",
    "vector_stores",
    "rerank",
    "score",
]  # known to clients, not to us: a clear 404


class ChatJob:
    """A checked chat request: its prompt, its settings, how its answers are read."""

    def __init__(self, service: Service, body: ChatRequest, seen: "Sequence[Seen]" = ()) -> None:
        """Check the request and make its prompt; `seen`: what the model makes of its pictures.

        Raises:
            ApiError: something that cannot be done, or a chat that does not fit.
        """
        body.refuse_unsupported()
        self.model: Model = service.pick(body.model)
        self._body, self._tokenizer = body, self.model.engine.tokenizer
        self._messages, self._begun = body.begun_answer()
        self._messages = place(self._messages, seen)
        self._functions = [function.plain() for function in body.offered()]
        self._several = body.parallel_tool_calls is True
        self._one = body.parallel_tool_calls is False
        self._form = form_of(self._tokenizer) if self._functions else None
        self._forced: Forced | None = None
        if self._functions and body.must_call:
            self._forced = force(self._tokenizer, self._functions, several=self._several)
            self._begun = self._forced.begin
        self.sampling = self._sampling()
        self.ids, self.dropped_turns = self._fit(service)

    def _sampling(self) -> Sampling:
        sampling = self._body.sampling(self.model.engine.defaults, self._tokenizer.vocab_size)
        return replace(sampling, grammar=self._forced.grammar) if self._forced else sampling

    def encode(self, messages: list[dict[str, Any]]) -> list[int]:
        """The prompt's ids."""
        chat, tools = self._prepared(messages)
        seen = seen_in(chat)
        if not seen:
            return self._tokenizer.encode_chat(
                chat, add_generation_prompt=True, begin_answer=self._begun, tools=tools
            ).ids
        from twllm.serve.engines.torch.pictures import picture_prompt

        return picture_prompt(self._tokenizer, chat, seen, begin_answer=self._begun, tools=tools)

    def text(self) -> str:
        """The prompt as text, as /chat_tokenize shows it."""
        chat, tools = self._prepared(self._messages)
        return self._tokenizer.render(chat, add_generation_prompt=True, tools=tools).text + self._begun

    def _prepared(self, messages: list[dict[str, Any]]) -> Any:
        tools = [{"type": "function", "function": function} for function in self._functions]
        return prepare(self._tokenizer, messages, tools, one=self._one, must=self._forced is not None)

    def _fit(self, service: Service) -> tuple[list[int], int]:
        context = service.context(self.model)
        policy = self._body.truncate or ("oldest_turns" if service.settings.context_policy == "drop-oldest" else None)
        limit = self.sampling.max_tokens
        ids, dropped = fit(self._messages, self.encode, context, limit, drop=policy == "oldest_turns")
        if context is not None:
            room = context - len(ids)
            self.sampling = replace(self.sampling, max_tokens=room if limit is None else min(limit, room))
        return ids, dropped

    def reader(self) -> Reader:
        """A reader for one answer."""
        names = [function["name"] for function in self._functions]
        if self._forced:
            return ArgumentsReader(self._forced.name) if self._forced.name else ObjectsReader()
        if self._form:
            return (TagsReader if self._form == "tags" else JsonReader)(names, one=self._one)
        return Reader()

    def jobs(self) -> list[Job]:
        """What the engine is asked."""
        seed = self.sampling.seed
        return [
            (self.ids, replace(self.sampling, seed=None if seed is None else (seed + j) % 2**64))
            for j in range(self._body.count)
        ]


def chat_routes(service: Service) -> APIRouter:
    """The router for all models of a service."""
    router = APIRouter()
    started = int(time.time())

    def described(name: str) -> dict[str, Any]:
        return {
            "id": name, "object": "model", "created": started, "owned_by": "twllm",
            "max_model_len": service.context(service.models[name]),
        }  # fmt: skip

    @router.get("/health", responses={503: {"description": "an engine is not alive"}})
    async def health() -> JSONResponse:
        if all(model.engine.alive() for model in service.models.values()):
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "unhealthy", "error": "unhealthy", "error_type": "healthcheck"}, 503)

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described(name) for name in service.models]}

    @router.get("/v1/models/{name:path}", responses={404: ERRORS[404]})
    async def one_model(name: str) -> dict[str, Any]:
        if name not in service.models:
            raise ApiError(f"沒有叫 {name} 的模型 (no such model)", 404, param="model", code="model_not_found")
        return described(name)

    for path in UNKNOWN:
        router.add_api_route(f"/v1/{path}", unknown, methods=["GET", "POST"], include_in_schema=False)

    @router.post("/v1/chat/completions", response_model=ChatAnswer, responses={200: EVENTS, **ERRORS})
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await answer_chat(service, body, request)

    return router


async def unknown(request: Request) -> None:
    """A part of OpenAI's API that a language model of ours has no answer to."""
    what = f"沒有這個 API (no such route): {request.method} {request.url.path}"
    raise ApiError(what, 404, code="unknown_url")


async def answer_chat(service: Service, body: ChatRequest, request: Request) -> Response:
    """The answer to a chat request, whole or as a stream."""
    job = ChatJob(service, body, await look(service, body))
    chat = Chat(
        job.model, len(job.ids), [job.reader() for _ in range(body.count)], logprobs=bool(body.logprobs),
        dropped_turns=job.dropped_turns, on_text=service.metrics.observe,
    )  # fmt: skip
    answers = Answers(job.model.engine, job.jobs())
    headers = {"X-Dropped-Turns": str(job.dropped_turns)} if job.dropped_turns else {}
    if body.stream:
        await answers.begin()
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(stream(chat, answers, usage), answers, headers)

    async def collect() -> None:
        async with answers:
            async for index, event in answers:
                for _ in chat.push(index, event):
                    pass

    if not await finished(collect(), request):
        return Response(status_code=CLIENT_CLOSED)
    return JSONResponse(chat.whole(), headers=headers)


async def stream(chat: Chat, answers: Answers, include_usage: bool) -> AsyncIterator[str]:
    """The answers as server-sent events, in OpenAI's order."""
    more = {"usage": None} if include_usage else {}
    for choice in chat.roles():
        yield sse(chat.chunk([choice], **more))
    async for index, event in answers:
        for choice in chat.push(index, event):
            yield sse(chat.chunk([choice], **more))
    if include_usage:
        yield sse(chat.chunk([], usage=chat.usage()))
    yield "data: [DONE]\n\n"
