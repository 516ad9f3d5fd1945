"""Routes of text-generation-inference's API (3.3): /, /generate, /generate_stream, /info, /ping, /chat_tokenize, /invocations.

The seed's users point `text_generation.Client` and `huggingface_hub.InferenceClient` here; both ask `POST /`, which answers a
list. Prompts are raw: they get the begin token, and control tokens written in them count. Streams always answer 200, without
`[DONE]`; an error, a failed check too, is their last event. /health, /metrics, /tokenize and /v1 are the server's own.
Differences: `frequency_penalty` is OpenAI's; `watermark` and adapters are refused; a body that is not JSON gets TGI's JSON error and
not plain text. Not covered: /vertex, several models (these routes have no field for one: the default model answers).
"""

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse, Response

from twllm import __version__
from twllm.serve.api.bridge import finished
from twllm.serve.api.chat.routes import ChatJob, answer_chat
from twllm.serve.api.chat.shapes import ChatRequest
from twllm.serve.api.completions.routes import answer_completion
from twllm.serve.api.completions.shapes import CompletionRequest
from twllm.serve.api.event_stream import EventStream
from twllm.serve.api.tgi.generation import Generation, tgi_error
from twllm.serve.api.tgi.shapes import (
    MAX_BEST_OF,
    MAX_CLIENT_BATCH,
    MAX_STOPS,
    NO_LIMIT,
    ChatTokens,
    CompatRequest,
    ErrorResponse,
    GenerateRequest,
    GenerateResponse,
    Info,
    read,
)
from twllm.serve.api.tokenize import simple_tokens
from twllm.serve.errors import CLIENT_CLOSED
from twllm.serve.operation.service import Service

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "the body is not JSON", 401: "no or a wrong API key (no body)", 403: "the key may not do this",
        408: "the body took too long", 413: "the body is too large", 422: "a parameter is wrong", 424: "the generation failed",
        429: "the model is overloaded", 503: "the server is stopping or not healthy",
    }.items()
}  # fmt: skip
EITHER = {
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
    "description": "a list of one answer, or a stream",
}


class TgiRoute(APIRoute):
    """A route whose errors have TGI's shape."""

    def get_route_handler(self) -> Handler:
        """The handler, and errors."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:
                found = tgi_error(error)
                return JSONResponse(found.body(), found.status)

        return handler


async def generate(service: Service, body: GenerateRequest, request: Request, *, as_list: bool = False) -> Response:
    """The whole answer."""
    generation = Generation(service, body, stream=False)
    answer: dict[str, Any] = {}

    async def work() -> None:
        answer.update(await generation.whole())

    if not await finished(work(), request):
        return Response(status_code=CLIENT_CLOSED)
    _count(service, generation)
    return JSONResponse([answer] if as_list else answer, headers=generation.headers())


async def generate_stream(service: Service, body: GenerateRequest) -> Response:
    """The answer token by token; what is wrong is told in the stream."""
    try:
        generation = Generation(service, body, stream=True)
        await generation.begin()
    except Exception as error:
        return EventStream(_only(tgi_error(error).body()), None)
    return EventStream(_stream(service, generation), generation, generation.compute_headers())


async def _only(event: dict[str, Any]) -> AsyncIterator[str]:
    yield sse(event)


async def _stream(service: Service, generation: Generation) -> AsyncIterator[str]:
    try:
        index = 0
        async for result, token in generation.run():
            index += 1
            event: dict[str, Any] = {"index": index, "token": token}
            if generation.given.top_n_tokens:
                event["top_tokens"] = result.top_tokens[-1] if result.top_tokens else []
            event |= {"generated_text": None, "details": None}
            if result.finish_reason:
                event["generated_text"] = generation.text(result)
                if generation.given.details:
                    event["details"] = {
                        "finish_reason": result.finish_reason, "generated_tokens": index, "seed": result.seed,
                        "input_length": len(generation.ids),
                    }  # fmt: skip
                _count(service, generation)
            yield sse(event)
    except Exception as error:
        yield sse(tgi_error(error).body())


def _count(service: Service, generation: Generation) -> None:
    for result in generation.results:
        if result.text:
            service.metrics.observe(result.text)


def sse(value: dict[str, Any]) -> str:
    """One server-sent event as TGI writes it: no space after `data:`."""
    return f"data:{json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


def tgi_routes(service: Service) -> APIRouter:
    """The router; it answers for the service's default model."""
    router = APIRouter(route_class=TgiRoute)

    @router.post("/", response_model=list[GenerateResponse], responses={200: EITHER, **ERRORS})
    async def compat(body: CompatRequest, request: Request) -> Response:
        if body.stream:
            return await generate_stream(service, body)
        return await generate(service, body, request, as_list=True)

    @router.post("/generate", response_model=GenerateResponse, responses=ERRORS)
    async def whole(body: GenerateRequest, request: Request) -> Response:
        return await generate(service, body, request)

    @router.post("/generate_stream", response_class=Response, responses={200: EITHER, **ERRORS})
    async def streamed(body: GenerateRequest) -> Response:
        return await generate_stream(service, body)

    @router.post("/invocations", response_class=Response, responses={200: EITHER, **ERRORS})
    async def invocations(body: dict[str, Any], request: Request) -> Response:
        """SageMaker's one route: what the body holds decides which API answers."""
        if "messages" in body:
            return await answer_chat(service, read(ChatRequest, body), request)
        if "prompt" in body:
            return await answer_completion(service, read(CompletionRequest, body), request)
        return await compat(read(CompatRequest, body), request)

    @router.post("/chat_tokenize", response_model=ChatTokens, responses=ERRORS)
    async def chat_tokenize(body: ChatRequest) -> Response:
        job = ChatJob(service, body)
        text = job.text()
        tokens = simple_tokens(text, job.ids, job.model.texts)
        return JSONResponse({"tokenize_response": tokens, "templated_text": text})

    @router.get("/ping", response_class=Response, responses={503: ERRORS[503]})
    async def ping() -> Response:
        if all(model.engine.alive() for model in service.models.values()):
            return Response()
        return JSONResponse({"error": "unhealthy", "error_type": "healthcheck"}, 503)

    @router.get("/info", response_model=Info)
    async def info() -> dict[str, Any]:
        total = service.context(service.default) or NO_LIMIT
        return {
            "model_id": service.default.name, "model_sha": service.default.engine.model_fingerprint,
            "model_pipeline_tag": None, "max_concurrent_requests": service.settings.max_running,
            "max_best_of": MAX_BEST_OF, "max_stop_sequences": MAX_STOPS, "max_input_tokens": total - 1,
            "max_total_tokens": total, "validation_workers": 1, "max_client_batch_size": MAX_CLIENT_BATCH,
            "router": "text-generation-router", "version": __version__, "sha": None, "docker_label": None,
        }  # fmt: skip

    return router
