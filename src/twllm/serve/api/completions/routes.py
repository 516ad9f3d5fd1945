"""POST /v1/completions: raw prompts (text or ids, several at once), echo and log-probabilities; OpenAI's shape.

A text prompt gets the begin token unless it begins with it; ids are taken as they are. Control tokens written in a text
count: this route has no template, its callers write it themselves (the chat route is where typed control tokens are
text). Choices come prompt by prompt: choice `i * n + j` is answer j to prompt i, and answer j is drawn with `seed + j`.

Log-probabilities are the raw distribution's (before temperature and penalties): a prompt's from one pass over all prompts of the
request, an answer's as they come. Echo with at most one plain greedy token is that pass alone, which is what
lm-evaluation-harness asks. Tokens are listed with the end token, which `text` does not show; offsets count characters of `text`.
A whole answer is the pieces of its stream, joined.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from twllm.serve.api.bridge import Answers, finished
from twllm.serve.api.completions.choice import Choice, Piece
from twllm.serve.api.completions.shapes import CompletionAnswer, CompletionRequest
from twllm.serve.api.event_stream import EventStream, sse
from twllm.serve.api.shapes import ERRORS, EVENTS
from twllm.serve.engines.decoding.tokens import encode_raw
from twllm.serve.engines.interface import PromptScores, Sampling, TokenEvent
from twllm.serve.errors import CLIENT_CLOSED, ApiError
from twllm.serve.operation.service import Model, Service


class Completion:
    """One request: its choices, written and scored."""

    def __init__(self, service: Service, body: CompletionRequest) -> None:
        """Check the request.

        Raises:
            ApiError: something that cannot be done, or a prompt that does not fit.
        """
        body.refuse_unsupported()
        self.model: Model = service.pick(body.model)
        self.engine, self.body = self.model.engine, body
        self._context = service.context(self.model)
        self.sampling = body.sampling(self.engine.defaults, self.engine.tokenizer.vocab_size)
        prompts = [self._prompt(prompt) for prompt in body.prompts()]
        self.prompts = [ids for ids, _ in prompts]
        self.choices = [
            Choice(i * body.count + j, ids, text, self.model, body.stops, logprobs=body.logprobs)
            for i, (ids, text) in enumerate(prompts)
            for j in range(body.count)
        ]
        self.shared = {
            "id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()),
            "model": self.model.name, "system_fingerprint": self.engine.model_fingerprint,
        }  # fmt: skip
        self.one_pass = body.logprobs is not None and bool(body.echo) and _one_greedy(self.sampling)
        jobs = [] if self.one_pass or self.sampling.max_tokens == 0 else [self._settings(c) for c in self.choices]
        self.answers = Answers(self.engine, [(c.prompt, s) for c, s in zip(self.choices, jobs, strict=False)])

    def _prompt(self, prompt: str | list[int]) -> tuple[list[int], str]:
        """Ids, and the text that echo shows."""
        tokenizer, echo = self.engine.tokenizer, bool(self.body.echo)
        if isinstance(prompt, str):
            ids, text = encode_raw(tokenizer, prompt), prompt
        else:
            ids, text = prompt, tokenizer.decode(prompt) if echo and max(prompt) < tokenizer.vocab_size else ""
        if not ids:
            raise ApiError("提示是空的 (empty prompt)", param="prompt")
        if max(ids) >= tokenizer.vocab_size:
            raise ApiError(f"詞彙裡沒有 {max(ids)} 號 (no such token id)", param="prompt")
        context = self._context
        if context is not None and len(ids) + min(1, self.sampling.max_tokens or 0) > context:
            what = f"提示有 {len(ids)} 個 token，模型的上下文只有 {context} 個 (context length exceeded)"
            raise ApiError(what, param="prompt", code="context_length_exceeded")
        return ids, text if echo else ""

    def _settings(self, choice: Choice) -> Sampling:
        seed = self.sampling.seed
        if seed is not None:
            seed = (seed + choice.index % self.body.count) % 2**64
        limit = self.sampling.max_tokens
        if self._context is not None and limit is not None:
            limit = min(limit, self._context - len(choice.prompt))
        return replace(self.sampling, seed=seed, max_tokens=limit)

    def usage(self) -> dict[str, int]:
        """Token counts; a prompt counts once however many answers it gets, an end token counts as generated."""
        read, written = sum(map(len, self.prompts)), sum(choice.num_ids for choice in self.choices)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    async def pieces(self) -> AsyncIterator[tuple[Choice, Piece]]:
        """Everything that is said, in the order in which it comes; a choice's last piece has its finish_reason."""
        if self.body.echo:
            scores = await self._scores()
            for choice in self.choices:
                piece = choice.echoed(scores[choice.index // self.body.count] if scores else None)
                if self.one_pass and scores and self.sampling.max_tokens:
                    id, logprob = scores[choice.index // self.body.count].best[-1][0]
                    top = scores[choice.index // self.body.count].best[-1][: self.body.logprobs]
                    ended = "stop" if id in self.engine.end_ids else "length"
                    yield choice, piece
                    yield choice, choice.push(TokenEvent(id, "", ended, logprob, top))
                elif self.sampling.max_tokens == 0:
                    yield choice, choice.end(piece)
                elif piece.text or piece.logprobs:
                    yield choice, piece
        async with self.answers:
            async for index, event in self.answers:
                choice = self.choices[index]
                piece = choice.push(event)
                if choice.finish_reason:
                    self.answers.drop(index)
                if piece.text or piece.finish_reason:
                    yield choice, piece

    async def _scores(self) -> list[PromptScores] | None:
        """The prompts' log-probabilities, if they are wanted."""
        if self.body.logprobs is None:
            return None
        return await asyncio.to_thread(self.engine.prompt_logprobs, self.prompts, max(1, self.body.logprobs))


def _one_greedy(sampling: Sampling) -> bool:
    """Whether the answer is at most the one token that the model finds best."""
    plain = Sampling(
        max_tokens=sampling.max_tokens, logprobs=sampling.logprobs, seed=sampling.seed, top_p=sampling.top_p,
        top_k=sampling.top_k, min_p=sampling.min_p, typical_p=sampling.typical_p,
    )  # fmt: skip
    return sampling == plain and sampling.max_tokens in (0, 1)


def completions_routes(service: Service) -> APIRouter:
    """The router for all models of a service; finished answers are counted (not echoed prompts, which are measured, not answered)."""
    router = APIRouter()

    @router.post("/v1/completions", response_model=CompletionAnswer, responses={200: EVENTS, **ERRORS})
    async def complete(body: CompletionRequest, request: Request) -> Response:
        return await answer_completion(service, body, request)

    return router


async def answer_completion(service: Service, body: CompletionRequest, request: Request) -> Response:
    """The answers to a completions request, whole or as a stream."""
    completion = Completion(service, body)
    if body.stream:
        await completion.answers.begin()
        return EventStream(stream(completion), completion.answers)

    async def collect() -> None:
        async for _ in completion.pieces():
            pass

    if not await finished(collect(), request):
        return Response(status_code=CLIENT_CLOSED)
    for choice in completion.choices if not body.echo else []:
        service.metrics.observe(choice.text)
    choices = [choice.whole() for choice in completion.choices]
    return JSONResponse({**completion.shared, "choices": choices, "usage": completion.usage()})


async def stream(completion: Completion) -> AsyncIterator[str]:
    """The choices' pieces as server-sent events, mixed as they come; usage if asked for, `[DONE]`."""
    options = completion.body.stream_options
    include_usage = bool(options and options.include_usage)
    more = {"usage": None} if include_usage else {}
    async for choice, piece in completion.pieces():
        yield sse({**completion.shared, "choices": [{"index": choice.index, **piece._asdict()}], **more})
    if include_usage:
        yield sse({**completion.shared, "choices": [], "usage": completion.usage()})
    yield "data: [DONE]\n\n"
