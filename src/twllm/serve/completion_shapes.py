"""Shapes of what clients send to /v1/completions, /tokenize and /detokenize.

OpenAI's completions API as `openai` 3.54 and lm-evaluation-harness 0.4.13 send it; tokenizer routes as vLLM (`prompt`,
`messages`) and TGI (`inputs`) have them. What we know of and cannot do is refused, as in `protocol`.
"""

from typing import Annotated, Any

from pydantic import Field, model_validator

from twllm.serve.generation import Sampling
from twllm.serve.protocol import ApiError, Message, StreamOptions, _pick, _Shape

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_LOGPROBS = 5  # OpenAI's
MAX_CHOICES = 1024  # prompts times n of a request; chosen

Id = Annotated[int, Field(ge=0, strict=True)]


class CompletionRequest(_Shape):
    """Body of POST /v1/completions; `top_k` and `repetition_penalty` are vLLM's additions."""

    model: str | None = None  # any name is accepted: one server, one model
    prompt: str | list[str] | list[Id] | list[list[Id]]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None  # OpenAI takes 4; lm-eval's tasks have more
    n: Annotated[int, Field(ge=1)] | None = None
    best_of: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    suffix: str | None = None
    logit_bias: dict[str, float] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None

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

    @property
    def count(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings that are not empty."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in stop if text)

    def refuse_unsupported(self) -> None:
        """Raise ApiError (400) for a wish that this server cannot fulfil."""
        wishes = {
            "best_of": self.best_of not in (None, self.count),
            "suffix": bool(self.suffix),
            "logit_bias": bool(self.logit_bias),
            "frequency_penalty": bool(self.frequency_penalty),
            "presence_penalty": bool(self.presence_penalty),
        }
        for name in (name for name, wished in wishes.items() if wished):
            raise ApiError(f"還不支援 {name} (not supported)", param=name, code="unsupported_parameter")
        if self.max_tokens == 0 and not self.echo:
            raise ApiError("max_tokens 是 0 時要有 echo (max_tokens 0 needs echo)", param="max_tokens")

    def sampling(self, defaults: Sampling) -> Sampling:
        """Settings of this request without stop strings, which the route applies; unsaid ones are the model's defaults."""
        return Sampling(
            temperature=_pick(self.temperature, defaults.temperature),
            top_p=_pick(self.top_p, defaults.top_p),
            top_k=max(0, _pick(self.top_k, defaults.top_k)),
            max_tokens=_pick(self.max_tokens, DEFAULT_MAX_TOKENS),
            seed=self.seed,
            repetition_penalty=_pick(self.repetition_penalty, defaults.repetition_penalty),
        )


class TokenizeRequest(_Shape):
    """Body of POST /tokenize: one of `prompt`, `messages` (vLLM) and `inputs` (TGI)."""

    prompt: str | None = None
    messages: list[Message] | None = None
    inputs: str | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if sum(given is not None for given in (self.prompt, self.messages, self.inputs)) != 1:
            raise ValueError("prompt、messages、inputs 要有一個，也只能有一個 (exactly one of them)")
        return self


class DetokenizeRequest(_Shape):
    """Body of POST /detokenize."""

    tokens: list[Id]
