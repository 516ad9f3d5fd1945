"""Tools for templates that know none: definitions, calls and results as plain text, in the words of a Chinese system text.

The form is Hermes' and Qwen's, which most open models have learned: `<tool_call>` around a JSON object with `name` and
`arguments`, results in `<tool_response>` as the user's turn. Our templates know the roles system, user and assistant only,
and so nothing about training or the template's fingerprint changes. A checkpoint template that reads `tools` gets tools and
messages in transformers' shape instead.
Not covered: templates that know tools and want calls in XML (`<function=…>`): refused by `tools.form_of`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from twllm.tokens.contract import default_system
from twllm.tokens.template import knows_tools
from twllm.tokens.tokenizer import ChatTokenizer

OPEN, CLOSE = "<tool_call>", "</tool_call>"
SYSTEM = """你可以使用下列工具來回答使用者的問題。工具的名稱、說明與參數（JSON Schema）如下，每行一個：
<tools>
{tools}
</tools>
需要工具時，只輸出工具呼叫，每個呼叫都寫成這個樣子，arguments 要符合該工具的參數：
<tool_call>
{{"name": "工具名稱", "arguments": {{"參數": "值"}}}}
</tool_call>
工具的結果會放在 <tool_response> 裡交給你，請根據結果用正體中文回答。不需要工具時，直接回答。{more}"""
ONE = "一次最多呼叫一個工具。"
MUST = "這一次一定要呼叫工具。"
MOST_DEPTH = 64  # as for grammars; templates and JSON writers recurse
Messages = list[dict[str, Any]]


def dumps(value: Any) -> str:
    """JSON as it stands in a prompt."""
    return json.dumps(value, ensure_ascii=False)


def prepare(
    tokenizer: ChatTokenizer,
    messages: Messages,
    tools: Sequence[Mapping[str, Any]],
    *,
    one: bool = False,
    must: bool = False,
) -> tuple[Messages, list[dict[str, Any]] | None]:
    """(messages, tools) as the tokenizer's template takes them; `one`: at most one call, `must`: at least one."""
    if knows_tools(tokenizer.template):
        shaped = [_parsed(message) for message in messages]
        return shaped, [dict(tool) for tool in tools] or None
    plain = _folded(messages)
    if not tools:
        return plain, None
    lines = "\n".join(dumps(tool["function"]) for tool in tools)
    text = SYSTEM.format(tools=lines, more=ONE * one + MUST * must)
    if plain[0]["role"] == "system":
        system, plain = plain[0]["content"], plain[1:]
    else:
        system = default_system(tokenizer)
    return [{"role": "system", "content": f"{system}\n\n{text}" if system else text}, *plain], None


def _parsed(message: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of calls as objects, which transformers' templates expect."""
    if not message.get("tool_calls"):
        return dict(message)
    calls = [
        {**call, "function": {**call["function"], "arguments": arguments_of(call)}} for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def arguments_of(call: Mapping[str, Any]) -> Any:
    """A call's arguments as an object, or as they were sent where they are not JSON."""
    text = call["function"].get("arguments") or "{}"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if too_deep(value) else value


def too_deep(value: Any) -> bool:
    """Whether lists and objects are nested deeper than anybody means; found without recursion."""
    level = [value]
    for _ in range(MOST_DEPTH):
        inner = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [each for parts in inner for each in parts]
        if not level:
            return False
    return True


def _folded(messages: Messages) -> Messages:
    """Calls as text of the assistant, results as text of the user (several in a row are one turn)."""
    found: Messages = []
    results = False  # whether the last turn holds results
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool":
            text = f"<tool_response>\n{content}\n</tool_response>"
            if results:
                found[-1]["content"] += "\n" + text
            else:
                found.append({"role": "user", "content": text})
        else:
            calls = [call_text(call) for call in message.get("tool_calls") or ()]
            text = "\n".join([*([content] if content else []), *calls]) if calls else content
            found.append({"role": role, "content": text})
        results = role == "tool"
    return found


def call_text(call: Mapping[str, Any]) -> str:
    """One call as the model writes it."""
    said = {"name": call["function"]["name"], "arguments": arguments_of(call)}
    return f"{OPEN}\n{dumps(said)}\n{CLOSE}"
