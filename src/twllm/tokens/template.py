"""Chat templates: messages → one text with marked spans → ids and loss mask, in one tokenisation.

A template is Jinja, kept in the tokenizer folder (`chat_template.jinja`), with `{% generation %}` around what the model
learns to say, so transformers, vLLM and TGI render the same text. Two things are done differently from
`apply_chat_template(tokenize=True)`, at no cost for ordinary text (ids are equal, held by a test):

* Message contents are rendered as placeholders and put in afterwards, so that we know which characters the template wrote
  and which a person typed. A control token is one only where the template wrote it; typed by a person it is plain text.
* The loss mask comes from the same character spans.

Templates: `taiwan-llm-v1`, `taiwan-llm-v2` (Vicuna v1.1 separators, https://arxiv.org/abs/2311.17487), `chatml`.
A checkpoint's own template may know `tools`: their definitions, and all of a message but role and content, are given to it as they
are, so that it can compare and print them; only control tokens written in them become placeholders.
A content may be a list of texts and pictures (picture_template.py). Not covered: templates that look inside a message's text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from twllm.errors import UserError, did_you_mean

FOLDER = Path(__file__).parent / "templates"
CONTROL_TOKENS = {  # what each template needs in the vocabulary: BOS, end token, others
    "taiwan-llm-v1": ("<s>", "</s>"),
    "taiwan-llm-v2": ("<s>", "</s>"),
    "chatml": ("<s>", "<|im_end|>", "<|im_start|>"),
}
Messages = Sequence[Mapping[str, Any]]
GENERATION = re.compile(r"{%[-+]?\s*generation\b")
SURROGATE = re.compile("[\ud800-\udfff]")
PLACEHOLDER = re.compile("\x02(\\d+)\x03|(\x04)|(\x05)")
SIGNS = re.compile("[\x02-\x05]")
ESCAPED = re.compile(r"\\u0002(\d+)\\u0003")  # a placeholder after `tojson`


@dataclass(frozen=True)
class Rendered:
    """A chat as text. `typed` and `learned` are half-open character spans: what people wrote, what the loss covers."""

    text: str
    typed: tuple[tuple[int, int], ...]
    learned: tuple[tuple[int, int], ...]


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` → the body between two marks."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([nodes.TemplateData(sign)], lineno=line) for sign in "\x04\x05")
        return [begin, *body, end]


def _raise(message: str) -> None:
    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    """transformers' `tojson`: no HTML escapes, Chinese as it is."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)
    return ESCAPED.sub("\x02\\1\x03", text)


@lru_cache(maxsize=32)
def _compile(source: str) -> Any:
    extensions = [_Generation, "jinja2.ext.loopcontrols"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = _tojson
    return environment.from_string(source)


@lru_cache(maxsize=32)
def knows_tools(source: str) -> bool:
    """Whether the template reads `tools`."""
    extensions = [_Generation, "jinja2.ext.loopcontrols"]
    parsed = ImmutableSandboxedEnvironment(extensions=extensions).parse(source)
    return any(name.name == "tools" for name in parsed.find_all(nodes.Name))


def load_template(name: str) -> str:
    """The Jinja source of a shipped template.

    Raises:
        UserError: no template has that name.
    """
    file = FOLDER / f"{name}.jinja"
    if name not in CONTROL_TOKENS:
        raise UserError("沒有這個對話範本 (unknown chat template)", name, did_you_mean(name, CONTROL_TOKENS))
    return file.read_text(encoding="utf-8").rstrip("\n")


def clean_text(text: str) -> str:
    """Lone surrogates, which no UTF-8 tokenizer can take, become U+FFFD."""
    return SURROGATE.sub("\ufffd", text)


def render(
    source: str,
    messages: Messages,
    *,
    add_generation_prompt: bool = False,
    bos_token: str = "",
    eos_token: str = "",
    tools: Sequence[Mapping[str, Any]] | None = None,
    control: re.Pattern[str] | None = None,
) -> Rendered:
    """Render `messages` with the Jinja `source`, keeping track of who wrote which characters.

    `control` finds control tokens in what comes with messages and `tools` beside role and content.

    Raises:
        UserError: the template refuses the messages (an unknown role, say) or a message lacks `role` or `content`.
    """
    try:
        contents: list[str] = []
        marked = [
            {
                "role": message["role"],
                "content": _marked(message["content"], contents),
                **_rest(message, control, contents),
            }
            for message in messages
        ]
        skeleton = _compile(source).render(
            messages=marked,
            add_generation_prompt=add_generation_prompt,
            bos_token=bos_token,
            eos_token=eos_token,
            tools=_guard(tools, control, contents),
            documents=None,
        )
    except (TemplateError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"對話範本不接受這些訊息 (chat template): {error}", "messages", "檢查 role 與 content"
        ) from error
    parts: list[str] = []
    typed: list[tuple[int, int]] = []
    learned: list[tuple[int, int]] = []
    position = end = start = 0
    for match in PLACEHOLDER.finditer(skeleton):
        parts.append(skeleton[end : match.start()])
        position += len(parts[-1])
        end = match.end()
        if match[1]:
            parts.append(contents[int(match[1])])
            typed.append((position, position + len(parts[-1])))
            position += len(parts[-1])
        elif match[2]:
            start = position
        else:
            learned.append((start, position))
    parts.append(skeleton[end:])
    return Rendered("".join(parts), tuple(typed), tuple(learned))


def _marked(content: Any, contents: list[str]) -> str:
    """A content with placeholders for what a person wrote; the parts of one with pictures as picture_template.py says."""
    if not isinstance(content, list | tuple):
        contents.append(clean_text(content))
        return f"\x02{len(contents) - 1}\x03" if content else ""
    text, last = "", ""
    for part in content:
        text += "\n" if last and "image" in (last, part["type"]) else ""
        text += "<image>" if part["type"] == "image" else _marked(part["text"], contents)
        last = part["type"]
    return text


def _rest(message: Mapping[str, Any], control: re.Pattern[str] | None, contents: list[str]) -> Any:
    """What a message has beside role and content, guarded."""
    if len(message) == 2:
        return {}
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    return _guard(rest, control, contents)


def _guard(value: Any, control: re.Pattern[str] | None, contents: list[str]) -> Any:
    """A copy of JSON in which control tokens are placeholders; `contents` gets what they stand for."""
    if isinstance(value, Mapping):
        return {_guard(key, control, contents): _guard(each, control, contents) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_guard(each, control, contents) for each in value]
    if not isinstance(value, str):
        return value

    def hide(found: re.Match[str]) -> str:
        contents.append(found[0])
        return f"\x02{len(contents) - 1}\x03"

    text = SIGNS.sub("", clean_text(value))
    return control.sub(hide, text) if control else text
