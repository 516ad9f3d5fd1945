"""What is sent to other servers and how their streams are read: vLLM, our own, llama.cpp's server, other OpenAI-like ones, TGI.

A setting that a server does not know, or means otherwise, is an error and never left out. Servers fill in what is not sent (vLLM from
generation_config.json, llama.cpp with top-k 40 and min-p 0.05), so all settings they know are sent, also the neutral ones.
Checked against the sources named in docs/engines.md. Not covered: chat routes (prompts are ids or raw text here, so that our template
counts), `best_of`.
"""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from twllm.errors import UserError
from twllm.serve.engines.interface import Alternatives, EngineUnavailable, Grammar, Sampling
from twllm.serve.engines.remote.reader import Drawn, Piece

Flavour = Literal["vllm", "twllm", "llamacpp", "openai", "tgi"]
Form = Literal[
    "ids", "text", "text-bos"
]  # how prompts go: as ids, as text, as text to which the server adds the begin token
NEUTRAL = Sampling()
STANDARD = ("top_p", "seed", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs")
KNOWN = {  # besides temperature and max_tokens; stop strings are ours
    "vllm": (*STANDARD, "top_k", "min_p", "repetition_penalty", "ignore_eos", "grammar"),
    "twllm": (*STANDARD, "top_k", "min_p", "typical_p", "repetition_penalty", "ignore_eos", "grammar"),
    "llamacpp": (*STANDARD, "top_k", "min_p", "typical_p", "ignore_eos"),
    "openai": STANDARD,
    "tgi": ("top_p", "top_k", "typical_p", "seed", "repetition_penalty", "logprobs", "processed_logprobs", "grammar"),
}
OURS = {"stop", "keep_stop", "temperature", "max_tokens"}
ALWAYS = {  # their own defaults are not neutral
    "vllm": ("top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"),
    "twllm": ("top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "frequency_penalty", "presence_penalty"),
    "llamacpp": ("top_p", "top_k", "min_p", "typical_p", "frequency_penalty", "presence_penalty"),
    "openai": ("top_p",),
    "tgi": (),
}
TGI_TOP = 5  # alternatives TGI gives at most
NameToId = Callable[[str], int | None]


@dataclass(frozen=True)
class Facts:
    """What a server said about itself."""

    flavour: Flavour
    model: str
    form: Form
    context: int | None


class RemoteError(EngineUnavailable):
    """The other server failed; nothing that the caller could have done otherwise."""


def require_known(sampling: Sampling, flavour: Flavour) -> None:
    """Refuse what this server would ignore.

    Raises:
        UserError: the settings are named.
    """
    changed = [f for f in sampling.__dataclass_fields__ if getattr(sampling, f) != getattr(NEUTRAL, f)]
    lost = [f for f in changed if f not in OURS and f not in KNOWN[flavour]]
    if flavour == "tgi":
        if (sampling.logprobs or 0) > TGI_TOP:
            lost.append(f"logprobs > {TGI_TOP}")
        plain = (sampling.temperature in (0.0, 1.0), sampling.top_p == 1, sampling.top_k == 0, sampling.typical_p == 1)
        changed_scores = not all(plain) or sampling.repetition_penalty != 1 or sampling.grammar is not None
        if sampling.logprobs is not None and not sampling.processed_logprobs and changed_scores:
            lost.append("logprobs（TGI 只給處理後的 log 機率；processed_logprobs=true）")
        if sampling.grammar is not None and sampling.grammar.kind not in ("json_schema", "regex"):
            lost.append(f"grammar {sampling.grammar.kind}")
    if lost:
        raise UserError(
            f"遠端（{flavour}）不支援這些設定 (the remote cannot): {'、'.join(lost)}", "sampling", "拿掉，或換引擎"
        )


def completion_body(facts: Facts, prompt: Any, sampling: Sampling, max_tokens: int) -> dict[str, Any]:
    """Body of POST /v1/completions."""
    require_known(sampling, facts.flavour)
    body: dict[str, Any] = {
        "model": facts.model, "prompt": prompt, "stream": True, "max_tokens": max_tokens,
        "temperature": sampling.temperature,
    }  # fmt: skip
    for name in KNOWN[facts.flavour]:
        value = getattr(sampling, name)
        if name in ALWAYS[facts.flavour] or value != getattr(NEUTRAL, name):
            body[name] = value
    if "logit_bias" in body:
        body["logit_bias"] = {str(id): bias for id, bias in sampling.logit_bias}
    if grammar := body.pop("grammar", None):
        body["structured_outputs"] = _structured(grammar)
    if facts.flavour == "vllm":
        body["return_token_ids"] = True
        if sampling.logprobs is not None:
            body["return_tokens_as_token_ids"] = True
    return body


def _structured(grammar: Grammar) -> dict[str, Any]:
    """vLLM's `structured_outputs`, which our server takes, too."""
    name = {"json_schema": "json", "json_object": "json_object", "regex": "regex", "choice": "choice"}[grammar.kind]
    value = list(grammar.value) if grammar.kind == "choice" else grammar.value
    return {name: True if grammar.kind == "json_object" else value}


def tgi_body(inputs: str, sampling: Sampling, max_tokens: int) -> dict[str, Any]:
    """Body of POST /generate_stream. TGI refuses temperature 0 and top_p 1: they are left out."""
    require_known(sampling, "tgi")
    given: dict[str, Any] = {"max_new_tokens": max_tokens, "do_sample": sampling.temperature != 0, "details": True}
    if sampling.temperature not in (0.0, 1.0):
        given["temperature"] = sampling.temperature
    for name in ("top_p", "top_k", "typical_p", "repetition_penalty", "seed"):
        if sampling.temperature == 0 and name != "repetition_penalty":
            continue  # cuts do not change which id is best, but would turn sampling on
        if getattr(sampling, name) != getattr(NEUTRAL, name):
            given[name] = getattr(sampling, name)
    if sampling.logprobs:
        given["top_n_tokens"] = sampling.logprobs
    if sampling.grammar is not None:
        kind = "json" if sampling.grammar.kind == "json_schema" else "regex"
        given["grammar"] = {"type": kind, "value": sampling.grammar.value}
    return {"inputs": inputs, "parameters": given}


async def sse(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each `data:` line; comments and [DONE] are passed over.

    Raises:
        RemoteError: a line that is not JSON, or an error that the server sent inside the stream.
    """
    async for line in lines:
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if not data or data.startswith("[DONE]"):
            continue
        try:
            event = json.loads(data)
        except ValueError as error:
            raise RemoteError(f"not JSON in the stream: {data[:80]!r}") from error
        if isinstance(event, dict) and event.get("error"):
            raise RemoteError(error_text(event))
        yield event


def error_text(body: Any) -> str:
    """The message in an error body: OpenAI's, TGI's or FastAPI's."""
    found = body
    if isinstance(body, dict):
        found = body.get("error") or body.get("detail") or body.get("message") or body
    if isinstance(found, dict):
        found = found.get("message") or found
    return str(found)[:500]


def completion_piece(event: dict[str, Any], wants_logprobs: bool, id_of: NameToId) -> Piece | None:
    """One event of a completions stream, None where it says nothing (usage)."""
    choices = event.get("choices") or []
    if not choices:
        return None
    choice = choices[0]
    finish = choice.get("finish_reason")
    finish = None if finish in (None, "") else "length" if finish == "length" else "stop"
    ids: Sequence[int | None] = choice.get("token_ids") or []
    text = choice.get("text") or ""
    drawn: tuple[Drawn, ...] = ()
    if wants_logprobs and (text or ids):
        found = choice.get("logprobs")
        if not found:
            raise RemoteError("the server gives no log-probabilities")
        drawn = tuple(_drawn(found, at, id_of) for at in range(len(found["tokens"])))
        ids = ids or [id_of(name) for name in found["tokens"]]
    if any(id is None for id in ids):
        ids = []
    return Piece(tuple(id for id in ids if id is not None), text, drawn, finish)


def _drawn(found: dict[str, Any], at: int, id_of: NameToId) -> Drawn:
    top = (found.get("top_logprobs") or [None] * (at + 1))[at] or {}
    return float(found["token_logprobs"][at]), alternatives(top, id_of)


def alternatives(top: dict[str, float], id_of: NameToId) -> Alternatives:
    """A dictionary of candidates by name, best first; names that no token of ours has are left out."""
    named = [(id_of(name), float(logprob)) for name, logprob in top.items()]
    return tuple(sorted(((id, p) for id, p in named if id is not None), key=lambda pair: -pair[1]))


def tgi_piece(event: dict[str, Any], wants_logprobs: bool) -> Piece:
    """One event of TGI's stream."""
    token = event["token"]
    finish = None
    if event.get("generated_text") is not None:
        reason = (event.get("details") or {}).get("finish_reason", "length")
        finish = "length" if reason == "length" else "stop"
    top = tuple((int(t["id"]), float(t["logprob"])) for t in event.get("top_tokens") or ())
    return Piece((int(token["id"]),), "", ((float(token["logprob"]), top),) if wants_logprobs else (), finish)
