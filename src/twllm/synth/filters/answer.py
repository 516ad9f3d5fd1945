"""Is the message whole, and one message of this speaker? Broken, refused, about itself, looping, echoing, too short or long."""

import json
import re
from collections import Counter

from twllm.corpus.similar import similarity, wording_key
from twllm.synth.filters.base import Message, Rules, message_filter, prose, translation_filter

RUBBISH = re.compile(
    r"<\|[^|>\n]{1,30}\|>|\[/?INST\]|<</?SYS>>|</?s>|</?think>|<(start|end)_of_turn>"  # control tokens of templates
    r"|^\s*(user|assistant|system|human|使用者|用戶|助理|助手|系統|人類)\s*[:：]|^\s*\[(user|assistant|system)\]|^\s*(answer|question|response|output)\s*[:：]"  # a script instead of a message
    r"|</?(div|span|p|br|html|body|script|table|tr|td|ul|li|h[1-6]|font|img|a)\b[^>\n]*>"  # HTML outside code
    r"|^#{1,4}\s*(response|instruction|input|output|回應|指令|輸入|輸出)\s*[:：]"  # headings of training data
    r"|(\\u[0-9a-f]{4}){2}|(\\n.*){2,}|&(nbsp|lt|gt|amp|quot|#\d+);",  # escapes that nobody undid
    re.I | re.M,
)
LOOP = re.compile(r"(.{1,60}?)\1{2,}", re.S)
LIST_ITEM = re.compile(r"^\s*([-*•・]|\d{1,2}[.、)]|[一二三四五六七八九十]{1,2}、|#{1,6}\s)", re.M)
ENDS = "。！？!?…～~」』）)】》〉”\"'*`|]｜；;.:：>"
OPEN_ENDS = "，、,（(「『《〈【［["


@translation_filter("half_answer")
@message_filter("half_answer")
def half_answer(message: Message, rules: Rules) -> str | None:
    """The model ran into its token limit."""
    return "finish_reason = length" if message.finish_reason == "length" else None


@translation_filter("refusal")
@message_filter("refusal")
def refusal(message: Message, rules: Rules) -> str | None:
    """Declined, where declining is not what the topic is about."""
    if message.refusal:
        return message.refusal
    if message.finish_reason == "content_filter":
        return "finish_reason = content_filter"
    if rules.allows("may_refuse", message.topic) or (message.source and rules.prompts.find("refusal", message.source)):
        return None
    spoken = message.text[:200] if message.role == "assistant" or message.source else ""
    return rules.prompts.find("refusal", spoken)


@translation_filter("empty")
@message_filter("empty")
def empty(message: Message, rules: Rules) -> str | None:
    """Nothing is said: no letter, digit or symbol such as 👍."""
    return "no text" if not re.search(r"[^\s\W]|[^\x00-\x7f\s，。、！？；：「」『』（）…—～·]", message.text) else None


@translation_filter("garbled")
@message_filter("garbled")
def garbled(message: Message, rules: Rules) -> str | None:
    """Broken characters."""
    broken = re.search(r"\ufffd|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|[\ue000-\uf8ff]", message.text)
    return f"U+{ord(broken.group(0)):04X}" if broken else None


@translation_filter("code_fence")
@message_filter("code_fence")
def code_fence(message: Message, rules: Rules) -> str | None:
    """A ``` or ~~~ that nothing closes, or one too many."""
    opened = ""
    for line in message.text.split("\n"):
        mark = re.match(r"[ \t>]*(`{3,}|~{3,})(.*)", line)
        if not mark or (mark.group(1)[0] == "`" and "`" in mark.group(2)):  # ```x``` in one line is inline code
            continue
        if not opened:
            opened = mark.group(1)
        elif mark.group(1).startswith(opened) and not mark.group(2).strip():
            opened = ""
    if opened:
        return f"{opened} is not closed"
    return "odd number of ```" if message.text.count("```") % 2 else None


@message_filter("rubbish")
def rubbish(message: Message, rules: Rules) -> str | None:
    """Control tokens, a script of both roles, HTML or escapes in prose; JSON instead of a message."""
    text = prose(message.text)
    if found := RUBBISH.search(text):
        return found.group(0)[:60]
    if text.lstrip()[:1] in ("{", "["):
        try:
            return "JSON" if isinstance(json.loads(text), dict | list) else None
        except ValueError:
            return "JSON-like" if re.match(r"\s*[{\[]\s*[\"'{]", text) else None
    return None


@translation_filter("rubbish")
def rubbish_in_translation(message: Message, rules: Rules) -> str | None:
    """The same, unless the source has it."""
    found = RUBBISH.search(prose(message.text))
    if found and not RUBBISH.search(prose(message.source)):
        return found.group(0)[:60]
    return "JSON" if message.text.lstrip()[:1] == "{" and "{" not in message.source else None


