"""Fields that chat and completions share: how ids are drawn, what the answer must look like; from JSON to `Sampling`.

OpenAI's fields, and vLLM's additions as its users send them in `extra_body` (top_k, min_p, repetition_penalty, guided_*,
structured_outputs). `response_format` is taken in OpenAI's shape and in TGI's.
A field that asks for something we cannot do is refused with 400. Fields that change nothing about the answer (user, metadata,
store, …) and unknown ones are ignored; of the unknown each is named once in the log.
"""

import json
import logging
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from twllm.serve.api.shapes import Shape, pick
from twllm.serve.engines.interface import Grammar, Sampling
from twllm.serve.errors import ApiError

log = logging.getLogger("twllm.serve")
MAX_CHOICES = 1024  # answers of one request; chosen
HARMLESS = frozenset(
    [
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prediction",
        "priority",
        "request_id",
        "cache_salt",
        "add_special_tokens",
        "use_cache",
        "return_full_text",
    ]
)
REFUSED: Mapping[str, tuple[Any, ...]] = {  # field → values that ask for nothing
    "suffix": ("",), "audio": (), "modalities": (["text"],), "functions": ([],), "function_call": ("none",),
    "web_search_options": (), "reasoning_effort": ("none",), "verbosity": ("medium",), "guided_grammar": (),
    "guided_whitespace_pattern": (), "prompt_logprobs": (0,), "min_tokens": (0,), "bad_words": ([],),
    "length_penalty": (1, 1.0), "use_beam_search": (False,), "stop_token_ids": ([],), "allowed_token_ids": ([],),
    "include_stop_str_in_output": (False,), "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (), "chat_template": (), "chat_template_kwargs": ({},), "documents": ([],),
    "logits_processors": ([],), "mm_processor_kwargs": ({},), "adapter_id": (), "watermark": (False,),
    "top_n_tokens": (0,), "thinking": (), "reasoning": (), "mirostat": (0,), "mirostat_mode": (0,), "tfs_z": (1, 1.0),
    "grammar": (), "lora_request": (), "return_token_ids": (False,), "return_tokens_as_token_ids": (False,),
}  # fmt: skip
_told: set[str] = set()  # unknown fields that the log has named
Number = Annotated[float, Field(allow_inf_nan=False)]
Bias = dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[Number, Field(ge=-100, le=100)]]


class StructuredOutputs(Shape):
    """vLLM's newer way to say guided_json and its like: exactly one of them."""

    json_: Annotated[dict[str, Any] | bool | str | None, Field(alias="json")] = None
    regex: str | None = None
    choice: list[str] | None = None
    json_object: bool | None = None
    grammar: str | None = None
    structural_tag: Any = None


class ResponseFormat(Shape):
    """`{"type": "text" | "json_object" | "json_schema", "json_schema": {"schema": …}}`, or TGI's `{"type": "json" | "regex", "value": …}`."""

    type: Literal["text", "json_object", "json_schema", "json", "regex"]
    json_schema: dict[str, Any] | None = None
    value: Any = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None  # llama.cpp's

    def grammar(self) -> Grammar | None:
        """What the answer must look like, None for free text."""
        if self.type == "text":
            return None
        if self.type == "regex":
            return regex_grammar(self.value, "response_format.value")
        schema = self.value if self.json_schema is None else self.json_schema.get("schema", self.json_schema)
        schema = self.schema_ if schema is None else schema
        if self.type == "json_schema" and isinstance(schema, dict) and isinstance(schema.get("schema"), dict):
            schema = schema["schema"]  # TGI: {"type": "json_schema", "value": {"name", "schema"}}
        if schema is None and self.type == "json_object":
            return Grammar("json_object")
        return schema_grammar(schema, "response_format")


