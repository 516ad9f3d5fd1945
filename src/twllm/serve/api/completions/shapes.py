"""Shapes of what clients send to /v1/completions: OpenAI's API as `openai` 3.5x and lm-evaluation-harness 0.4.13 send it.

What we know of and cannot do is refused, as in api/sampling.py.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from twllm.serve.api.sampling import MAX_CHOICES, SamplingFields
from twllm.serve.api.shapes import Id, Shape, StreamOptions, Usage
from twllm.serve.engines.interface import Sampling
from twllm.serve.errors import ApiError

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_LOGPROBS = 5  # OpenAI's


class CompletionRequest(SamplingFields):
    """Body of POST /v1/completions."""

    max_stops: ClassVar[int] = 16  # OpenAI takes 4; lm-eval's tasks have more

    prompt: str | list[str] | list[Id] | list[list[Id]]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: int | None = None
    stream_options: StreamOptions | None = None

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list, texts or ids.

        Raises:
            ApiError: none, an empty one, or more answers than a request may have.
        """
        given: Any = self.prompt
        one = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
        prompts: list[Any] = [given] if one else given
        if not prompts or any(prompt == [] for prompt in prompts):
            raise ApiError("提示是空的 (empty prompt)", param="prompt")
        if len(prompts) * self.count > MAX_CHOICES:
            raise ApiError(f"一次最多 {MAX_CHOICES} 個回答 (too many prompts × n)", param="n")
        return prompts

    def refuse_unsupported(self) -> None:
        """Raise ApiError (400) for a wish that this server cannot fulfil."""
        super().refuse_unsupported()
        if self.best_of not in (None, self.count):
            raise ApiError("還不支援 best_of (not supported)", param="best_of", code="unsupported_parameter")
        if self.max_tokens == 0 and not self.echo:
            raise ApiError("max_tokens 是 0 時要有 echo (max_tokens 0 needs echo)", param="max_tokens")

    def sampling(self, defaults: Sampling, vocab_size: int) -> Sampling:
        """Settings of this request without stop strings, which the route applies; unsaid ones are the model's defaults."""
        sampling = super().sampling(defaults, vocab_size)
        limit = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        return replace(sampling, max_tokens=limit, stop=(), logprobs=self.logprobs)


class CompletionLogprobs(Shape):
    """Four lists, an entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Shape):
    """One answer to one prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionAnswer(Shape):
    """Body of an answer in one piece; streams are `text/event-stream` of pieces of it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
