"""A Modelfile for Ollama whose template writes, token for token, the prompts that the model was trained with.

The Go template is found by rendering a few chats with the checkpoint's own Jinja template and taking the text between the messages
apart; then it is rendered here as Ollama would render it, for chats of many shapes, and compared. A template that does not come out
the same is refused: Ollama would otherwise guess one by likeness. BOS stays out of it, llama.cpp adds that (`add_bos_token`).
Not covered: tools, images, system messages after the first, templates whose turns differ by place (Llama-2's [INST] with <<SYS>>).
A control token that a person types becomes one in Ollama: it tokenises the whole prompt as text; serve with twllm where that matters.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twllm.errors import UserError
from twllm.release.go_template import names_in, render_go
from twllm.tokens.contract import default_system
from twllm.tokens.tokenizer import ChatTokenizer

MOST_CONTEXT = 8192  # num_ctx takes memory at once; chosen: longer only when asked for
S, U, A, V = "\ue000", "\ue001", "\ue002", "\ue003"  # stand for texts while the template is taken apart


@dataclass(frozen=True)
class Pieces:
    """What the template writes around a system text, a user's message and an answer; `prompt` stands before a new answer.

    `empty_system`: the pieces around a system text are written for an empty one, too.
    """

    system: tuple[str, str]
    user: tuple[str, str]
    answer: tuple[str, str]
    prompt: str
    empty_system: bool


def take_apart(tokenizer: ChatTokenizer) -> Pieces:
    """The pieces of a template.

    Raises:
        UserError: its turns are not made of such pieces.
    """
    system, user, answer = (
        {"role": "system", "content": S},
        {"role": "user", "content": U},
        {"role": "assistant", "content": A},
    )
    again = {"role": "user", "content": V}
    one = _rendered(tokenizer, [system, user])
    asked = _rendered(tokenizer, [system, user], prompt=True)
    two = _rendered(tokenizer, [system, user, answer])
    three = _rendered(tokenizer, [system, user, answer, again])
    head, found_s, rest = one.partition(S)
    between, found_u, after_user = rest.partition(U)
    before_answer, found_a, after_answer = two.removeprefix(one).partition(A)
    before_user, found_v, after_again = three.removeprefix(two).partition(V)
    whole = found_s and found_u and found_a and found_v and asked.startswith(one)
    grows = two.startswith(one) and three.startswith(two)
    if not (whole and grows and after_again == after_user and between.endswith(before_user)):
        raise _refused(tokenizer)
    after_system = between[: len(between) - len(before_user)]
    empty = _rendered(tokenizer, [{"role": "system", "content": ""}, user]).startswith(
        head + after_system + before_user
    )
    return Pieces(
        system=(head, after_system),
        user=(before_user, after_user),
        answer=(before_answer, after_answer),
        prompt=asked.removeprefix(one),
        empty_system=empty and bool(head + after_system),
    )


def go_template(pieces: Pieces) -> str:
    """The template for Ollama: a default system text stands in SYSTEM, an answer that is begun is left open."""
    head, tail = map(_literal, pieces.system)
    before_user, after_user = map(_literal, pieces.user)
    before_answer, after_answer = map(_literal, pieces.answer)
    prompt = f'{{{{ if and $last (eq .Role "user") }}}}{_literal(pieces.prompt)}{{{{ end }}}}' if pieces.prompt else ""
    ends = f"{{{{ if not $last }}}}{after_answer}{{{{ end }}}}" if after_answer else ""
    system = f"{head}{{{{ .Content }}}}{tail}"
    system = system if pieces.empty_system else f"{{{{ if .Content }}}}{system}{{{{ end }}}}"
    return (
        "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        f'{{{{ if eq .Role "system" }}}}{system}'
        f'{{{{ else if eq .Role "user" }}}}{before_user}{{{{ .Content }}}}{after_user}'
        f'{{{{ else if eq .Role "assistant" }}}}{before_answer}{{{{ .Content }}}}{ends}{{{{ end }}}}{prompt}{{{{ end }}}}'
    )


def ollama_prompt(template: str, system: str, messages: Sequence[Mapping[str, str]]) -> str:
    """What Ollama sends to the model for a chat, BOS aside: `system` is the Modelfile's, neighbours of one role are joined."""
    chat = [dict(message) for message in messages]
    if system and (not chat or chat[0]["role"] != "system"):
        chat.insert(0, {"role": "system", "content": system})
    told = "\n\n".join(message["content"] for message in chat if message["role"] == "system")
    joined: list[dict[str, str]] = []
    for message in chat:
        if joined and joined[-1]["Role"] == message["role"]:
            joined[-1]["Content"] += "\n\n" + message["content"]
        else:
            joined.append({"Role": message["role"], "Content": message["content"]})
    if "Messages" in names_in(template):
        return render_go(template, {"System": told, "Messages": joined, "Response": ""})
    return _turn_by_turn(template, joined)