@message_filter("meta")
def meta(message: Message, rules: Rules) -> str | None:
    """Talks of itself as a model (「作為一個AI」) where nobody asked."""
    if rules.allows("may_tell_identity", message.topic) or rules.allows("may_refuse", message.topic):
        return None
    return rules.prompts.find("meta", prose(message.text))


@translation_filter("meta")
def meta_in_translation(message: Message, rules: Rules) -> str | None:
    """An assistant's talk of itself as a model, also where the source has it: nobody should learn it."""
    return rules.prompts.find("meta", prose(message.text)) if message.role == "assistant" else None


@message_filter("role_flip")
def role_flip(message: Message, rules: Rules) -> str | None:
    """The user's role answers like an assistant: its phrases, or a structured text where nobody pastes one."""
    if message.role != "user":
        return None
    if said := rules.prompts.find("role_flip", message.text):
        return said
    listed = len(LIST_ITEM.findall(message.text))
    asks = "？" in message.text or "?" in message.text
    pastes = rules.allows("may_paste", message.topic)
    return f"{listed} list items" if listed >= 3 and not asks and not pastes else None


@translation_filter("loop")
@message_filter("loop")
def loop(message: Message, rules: Rules) -> str | None:
    """A piece repeated at once, a sentence three times, or few distinct 4-grams; tables' borders do not count."""
    if message.source and _looping(message.source, rules):
        return None
    return _looping(message.text, rules)


def _looping(text: str, rules: Rules) -> str | None:
    text = prose(text)
    key = wording_key(TABLE_ROW.sub("", text))[:8000]  # columns repeat themselves
    for found in LOOP.finditer(key):
        limit = rules.config.max_loop_chars * (1 if len(found.group(1)) > 1 else 2)  # 哈哈哈哈哈哈
        if len(found.group(0)) > limit and not found.group(0).isdigit():
            return f"{found.group(1)[:30]} × {len(found.group(0)) // len(found.group(1))}"
    sentences = Counter(wording_key(LIST_ITEM.sub("", part)) for part in re.split(r"[。！？!?\n]", text))
    for sentence, count in sentences.items():
        if (len(sentence) >= 8 and count >= 3) or (len(sentence) >= 3 and count >= 5):
            return f"{sentence[:30]} × {count}"
    grams = [key[at : at + 4] for at in range(len(key) - 3)]
    if len(key) >= 100 and len(set(grams)) < rules.config.min_distinct_grams * len(grams):
        return f"{len(set(grams)) / len(grams):.2f} distinct 4-grams"
    return None


@message_filter("echo")
def echo(message: Message, rules: Rules) -> str | None:
    """Says again what was said just before, or what this speaker has said already."""
    if len(wording_key(message.text)) < 10:
        return None
    for at, earlier in enumerate(message.before):
        if earlier["role"] == message.role or at == len(message.before) - 1:
            same = similarity(message.text, earlier["content"])
            if same > rules.config.max_echo:
                return f"{same:.2f} like message {at}"
    return None


@message_filter("cut_off")
def cut_off(message: Message, rules: Rules) -> str | None:
    """Ends in the middle: at a comma or an opening bracket, or without a stop where this speaker writes stops."""
    if message.role == "user":
        return None
    answers = [earlier["content"].rstrip() for earlier in message.before if earlier["role"] == "assistant"]
    return _cut(message.text, stops=bool(answers) and all(answer[-1:] in ENDS for answer in answers))


@translation_filter("cut_off")
def cut_off_translation(message: Message, rules: Rules) -> str | None:
    """Ends in the middle where the source ends with a stop."""
    ends = message.source.rstrip()[-1:] in ".!?。！？"
    return _cut(message.text, stops=True) if ends and not _cut(message.source) else None


def _cut(text: str, stops: bool = False) -> str | None:
    text = text.rstrip()
    if (text[-1:] and text[-1] in OPEN_ENDS) or text.count("「") > text.count("」"):
        return f"…{text[-12:]}"
    last = text.rpartition("\n")[2]
    listed = LIST_ITEM.match(last) or last.lstrip().startswith("|")
    ends = text[-1:] in ENDS or not (text[-1:].isalnum()) or re.search(r"\s\S{1,8}$", last)  # signed: 　小安媽媽
    if ends or listed or "```" in last or URL_AT_END.search(last) or len(last) < 12:
        return None
    stops = stops and len(last) >= 20 and "，" in last
    return f"…{text[-12:]}" if stops or re.search(r"[。！？]", text) else None


TABLE_ROW = re.compile(r"^\s*\|.*$", re.M)
URL_AT_END = re.compile(r"https?://\S+$")


@message_filter("length")
def length(message: Message, rules: Rules) -> str | None:
    """Shorter or longer than this role's messages may be."""
    limit = rules.config.max_chars_user if message.role == "user" else rules.config.max_chars_assistant
    if message.role == "user" and rules.allows("may_paste", message.topic):
        limit *= 4
    size = len(message.text)
    if size > limit:
        return f"{size} > {limit} characters"
    return f"{size} characters" if size < rules.config.min_chars else None
