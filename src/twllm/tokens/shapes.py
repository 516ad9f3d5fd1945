"""One row → messages, by its shape: OpenAI, ShareGPT, Alpaca, LMSYS, served [[role, text], …], question and answer.

What real files have and how it is treated (each counted under the name in brackets, nothing is changed in silence):
first turn by the model → left out [leading_answer]; two turns of one role → joined by a blank line [merged_turns];
empty turn → left out [empty_turn]; a question without answer at the end → left out [open_question].
Refused, with a reason: tool and function calls, pictures and sound, a message with weight 0, a system message in the
middle, unknown roles, no answer at all. Source of the shapes: OpenAI fine-tuning files, ShareGPT, Stanford Alpaca and
LLaMA-Factory's data/README, FastChat's docs and log scripts, LMSYS-Chat-1M's card.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Messages = list[dict[str, str]]
# fmt: off
ROLES = {
    "human": "user", "prompter": "user", "使用者": "user", "用戶": "user", "question": "user",
    "gpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "claude": "assistant", "gemini": "assistant", "助理": "assistant", "answer": "assistant",
    "developer": "system", "系統": "system",
}
TOOLS = {"tool", "function", "function_call", "observation", "tool_call", "tool_response", "ipython"}
CONTAINERS = ("messages", "conversations", "conversation", "items", "dialogue")
ROLE_KEYS, TEXT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
PAIRS = (  # (question, further input, answer) columns, the first pair that a row has
    ("instruction", "input", "output"), ("instruction", "context", "response"), ("instruction", "input", "response"),
    ("prompt", "", "completion"), ("prompt", "", "response"), ("query", "", "response"), ("question", "", "answer"),
    ("Question", "", "Answer"), ("question", "", "response"), ("問題", "", "答案"), ("問題", "", "回答"), ("問題", "", "解答"),
    ("問", "", "答"), ("提問", "", "回覆"), ("標題", "", "內容"),
)
USED = {key for pair in PAIRS for key in pair} | {*CONTAINERS, "system", "system_message", "history", "questions", "roles", "offset"}
# fmt: on


class BadRow(ValueError):
    """A row that is no conversation: `reason` is counted, the text is told to people."""

    def __init__(self, reason: str, what: str, excerpt: str = "") -> None:
        self.reason, self.excerpt = reason, excerpt
        super().__init__(what)


def parse_messages(
    row: Row, question_key: str = "", answer_key: str = "", repaired: Counter[str] | None = None
) -> Messages:
    """The messages of a row; what had to be put right is counted in `repaired`.

    Raises:
        BadRow (a ValueError): the row has no known shape, no answer, or something we do not train on.
    """
    turns = raw_turns(row, question_key, answer_key)
    system = row.get("system") or row.get("system_message")
    if isinstance(system, str) and system.strip() and not any(role == "system" for role, _ in turns):
        turns = [("system", system), *turns]
    return tidy(turns, Counter() if repaired is None else repaired)


def raw_turns(row: Row, question_key: str = "", answer_key: str = "") -> list[tuple[str, str]]:
    """(role, text) of a row, roles in our words, nothing left out yet."""
    if question_key or answer_key:
        return _pair(row, question_key or "question", "", answer_key or "answer")
    container = next((key for key in CONTAINERS if isinstance(row.get(key), Sequence | Mapping)), None)
    if container is not None and not isinstance(row[container], str):
        return _listed(row, row[container])
    columns = next((pair for pair in PAIRS if pair[0] in row and pair[2] in row), None)
    if columns is None:
        raise _no_shape(row)
    return [*_history(row.get("history")), *_pair(row, *columns)]


def _no_shape(row: Row) -> BadRow:
    """Why a row is no conversation, as far as its keys tell."""
    if {"chosen", "rejected"} <= set(row):
        what = '這是成對的偏好資料：twllm train feedback 加 --set method=dpo，配方是 feedback.method = "dpo" (pairs, for DPO)'
        return BadRow("pairs", what)
    questions = {pair[0] for pair in PAIRS} & set(row)
    if questions:
        key = sorted(questions)[0]
        what = f"只有題目（{key}），沒有回答，不能當對話 (prompt only, no assistant answer)"
        return BadRow("prompt_only", what, str(row.get(key))[:200])
    hint = '；有 text 欄：逐字稿用 format = "transcript"，一般文章放 [corpus]' if "text" in row else ""
    return BadRow(
        "unknown_shape", f"neither messages, nor conversations, nor instruction + output；欄位：{'、'.join(row)}{hint}"
    )


def _listed(row: Row, found: Any) -> list[tuple[str, str]]:
    """Turns of a list of messages, or of FastChat's [[role, text], …] (from `offset` on, roles by `roles`)."""
    if not isinstance(found, Sequence):
        raise BadRow("unknown_shape", "the turns are not a list")
    names = [str(name) for name in row.get("roles") or ()]
    start = row.get("offset")
    turns = []
    for number, item in enumerate(found[start if isinstance(start, int) else 0 :]):
        if isinstance(item, Mapping):
            turns.append(_message(item))
        elif isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2:
            said = str(item[0])
            role = ("user", "assistant")[names.index(said)] if said in names[:2] else role_of(said)
            turns.append((role, text_of(item[1])))
        elif isinstance(item, str):  # a plain list of texts: the speakers take turns
            turns.append((("user", "assistant")[number % 2], item))
        else:
            raise BadRow("unknown_shape", f"turn {number + 1} is neither a message nor [role, text]")
    return turns