def _turn_by_turn(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """Templates without .Messages: rendered once a turn, the last one up to .Response."""
    source = template if "Response" in names_in(template) else template + "{{ .Response }}"
    turns: list[dict[str, str]] = [{"System": "", "Prompt": "", "Response": ""}]
    for message in messages:
        key = {"system": "System", "user": "Prompt", "assistant": "Response"}.get(message["Role"])
        if key is None:
            continue
        later = {"System": ("Prompt", "Response"), "Prompt": ("Response",), "Response": ()}[key]
        if any(turns[-1][name] for name in later):
            turns.append({"System": "", "Prompt": "", "Response": ""})
        turns[-1][key] = message["Content"]
    mark = "\ue004"
    *done, last = turns
    cut = render_go(source, last | {"Response": last["Response"] + mark}).partition(mark)[0]
    return "".join(render_go(source, turn) for turn in done) + cut


def probes() -> list[list[dict[str, str]]]:
    """Chats of all shapes that the template has to get right."""
    turn = [{"role": "user", "content": "臺北怎麼去？"}]
    more = [
        *turn,
        {"role": "assistant", "content": "搭高鐵。"},
        {"role": "user", "content": '{{ .System }} "多久"？\n第二行'},
    ]
    long = [*more, {"role": "assistant", "content": "一個半小時。"}, *turn]
    plain = [turn, more, long]
    named = [[{"role": "system", "content": text}, *chat] for text in ("你是導遊。", "") for chat in plain]
    return [*plain, *named]


def differences(tokenizer: ChatTokenizer, template: str, system: str) -> list[tuple[str, str]]:
    """(Ollama's prompt, the trained one), BOS taken off, for each probe where they differ."""
    found = []
    for chat in probes():
        try:
            right = _rendered(tokenizer, chat, prompt=True)
        except UserError:
            continue  # a template that knows no system texts, say
        if (seen := ollama_prompt(template, system, chat)) != right:
            found.append((seen, right))
    return found


def modelfile(
    tokenizer: ChatTokenizer,
    model: str,
    *,
    generation: Mapping[str, Any] | None = None,
    context: int = MOST_CONTEXT,
    licence: str = "",
) -> str:
    """The text of a Modelfile; `model` is the GGUF file's path as seen from it, `generation` is generation_config.json.

    Raises:
        UserError: Ollama's templates cannot write what this model was trained with.
    """
    template, system = go_template(take_apart(tokenizer)), default_system(tokenizer)
    if wrong := differences(tokenizer, template, system):
        raise _refused(tokenizer, f"{wrong[0][0]!r} ≠ {wrong[0][1]!r}")
    lines = [f"FROM {model}", f"TEMPLATE {_quoted(template)}"]
    if system:
        lines.append(f"SYSTEM {_quoted(system)}")
    if licence:
        lines.append(f"LICENSE {_quoted(licence)}")
    settings = {"num_ctx": context, **sampling(generation or {})}
    lines += [f"PARAMETER {name} {value}" for name, value in settings.items()]
    lines += [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in stops(tokenizer, generation or {})]
    return "\n".join(lines) + "\n"


def sampling(generation: Mapping[str, Any]) -> dict[str, float]:
    """The checkpoint's own defaults in Ollama's names; without them Ollama samples at 0.8 with a repeat penalty of 1.1."""
    penalty = float(generation.get("repetition_penalty") or 1.0)
    if not generation.get("do_sample"):
        return {"temperature": 0, "repeat_penalty": penalty}
    given = {key: generation[key] for key in ("top_p", "top_k") if generation.get(key) is not None}
    plain = {"top_p": 1.0, "top_k": 0} | given  # Ollama's own are 0.9 and 40
    return {"temperature": generation.get("temperature") or 1.0, **plain, "repeat_penalty": penalty}


def stops(tokenizer: ChatTokenizer, generation: Mapping[str, Any]) -> list[str]:
    """Texts of the tokens that end an answer."""
    more = generation.get("eos_token_id")
    ids = [tokenizer.eos_id, *(more if isinstance(more, list) else [] if more is None else [more])]
    texts = [tokenizer.backend.id_to_token(id) for id in dict.fromkeys(ids)]
    return [text for text in texts if text]


def read_modelfile(file: Path) -> dict[str, Any]:
    """FROM, TEMPLATE, SYSTEM and `parameters` (name → values) of a Modelfile."""
    text = file.read_text(encoding="utf-8")
    found: dict[str, Any] = {"parameters": {}}
    at = 0
    while at < len(text):
        line_end = text.find("\n", at)
        line_end = len(text) if line_end < 0 else line_end
        name, _, value = text[at:line_end].strip().partition(" ")
        value, at = value.strip(), line_end + 1
        if not name or name.startswith("#"):
            continue
        if '"""' in value:
            start = text.index('"""', line_end - len(text[at - 1 : at]) - len(value)) + 3
            end = text.find('"""', start)
            if end < 0:
                raise UserError('""" 沒有結尾 (unclosed)', file, "補上結尾的三個引號")
            value, at = text[start:end], text.find("\n", end) + 1 or len(text)
        if name.upper() == "PARAMETER":
            key, _, setting = value.partition(" ")
            found["parameters"].setdefault(key, []).append(_unquoted(setting.strip()))
        else:
            found[name.upper()] = _unquoted(value)
    return found


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return str(json.loads(value))
        except ValueError:
            return value[1:-1]
    return value


def _quoted(text: str) -> str:
    if '"""' in text:
        raise UserError('Modelfile 裡不能有 """ (three quotes)', "system", "改掉範本或系統提示裡的三個引號")
    return f'"""{text}"""'


def _literal(text: str) -> str:
    """Text as Go's template takes it: the two braces are written as a string."""
    return text.replace("{{", '{{ "{{" }}')


def _rendered(tokenizer: ChatTokenizer, chat: Sequence[Mapping[str, str]], *, prompt: bool = False) -> str:
    text = tokenizer.render(chat, add_generation_prompt=prompt).text
    return text.removeprefix(tokenizer.bos) if tokenizer.bos else text


def _refused(tokenizer: ChatTokenizer, why: str = "") -> UserError:
    return UserError(
        f"這個對話範本寫不成 Ollama 的範本 (no Go template writes the same prompts) {why}",
        "chat_template.jinja",
        "改用 --format gguf 配 llama.cpp（讀 Jinja 範本），或用 twllm serve",
    )
