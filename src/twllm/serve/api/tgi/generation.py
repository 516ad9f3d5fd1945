"""One request of TGI's API: checked in TGI's order, asked of the engine, told whole or token by token.

Log-probabilities are always told in streams, as TGI does; an engine that cannot give those after the processors (a remote
vLLM) gives none there (null), and refuses requests that ask for details.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from twllm.errors import UserError
from twllm.serve.api.bridge import Answers
from twllm.serve.api.tgi.answer import TgiAnswer
from twllm.serve.api.tgi.shapes import NO_LIMIT, GenerateRequest, TgiError, describe, invalid
from twllm.serve.engines.decoding.tokens import encode_raw
from twllm.serve.engines.interface import EngineUnavailable
from twllm.serve.errors import ApiError
from twllm.serve.operation.record import CURRENT
from twllm.serve.operation.service import Service

log = logging.getLogger("twllm.serve")


def tgi_error(error: Exception) -> TgiError:
    """Any error as TGI would tell it; our own bugs are logged, not told."""
    if isinstance(error, TgiError):
        return error
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return TgiError(describe(first), 400 if first["type"] == "json_invalid" else 422)
    if isinstance(error, ApiError):
        if error.status == 503:
            return TgiError(error.message, 503, "healthcheck")
        return TgiError(error.message, 422 if error.status == 400 else error.status, error.error_type)
    if isinstance(error, HTTPException):  # a body that is not UTF-8, say
        return TgiError(str(error.detail), error.status_code)
    if isinstance(error, UserError):  # a grammar that the engine cannot follow, say
        return invalid(f"grammar is not valid: {error.what}")
    log.error("generation failed", exc_info=error)
    if isinstance(error, EngineUnavailable):
        return TgiError("Request failed during generation: engine unavailable", 503, "generation")
    return TgiError("Request failed during generation: internal error", 424, "generation")


class Generation:
    """A checked request."""

    def __init__(self, service: Service, body: GenerateRequest, *, stream: bool) -> None:
        """Check it, in TGI's order.

        Raises:
            TgiError: what is wrong.
        """
        self.started = time.perf_counter()
        self.body, self.given = body, body.given
        self.model = service.default
        engine = self.model.engine
        self.given.check(stream=stream)
        if not body.inputs:
            raise invalid("`inputs` cannot be empty")
        total = service.context(self.model) or NO_LIMIT
        truncate, new = self.given.truncate, self.given.max_new_tokens
        if truncate is not None and not 0 < truncate < total:
            raise invalid(f"`truncate` must be strictly positive and less than {total - 1}. Given: {truncate}")
        ids = encode_raw(engine.tokenizer, body.inputs)
        self.ids = ids if truncate is None else ids[-truncate:]
        if new is not None and len(self.ids) + new > total:
            what = f"Given: {len(self.ids)} `inputs` tokens and {new} `max_new_tokens`"
            raise invalid(f"`inputs` tokens + `max_new_tokens` must be <= {total}. {what}")
        if len(self.ids) > total - 1:
            raise invalid(f"`inputs` must have less than {total - 1} tokens. Given: {len(self.ids)}")
        limit = total - len(self.ids) if new is None else new
        self.sampling = self.given.sampling(limit, engine.tokenizer.vocab_size)
        best_of = self.given.best_of or 1
        self._seeds = [secrets.randbits(63) for _ in range(best_of)] if best_of > 1 else [self.sampling.seed]
        self.results = [TgiAnswer(self.model, self.ids, limit, self.given.stop or [], seed) for seed in self._seeds]
        self._needs_logprobs = bool(self.given.details or self.given.top_n_tokens or best_of > 1)
        if not (self._needs_logprobs or stream):
            self.sampling = replace(self.sampling, logprobs=None, processed_logprobs=False)
        self._ask()
        self.checked = time.perf_counter()

    def _ask(self) -> None:
        jobs = [(self.ids, replace(self.sampling, seed=seed)) for seed in self._seeds]
        self.answers = Answers(self.model.engine, jobs)

    def close(self) -> None:
        """Cancel what is still running."""
        self.answers.close()

    async def begin(self) -> None:
        """Submit, so that what is wrong with the request is said before its first event."""
        try:
            await self.answers.begin()
        except UserError as error:
            self._go_without(error)
            await self.answers.begin()

    def _go_without(self, error: UserError) -> None:
        """Ask again without log-probabilities where only they are too much for the engine, else raise `error`."""
        if self._needs_logprobs or self.sampling.logprobs is None or str(error.where) != "sampling":
            raise error
        self.sampling = replace(self.sampling, logprobs=None, processed_logprobs=False)
        self.close()
        self._ask()

    async def run(self) -> AsyncIterator[tuple[TgiAnswer, dict[str, Any]]]:
        """Each token of each answer."""
        await self.begin()
        try:
            while True:
                try:
                    number, event = await anext(self.answers)
                except StopAsyncIteration:
                    return
                except UserError as error:  # some engines say it later
                    if any(result.tokens for result in self.results):
                        raise
                    self._go_without(error)
                    await self.answers.begin()
                    continue
                result = self.results[number]
                token = result.push(event)
                if result.finish_reason:
                    self.answers.drop(number)
                yield result, token
        finally:
            self.close()

    def text(self, result: TgiAnswer) -> str:
        """What is told as generated."""
        return self.body.inputs + result.text if self.given.return_full_text else result.text

    async def prefill(self) -> list[dict[str, Any]]:
        """The prompt's tokens with their log-probabilities, if asked for."""
        if not self.given.decoder_input_details:
            return []
        engine, texts = self.model.engine, self.model.texts
        (scores,) = await asyncio.to_thread(engine.prompt_logprobs, [self.ids], 1)
        numbers = [None, *scores.given]
        return [
            {"id": id, "text": texts.bytes_of(id).decode("utf-8", "replace"), "logprob": number}
            for id, number in zip(self.ids, numbers, strict=True)
        ]

    async def whole(self) -> dict[str, Any]:
        """The answer of /generate; of several the one whose tokens are most likely on average."""
        async for _ in self.run():
            pass
        best, *others = sorted(self.results, key=TgiAnswer.mean_logprob, reverse=True)
        answer: dict[str, Any] = {"generated_text": self.text(best)}
        if not (self.given.details or self.given.decoder_input_details):
            return answer
        prefill = await self.prefill()
        details = best.details(prefill)
        if others:
            details["best_of_sequences"] = [
                {"generated_text": self.text(other), **other.details(prefill)} for other in others
            ]
        return {**answer, "details": details}

    def headers(self) -> dict[str, str]:
        """TGI's measurements; times in ms."""
        now = time.perf_counter()
        record = CURRENT.get()
        queued = record.queued_s if record else 0.0
        written = sum(len(result.tokens) for result in self.results)
        inference = now - self.checked
        times = {
            "total": now - self.started + queued,
            "validation": self.checked - self.started,
            "queue": queued,
            "inference": inference,
        }
        return {
            **self.compute_headers(), "x-compute-time": f"{times['total']:.6f}", "x-prompt-tokens": str(len(self.ids)),
            "x-generated-tokens": str(written), "x-time-per-token": _ms(inference / max(1, written)),
            **{f"x-{name}-time": _ms(seconds) for name, seconds in times.items()},
        }  # fmt: skip

    def compute_headers(self) -> dict[str, str]:
        """The headers that are known before the answer."""
        device = str(getattr(self.model.engine, "device", "cpu"))
        return {
            "x-compute-type": "cpu" if device.startswith("cpu") else "gpu",
            "x-compute-characters": str(len(self.body.inputs)),
        }


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))
