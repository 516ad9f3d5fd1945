"""Shapes and checks of text-generation-inference's API (3.3): what clients send, what they get, what is refused with which words.

Field by field as TGI's router does it: null means "not given", unknown fields are ignored, the order of the checks and their
messages are TGI's, because clients show them. Refused though TGI knows them: `watermark` and `adapter_id` (422).
"""

import secrets
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from twllm.serve.api.sampling import schema_grammar
from twllm.serve.api.shapes import Shape
from twllm.serve.engines.interface import Grammar, Sampling

MAX_BEST_OF = 2  # these four are TGI's defaults
MAX_STOPS = 4
MAX_TOP_N = 5
MAX_CLIENT_BATCH = 4
NO_LIMIT = 1 << 30  # tokens, for models without one
Count = Annotated[int, Field(ge=0, le=2**32 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**64 - 1)]


class TgiError(Exception):
    """An error in TGI's shape."""

    def __init__(self, message: str, status: int = 422, error_type: str = "validation") -> None:
        super().__init__(message)
        self.message, self.status, self.error_type = message, status, error_type

    def body(self) -> dict[str, str]:
        """`{"error", "error_type"}`."""
        return {"error": self.message, "error_type": self.error_type}


def invalid(message: str) -> TgiError:
    """A request that cannot be fulfilled."""
    return TgiError(f"Input validation error: {message}")


class ErrorResponse(Shape):
    """Every error of TGI's API."""

    error: str
    error_type: str


class GrammarShape(Shape):
    """What the answer must look like: a JSON schema or a regular expression."""

    type: Literal["json", "json_object", "regex", "json_schema"]
    value: Any = None

    def grammar(self) -> Grammar:
        """As engines take it.

        Raises:
            TgiError: it is none.
        """
        if self.type == "regex":
            if not isinstance(self.value, str) or not self.value:
                raise invalid("grammar is not valid: a regex is a string that is not empty")
            return Grammar("regex", self.value)
        value = self.value
        if self.type == "json_schema" and isinstance(value, dict):
            value = value.get("schema", value)
        try:
            grammar = schema_grammar(value, "grammar")
        except Exception as error:
            raise invalid(f"grammar is not valid: {error}") from error
        if self.type != "json_schema" and "properties" not in grammar.value:
            raise invalid("grammar is not valid: Grammar must have a 'properties' field")
        return grammar


