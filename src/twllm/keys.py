"""The keys of recipes and machine files for people: what each means (`twllm recipe keys`), and what is wrong with a value.

Both come from the sections' own fields, so nothing is listed that is not read. Not covered: limits between keys, which the sections say
themselves when they are broken.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from twllm.errors import UserError, did_you_mean

WRONG = {  # pydantic's kind of error → what the value should be
    "int": "要是整數 (a whole number)",
    "float": "要是數字 (a number)",
    "bool": "要是 true 或 false",
    "string": "要是文字，加引號 (a text)",
    "tuple": '要是清單 (a list)：["…"]',
    "list": '要是清單 (a list)：["…"]',
    "dict": "要是表格 (a table)",
    "model": "要是表格 (a table)",
    "greater_than": "要大於 {gt} (above)",
    "greater_than_equal": "不能小於 {ge} (at least)",
    "less_than": "要小於 {lt} (below)",
    "less_than_equal": "不能大於 {le} (at most)",
    "literal_error": "要是其中之一 (one of)：{expected}",
}


def explain(error: Mapping[str, Any], path: str, more: str) -> str:
    """What is wrong, in one sentence, from one of pydantic's errors."""
    kind = str(error["type"])
    if kind == "value_error":  # our own validators speak for themselves
        said = str(error["msg"]).removeprefix("Value error, ")
        return f"{path}：{said}{more}" if path else f"{said}{more}"
    told = WRONG.get(kind) or WRONG.get(kind.split("_")[0]) or str(error["msg"])
    return f"{path or '設定'} 的值不對 (bad value): {told.format(**error.get('ctx', {}))}，收到 {str(error['input'])[:80]!r}{more}"


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a key holds, or a list of; None: a plain value."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def list_keys(sections: Mapping[str, type[BaseModel]], place: str) -> list[tuple[str, str, str]]:
    """(key, default, meaning) of what may stand at `place` ("sft", "sft.lora"); at "" the sections.

    Raises:
        UserError: no such section.
    """
    if not place:
        return [(name, "", (model.__doc__ or "").splitlines()[0]) for name, model in sections.items()]
    first, *rest = place.split(".")
    model = sections.get(first)
    if model is None:
        raise UserError("沒有這個區段 (no such section)", place, did_you_mean(first, sections))
    for part in rest:
        inner = {name: found for name, field in model.model_fields.items() if (found := section_of(field))}
        if part not in inner:
            raise UserError("沒有這個區段 (no such section)", place, did_you_mean(part, inner))
        model = inner[part]
    return [
        (name, _default(f"{place}.{name}", field), field.description or "")
        for name, field in model.model_fields.items()
    ]


def _default(place: str, field: FieldInfo) -> str:
    if section_of(field):
        return f"（twllm recipe keys {place}）"
    if field.is_required():
        return "必填 required"
    value = field.get_default(call_default_factory=True)
    others = [str(other) for other in _choices(field.annotation) if other != value]
    return json.dumps(value, ensure_ascii=False, default=str) + (f"；{'、'.join(others)}" if others else "")


def _choices(kind: Any) -> Sequence[Any]:
    return get_args(kind) if get_origin(kind) is Literal else ()