def _message(item: Mapping[str, Any]) -> tuple[str, str]:
    role_key = next((key for key in ROLE_KEYS if key in item), None)
    text_key = next((key for key in TEXT_KEYS if key in item), None)
    if role_key is None:
        raise BadRow("unknown_shape", f"a message without role；欄位：{'、'.join(item)}")
    if item.get("tool_calls") or item.get("function_call"):
        raise BadRow("tools", "工具呼叫還不支援 (tool calls are not covered)")
    if item.get("weight") == 0:
        raise BadRow("weight", "weight = 0 的訊息還不支援 (a message that must not be learned)")
    role = role_of(item[role_key])
    return role, text_of(None if text_key is None else item[text_key])


def role_of(name: Any) -> str:
    """system, user or assistant.

    Raises:
        BadRow: a tool's message, or a role we do not know.
    """
    plain = str(name).strip().lower()
    role = ROLES.get(plain, plain)
    if plain in TOOLS:
        raise BadRow("tools", f"工具訊息還不支援 (tool messages are not covered): {name}")
    if role not in ("system", "user", "assistant"):
        raise BadRow("unknown_role", f"unknown role {str(name)!r}")
    return role


def text_of(content: Any) -> str:
    """A message's text: a string, None (empty), a list of text parts, or FastChat's [text, pictures] without pictures.

    Raises:
        BadRow: pictures, sound, or no text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Sequence):
        if len(content) == 2 and isinstance(content[0], str) and isinstance(content[1], list) and not content[1]:
            return content[0]
        parts = []
        for part in content:
            text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
            kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
            if not isinstance(text, str) or kind not in ("text", "input_text", "output_text"):
                raise BadRow("not_text", f"圖片或聲音不支援 (a message's text is not a string): {kind}")
            parts.append(text)
        return "\n".join(parts)
    raise BadRow("not_text", f"a message's text is not a string: {type(content).__name__}")


def _history(found: Any) -> list[tuple[str, str]]:
    """Earlier rounds of an Alpaca row: [[question, answer], …]."""
    turns: list[tuple[str, str]] = []
    for item in found or ():
        if not isinstance(item, Sequence) or isinstance(item, str) or len(item) != 2:
            raise BadRow("unknown_shape", "history 要是 [[問, 答], …] (pairs of question and answer)")
        turns += [("user", text_of(item[0])), ("assistant", text_of(item[1]))]
    return turns


def _pair(row: Row, question_key: str, more_key: str, answer_key: str) -> list[tuple[str, str]]:
    """The turns of two columns; either may hold a list of messages (`prompt`/`completion` of OpenAI's and TRL's files)."""
    for key in (question_key, answer_key):
        if key not in row:
            raise BadRow("unknown_shape", f"沒有「{key}」這一欄 (no such column)；欄位：{'、'.join(row)}")
    turns: list[tuple[str, str]] = []
    for role, key in (("user", question_key), ("assistant", answer_key)):
        value = row[key]
        if isinstance(value, list) and value and isinstance(value[0], Mapping) and "role" in value[0]:
            turns += [_message(item) for item in value]
        else:
            turns.append((role, text_of(value)))
    more = text_of(row.get(more_key)) if more_key else ""
    if more.strip() and turns[0][0] == "user":
        turns[0] = ("user", "\n\n".join(part for part in (turns[0][1], more) if part))
    return turns


def tidy(turns: Sequence[tuple[str, str]], repaired: Counter[str]) -> Messages:
    """Messages that alternate: an optional system message, then user, assistant, …, ending with an answer.

    Raises:
        BadRow: no answer is left, or a system message stands in the middle.
    """
    messages: Messages = []
    found: Counter[str] = Counter()
    for role, text in turns:
        last = messages[-1]["role"] if messages else ""
        if role != "system" and not text.strip():
            found["empty_turn"] += 1
        elif role == "assistant" and last in ("", "system"):
            found["leading_answer"] += 1
        elif role == last:
            messages[-1]["content"] += "\n\n" + text
            found["merged_turns"] += 1
        elif role == "system" and last:
            raise BadRow("system_inside", "系統訊息不在最前面 (a system message after the first turn)")
        else:
            messages.append({"role": role, "content": text})
    if not any(message["role"] == "assistant" for message in messages):
        what = "沒有助理的回答 (no assistant answer)"
        raise BadRow("no_answer", what, next((text[:200] for role, text in turns if role == "user"), ""))
    if messages[-1]["role"] != "assistant":
        messages.pop()
        found["open_question"] += 1
    repaired.update(list(found))
    return messages
