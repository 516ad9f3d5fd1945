"""Settings of `twllm synth`: the endpoint, the budget, the filters' limits, and what each of the two commands makes.

Each limit below says where it comes from; "chosen" means chosen and looked at, not tuned on marked data.
"""

import json
import tomllib
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from twllm.config import Config
from twllm.errors import UserError, did_you_mean

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class EndpointConfig(Config):
    """Where and how to ask. Nothing here changes what is asked, except `model` and `body`."""

    url: str
    model: str
    api_key_env: str = ""  # "" = OPENAI_API_KEY if it is set
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 8
    timeout_s: Annotated[float, Field(gt=0)] = 180.0  # one answer, from sending to the last byte
    max_attempts: Positive = 8
    backoff_s: Annotated[float, Field(gt=0)] = 0.5  # doubles each time: 0.5 … 32 s, about a minute in all
    max_wait_s: Annotated[float, Field(gt=0)] = 600.0  # a rate limit that asks for more stops the run
    body: dict[str, Any] = Field(default_factory=dict)  # more fields of every request; null takes one out


class BudgetConfig(Config):
    """What may be spent in all runs that share a cache. Prices are per million tokens, in any currency."""

    max_tokens_total: Positive | None = None
    max_cost: Annotated[float, Field(gt=0)] | None = None
    price_in: Annotated[float, Field(ge=0)] | None = None
    price_out: Annotated[float, Field(ge=0)] | None = None


class FilterConfig(Config):
    """Limits of the filters; `off` names filters that are not used."""

    off: tuple[str, ...] = ()
    min_chars: Positive = 1  # 「好」 is an answer
    max_chars_user: Positive = 600  # where users paste texts (topics.may_paste): four times as many
    max_chars_assistant: Positive = 6000
    min_dialogue_chars: Positive = 20  # all answers of a dialogue together
    min_checked_han: Positive = 8  # fewer Han characters say too little about whose Mandarin it is
    max_leaks: Annotated[int, Field(ge=0)] = (
        0  # mainland or Simplified forms in a message; 1 of 1,846 good ones has one
    )
    min_han_share: Share = 0.3  # Han among Han and other words; below it the text is in another language
    max_loop_chars: Positive = 15  # a piece repeated at once, all copies together; twice as many for one character
    min_distinct_grams: Share = 0.5  # distinct 4-grams in texts of 100 characters and more
    max_echo: Share = 0.8  # similarity to the message before, or to an earlier one of the same role
    near_duplicate: Share = 0.7  # similarity to an earlier kept row
    min_ratio_en: Share = 0.1  # characters of the translation per character, English → Chinese; real ones 0.2 … 0.5
    max_ratio_en: Annotated[float, Field(gt=0)] = 1.0
    min_ratio_zh: Share = 0.75  # Simplified → Taiwan; real ones 0.95 … 1.1
    max_ratio_zh: Annotated[float, Field(gt=0)] = 1.35
    max_english_run: Positive = 5  # English words in a row that a translation may keep


class SelfplayConfig(Config):
    """What `twllm synth selfplay` makes."""

    num_dialogues: Positive = 100
    seed: int = 0
    min_turns: Positive = 2  # a turn: one message of the user and its answer
    max_turns: Positive = 4
    topics: tuple[str, ...] = ()  # 「大類」 or 「大類/小類」; () = all but those that the prompts file skips
    user_model: str = ""  # "" = the endpoint's model
    temperature_user: Annotated[float, Field(ge=0, le=2)] = 1.0
    temperature_assistant: Annotated[float, Field(ge=0, le=2)] = 0.7
    max_tokens_user: Positive = 300
    max_tokens_assistant: Positive = 1500
    license: str = ""  # "" = says that nobody has said it
    filters: FilterConfig = FilterConfig()


class TranslateConfig(Config):
    """What `twllm synth translate` makes."""

    language: Literal["auto", "en", "zh-CN"] = "auto"
    seed: int = 0
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.2
    samples: Annotated[int, Field(ge=1, le=20)] = 1  # tries per message until the filters are content
    context_messages: Annotated[int, Field(ge=0)] = (
        2  # messages before it that the translator sees with their translation
    )
    max_tokens: Positive = 4000
    max_rows: Positive | None = None
    license: str = ""  # rows that carry none
    filters: FilterConfig = FilterConfig()


C = TypeVar("C", bound=Config)


def make(model: type[C], values: dict[str, Any], sets: Iterable[str] = ()) -> C:
    """The config from given values (None = not given) and KEY=VALUE overrides such as `filters.max_leaks=3`.

    Raises:
        UserError: an unknown key or a value that does not fit; both are named.
    """
    tree = {key: value for key, value in values.items() if value is not None}
    for item in sets:
        *path, last = item.partition("=")[0].strip().split(".")
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        at[last] = setting_value(item)
    try:
        return model.model_validate_json(json.dumps(tree))  # JSON mode: lists are tuples, 1 is 1.0
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = FilterConfig.model_fields if name.startswith("filters.") else model.model_fields
            raise UserError("沒有這個設定 (unknown setting)", name, did_you_mean(name.split(".")[-1], known)) from error
        raise UserError(
            f"設定的值不對 (bad value)：{first['msg']}", f"{name} = {first['input']!r}", "改成合適的值"
        ) from error


def setting_value(item: str) -> Any:
    """The value of KEY=VALUE: TOML or JSON where it reads as such, otherwise the text itself.

    >>> setting_value("a.b=3"), setting_value("a=null"), setting_value("a=gpt-x")
    (3, None, 'gpt-x')
    """
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise UserError("要寫成 KEY=VALUE", item, "例如 filters.max_leaks=3")
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
