"""POST /v1/completions: raw prompts (text or ids, several at once), echo and log-probabilities; OpenAI's shape.

A text prompt gets the begin token unless it begins with it; ids are taken as they are. Control tokens written in a text
count: this route has no template, its callers write it themselves (the chat route is where typed control tokens are
text). Choices come prompt by prompt: choice `i * n + j` is answer j to prompt i, and answer j is drawn with `seed + j`.

Log-probabilities are the raw distribution's (before temperature and penalties), from one forward pass over prompts and answers
(`scoring`), several prompts together; echo with at most one greedy token is that pass alone. Tokens are listed with
the end token, which `text` does not show; offsets count characters of `text`. A stream with log-probabilities sends each
choice in one piece. Engines without torch weights refuse `logprobs`.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from twllm.serve.completion_shapes import CompletionRequest
from twllm.serve.generation import Engine
from twllm.serve.openai import CLIENT_CLOSED, ask, internal_error, log, sse
from twllm.serve.protocol import ApiError
from twllm.serve.text import AnswerText
from twllm.serve.token_text import TokenText, encode_raw
from twllm.serve.tokenize import tokenize_routes

if TYPE_CHECKING:
    from twllm.serve.scoring import Top

CONCURRENT = 32  # answers of one request asked of the engine at once; chosen
Emit = Callable[["Choice", str], None]


@dataclass
class Choice:
    """One answer in the making: `prompt` ids, `echo` the text shown before it, then what the model wrote."""

    index: int
    prompt: list[int]
    echo: str
    seed: int | None
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None

    def body(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        """The choice, or a piece of it, as clients see it."""
        return {"index": self.index, "text": text, "logprobs": self.logprobs, "finish_reason": finish_reason}


class Completion:
    """One request: its choices, written and scored."""

    def __init__(self, engine: Engine, texts: TokenText, body: CompletionRequest, model_name: str) -> None:
        """Check the request.

        Raises:
            ApiError: something that cannot be done, or a prompt that does not fit.
        """
        body.refuse_unsupported()
        self.engine, self.texts, self.body = engine, texts, body
        self.sampling = body.sampling(engine.defaults)
        self.model: Any = getattr(engine, "model", None)
        if body.logprobs is not None and self.model is None:
            raise ApiError("這個引擎沒有 logprobs (not supported)", param="logprobs", code="unsupported_parameter")
        prompts = [self._prompt(prompt) for prompt in body.prompts()]
        self.choices = [
            Choice(i * body.count + j, ids, text, None if body.seed is None else (body.seed + j) % 2**64)
            for i, (ids, text) in enumerate(prompts)
            for j in range(body.count)
        ]
        self.prompt_tokens = sum(len(ids) for ids, _ in prompts)
        self.shared = {
            "id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()),
            "model": model_name, "system_fingerprint": engine.model_fingerprint,
        }  # fmt: skip

    def _prompt(self, prompt: str | list[int]) -> tuple[list[int], str]:
        """Ids, and the text that echo shows."""
        tokenizer, echo = self.engine.tokenizer, bool(self.body.echo)
        if isinstance(prompt, str):
            ids, text = encode_raw(tokenizer, prompt), prompt
        else:
            ids, text = prompt, tokenizer.decode(prompt) if echo else ""
        if not ids:
            raise ApiError("提示是空的 (empty prompt)", param="prompt")
        if max(ids) >= tokenizer.vocab_size:
            raise ApiError(f"詞彙裡沒有 {max(ids)} 號 (no such token id)", param="prompt")
        context = self.engine.context
        if context is not None and len(ids) + min(1, self.sampling.max_tokens or 0) > context:
            what = f"提示有 {len(ids)} 個 token，模型的上下文只有 {context} 個 (context length exceeded)"
            raise ApiError(what, param="prompt", code="context_length_exceeded")
        return ids, text if echo else ""

    def usage(self) -> dict[str, int]:
        """Token counts; a prompt counts once however many answers it gets, an end token counts as generated."""
        written = sum(len(choice.ids) for choice in self.choices)
        total = self.prompt_tokens + written
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": written, "total_tokens": total}

    async def run(self, emit: Emit = lambda choice, piece: None) -> None:
        """Write and score all choices; `emit` is told each piece of text, and '' when a choice is finished."""
        wanted, sampling = self.body.logprobs is not None, self.sampling
        greedy = sampling.temperature == 0 and sampling.repetition_penalty == 1
        if sampling.max_tokens == 0:
            for choice in self.choices:
                choice.finish_reason = "length"
                emit(choice, "")
        elif not (wanted and greedy and sampling.max_tokens == 1):
            gate = asyncio.Semaphore(CONCURRENT)
            await together(self._write(choice, gate, emit) for choice in self.choices)
        if wanted:
            await asyncio.to_thread(self._score)

    async def _write(self, choice: Choice, gate: asyncio.Semaphore, emit: Emit) -> None:
        text = AnswerText(self.engine.tokenizer, "", self.body.stops)
        sampling = replace(self.sampling, seed=choice.seed)
        async with gate, aclosing(ask(self.engine, choice.prompt, sampling)) as events:  # type: ignore[type-var]
            async for event in events:
                piece = self._take(choice, text, event.id, event.finish_reason)
                emit(choice, piece)
                if choice.finish_reason:
                    return
        raise ApiError("伺服器正在關閉 (server is shutting down)", 503, type="server_error")

    def _take(self, choice: Choice, text: AnswerText, id: int, finish_reason: str | None) -> str:
        """One more id; the text that it settles. An id that ends the answer is no text."""
        choice.ids.append(id)
        piece = "" if finish_reason == "stop" else text.push(id)
        if finish_reason:
            piece += text.finish()
        choice.text += piece
        choice.finish_reason = "stop" if text.stopped else finish_reason
        return piece

    def _score(self) -> None:
        """Log-probabilities of all choices; the answer too where the pass over the prompt gives it away."""
        from twllm.serve.scoring import score

        top = self.body.logprobs or 0
        found = score(self.model, [choice.prompt + choice.ids for choice in self.choices], max(1, top))
        ends: frozenset[int] = getattr(self.engine, "end_ids", frozenset({self.engine.tokenizer.eos_id}))
        for choice, scores in zip(self.choices, found, strict=True):
            given = scores.given
            if choice.finish_reason is None:  # one greedy token
                id, logprob = scores.best[-1][0]
                given = [*given, logprob]
                text = AnswerText(self.engine.tokenizer, "", self.body.stops)
                self._take(choice, text, id, "stop" if id in ends else "length")
            choice.logprobs = self._logprobs(choice, given, [best[:top] for best in scores.best])

    def _logprobs(self, choice: Choice, given: Sequence[float], best: "Sequence[Top]") -> dict[str, Any]:
        """OpenAI's four lists; the token that stands there is among its position's best, with the same number."""
        ids = choice.prompt + choice.ids
        start = 0 if self.body.echo else len(choice.prompt)
        rows = [
            None,
            *(self.texts.names([*row, own]) for row, own in zip(best, zip(ids[1:], given, strict=True), strict=False)),
        ]
        return {
            "tokens": [self.texts.name(id) for id in ids[start:]],
            "token_logprobs": [None, *given][start:],
            "top_logprobs": rows[start:],
            "text_offset": self.texts.offsets(ids[start:], choice.echo + choice.text),
        }

    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        choices = [choice.body(choice.echo + choice.text, choice.finish_reason) for choice in self.choices]
        return {**self.shared, "choices": choices, "usage": self.usage()}


def completions_routes(engine: Engine, model_name: str, on_text: Callable[[str], None] = lambda _: None) -> APIRouter:
    """The router for one engine; `on_text` is told finished answers (not echoed prompts, which are measured, not answered)."""
    router = APIRouter()
    texts = TokenText(engine.tokenizer)
    router.include_router(tokenize_routes(engine, texts))

    @router.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        completion = Completion(engine, texts, body, model_name)
        if body.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second is for nginx
            return StreamingResponse(stream(completion), media_type="text/event-stream", headers=headers)
        if not await finished(completion.run(), request):
            return Response(status_code=CLIENT_CLOSED)
        for choice in completion.choices if not body.echo else []:
            on_text(choice.text)
        return JSONResponse(completion.whole())

    return router


async def stream(completion: Completion) -> AsyncIterator[str]:
    """The choices' pieces as server-sent events, mixed as they come; usage if asked for, `[DONE]`."""
    body, shared = completion.body, completion.shared
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    waiting: asyncio.Queue[tuple[Choice, str, str | None] | None] = asyncio.Queue()

    def chunk(choice: Choice, text: str, finish_reason: str | None) -> str:
        usage = {"usage": None} if include_usage else {}
        return sse({**shared, "choices": [choice.body(text, finish_reason)], **usage})

    def emit(choice: Choice, piece: str) -> None:
        if body.logprobs is None and (piece or choice.finish_reason):
            waiting.put_nowait((choice, piece, choice.finish_reason))

    task = asyncio.create_task(completion.run(emit))
    task.add_done_callback(lambda _: waiting.put_nowait(None))
    try:
        for choice in completion.choices if body.echo and body.logprobs is None else []:
            yield chunk(choice, choice.echo, None)
        while (event := await waiting.get()) is not None:
            yield chunk(*event)
        task.result()
        for choice in completion.choices if body.logprobs is not None else []:
            yield chunk(choice, choice.echo + choice.text, choice.finish_reason)
        if include_usage:
            yield sse({**shared, "choices": [], "usage": completion.usage()})
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield sse(error.body())
    except Exception:
        log.exception("completion failed")
        yield sse(internal_error().body())
    finally:
        task.cancel()


async def together(work: Any) -> None:
    """Run all coroutines; the first error ends the others and is raised."""
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def finished(work: Coroutine[Any, Any, None], request: Request) -> bool:
    """Whether the work was finished before the client went away; if not, it is given up."""

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