class GenerateParameters(Shape):
    """How to answer; every field may be null."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    best_of: Count | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool | None = None
    max_new_tokens: Count | None = None
    return_full_text: bool | None = None
    stop: list[str] | None = None
    truncate: Count | None = None
    watermark: bool | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    seed: Seed | None = None
    top_n_tokens: Count | None = None
    grammar: GrammarShape | None = None
    adapter_id: str | None = None

    @property
    def sampled(self) -> bool:
        """Whether ids are drawn: asked for, or implied by a setting that only drawing has."""
        return bool(
            self.do_sample
            or (self.temperature is not None and self.temperature != 1.0)
            or self.top_k is not None
            or self.top_p is not None
            or self.typical_p is not None
        )

    def check(self, *, stream: bool) -> None:
        """TGI's checks in TGI's order.

        Raises:
            TgiError: the first thing that is wrong.
        """
        best_of = 1 if self.best_of is None else self.best_of
        may_draw = self.sampled or self.temperature is not None
        frequency, stops, top_n = self.frequency_penalty, self.stop or [], self.top_n_tokens or 0
        for wrong, message in (
            (not 0 < best_of <= MAX_BEST_OF, f"`best_of` must be > 0 and <= {MAX_BEST_OF}. Given: {best_of}"),
            (best_of > 1 and not may_draw, "you must use sampling when `best_of` is > 1"),
            (best_of > 1 and self.seed is not None, "`seed` must not be set when `best_of` > 1"),
            (best_of > 1 and stream, "`best_of` != 1 is not supported when streaming tokens"),
            (stream and self.decoder_input_details, "`decoder_input_details` == true is not supported when streaming tokens"),
            (self.temperature is not None and self.temperature <= 0, "`temperature` must be strictly positive"),
            (self.repetition_penalty is not None and self.repetition_penalty <= 0, "`repetition_penalty` must be strictly positive"),
            (frequency is not None and not -2 <= frequency <= 2, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
            (self.top_p is not None and not 0 < self.top_p < 1, "`top_p` must be > 0.0 and < 1.0"),
            (self.typical_p is not None and not 0 < self.typical_p < 1, "`typical_p` must be > 0.0 and < 1.0"),
            (self.top_k is not None and self.top_k <= 0, "`top_k` must be strictly positive"),
            (self.max_new_tokens == 0, "`max_new_tokens` must be strictly positive"),
            (len(stops) > MAX_STOPS, f"`stop` supports up to {MAX_STOPS} stop sequences. Given: {len(stops)}"),
            (top_n > MAX_TOP_N, f"`top_n_tokens` must be >= 0 and <= {MAX_TOP_N}. Given: {top_n}"),
            (self.watermark, "`watermark` is not supported by this server"),
            (self.adapter_id, "`adapter_id` is not supported by this server"),
        ):  # fmt: skip
            if wrong:
                raise invalid(message)

    def sampling(self, max_new_tokens: int, vocab_size: int) -> Sampling:
        """As engines take it; stop strings are the route's. The model's generation_config does not count, as in TGI."""
        drawn = self.sampled
        return Sampling(
            temperature=(self.temperature or 1.0) if drawn else 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=min(self.top_k or 0, vocab_size),
            typical_p=1.0 if self.typical_p is None else self.typical_p,
            max_tokens=max_new_tokens,
            seed=(secrets.randbits(63) if self.seed is None else self.seed) if drawn else None,
            repetition_penalty=self.repetition_penalty or 1.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logprobs=self.top_n_tokens or 0,
            processed_logprobs=True,
            grammar=self.grammar.grammar() if self.grammar else None,
        )


DEFAULT_PARAMETERS = GenerateParameters(do_sample=True)  # where a request has none at all


class GenerateRequest(Shape):
    """Body of /generate and /generate_stream."""

    inputs: str
    parameters: GenerateParameters | None = None

    @property
    def given(self) -> GenerateParameters:
        """The parameters, TGI's defaults where there are none."""
        return self.parameters or DEFAULT_PARAMETERS


class CompatRequest(GenerateRequest):
    """Body of POST /."""

    stream: bool | None = None


class InputToken(Shape):
    """A token of the prompt; the first has no log-probability."""

    id: int
    text: str
    logprob: float | None


class Token(Shape):
    """A token of the answer; `logprob` is null where the engine cannot tell and nobody asked."""

    id: int
    text: str
    logprob: float | None
    special: bool


FinishReason = Literal["length", "eos_token", "stop_sequence"]


class BestOfSequence(Shape):
    """An answer that was not the best."""

    generated_text: str
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[InputToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | None = None


class Details(Shape):
    """How the answer came about."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[InputToken]
    tokens: list[Token]
    best_of_sequences: list[BestOfSequence] | None = None
    top_tokens: list[list[Token]] | None = None


class GenerateResponse(Shape):
    """The answer of /generate; `details` is missing where it was not asked for."""

    generated_text: str
    details: Details | None = None


class ChatTokens(Shape):
    """The answer of /chat_tokenize."""

    tokenize_response: list[dict[str, Any]]
    templated_text: str


class Info(Shape):
    """The answer of /info."""

    model_config = ConfigDict(protected_namespaces=(), frozen=True)

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str
    version: str
    sha: str | None
    docker_label: str | None


def read(shape: Any, value: Any) -> Any:
    """`value` as `shape`.

    Raises:
        TgiError: it is not of this shape.
    """
    try:
        return TypeAdapter(shape).validate_python(value)
    except ValidationError as error:
        raise TgiError(describe(error.errors()[0])) from error


def describe(error: Any) -> str:
    """One of pydantic's errors in a line."""
    where = ".".join(str(part) for part in error["loc"] if part != "body") or "body"
    return f"Failed to deserialize the JSON body: {where}: {error['msg']}"