def schema_grammar(schema: Any, param: str) -> Grammar:
    """The grammar of a JSON schema, given as such or as its text.

    Raises:
        ApiError: it is no schema.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise ApiError(f"JSON schema 不是 JSON (not JSON): {error}", param=param) from error
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ApiError("JSON schema 要是物件 (a schema is an object)", param=param)
    return Grammar("json_schema", schema)


def regex_grammar(pattern: Any, param: str) -> Grammar:
    """The grammar of a regular expression.

    Raises:
        ApiError: no pattern.
    """
    if not isinstance(pattern, str) or not pattern:
        raise ApiError("要有正規表示式 (a pattern is a text)", param=param)
    return Grammar("regex", pattern)


def choice_grammar(choices: list[str], param: str) -> Grammar:
    """The grammar of one of some texts.

    Raises:
        ApiError: there is none to choose.
    """
    given = [text for text in choices if text]
    if not given:
        raise ApiError("選項是空的 (no choices)", param=param)
    return Grammar("choice", given)


class SamplingFields(Shape):
    """What chat and completions have in common."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    max_stops: ClassVar[int] = 4  # OpenAI's

    model: str | None = None
    stream: bool | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Bias | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | str | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def count(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings that are not empty.

        Raises:
            ApiError: too many.
        """
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > self.max_stops:
            raise ApiError(f"最多 {self.max_stops} 個 stop (too many stop strings)", param="stop")
        return tuple(text for text in stop if text)

    def refuse_unsupported(self) -> None:
        """Raise ApiError (400) for a wish that this server cannot fulfil; name ignored fields in the log, each once."""
        for name, value in (self.model_extra or {}).items():
            if value is None or name in HARMLESS:
                continue
            if name not in REFUSED:
                if name not in _told and len(_told) < 100:
                    _told.add(name)
                    log.warning("ignored an unknown field of a request: %.80r", name)
            elif value not in REFUSED[name]:
                raise ApiError(f"不支援 {name} (not supported)", param=name, code="unsupported_parameter")

    def grammar(self) -> Grammar | None:
        """What the answer must look like.

        Raises:
            ApiError: two wishes at once, or one that is not understood.
        """
        outputs = self.structured_outputs or StructuredOutputs()
        if outputs.grammar is not None or outputs.structural_tag is not None:
            raise ApiError("不支援 EBNF 文法 (not supported)", param="structured_outputs", code="unsupported_parameter")
        found = [self.response_format.grammar() if self.response_format else None]
        for name, schema, regex, choice in (
            ("guided_", self.guided_json, self.guided_regex, self.guided_choice),
            ("structured_outputs.", outputs.json_, outputs.regex, outputs.choice),
        ):
            found.append(None if schema in (None, False) else schema_grammar(schema, f"{name}json"))
            found.append(None if regex is None else regex_grammar(regex, f"{name}regex"))
            found.append(None if choice is None else choice_grammar(choice, f"{name}choice"))
        found.append(Grammar("json_object") if outputs.json_object else None)
        wishes = [grammar for grammar in found if grammar]
        if len(wishes) > 1:
            raise ApiError("一次只能有一種格式要求 (only one of them at a time)", param="response_format")
        return wishes[0] if wishes else None

    def bias(self, vocab_size: int) -> tuple[tuple[int, float], ...]:
        """`logit_bias` by id.

        Raises:
            ApiError: an id that the vocabulary does not have.
        """
        found = tuple((int(id), value) for id, value in (self.logit_bias or {}).items())
        for id, _ in found:
            if id >= vocab_size:
                raise ApiError(f"詞彙裡沒有 {id} 號 (no such token id)", param="logit_bias")
        return found

    def sampling(self, defaults: Sampling, vocab_size: int) -> Sampling:
        """Settings of this request; what it does not say comes from the model's defaults.

        Raises:
            ApiError: see `grammar`, `bias` and `stops`.
        """
        given = {
            name: pick(getattr(self, name), getattr(defaults, name))
            for name in [
                "temperature",
                "top_p",
                "min_p",
                "typical_p",
                "repetition_penalty",
                "frequency_penalty",
                "presence_penalty",
                "max_tokens",
            ]
        }
        return Sampling(
            **given,
            top_k=min(max(0, pick(self.top_k, defaults.top_k)), vocab_size),
            stop=self.stops,
            seed=None if self.seed is None else self.seed % 2**64,
            logit_bias=self.bias(vocab_size),
            grammar=self.grammar(),
            ignore_eos=bool(self.ignore_eos),
        )
