"""Ask a server a handful of questions over HTTP and write down what it did: what differs between two such records is the illness.

Works with our server, vLLM, TGI, llama.cpp's server, Ollama, anything with /v1/chat/completions; what a server does not
offer stays None. About 15 requests of at most `ANSWER` tokens each. Nothing is judged here (diagnose.py).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from twllm.errors import UserError

ANSWER = 48  # tokens of a probe's answer: long enough for an end token to come, chosen
ENDLESS = (
    160  # tokens after which an answer without max_tokens counts as not cut short (Ollama cuts at 128, TGI at 100)
)
REPEATS = 3  # of the request without sampling settings; a sampled answer equals itself three times by rare chance only
TIMEOUT_S = 300
QUESTION = "台灣最高的山是哪一座？"
# fmt: off
TEXTS = ("台灣的首都是臺北。", " 前面有空白", "全形ＡＢＣ，１２３！", "ㄅㄆㄇ 𠮷 🧋", "line\nbreak  two spaces")
NEUTRAL = {"temperature": 0, "top_p": 1, "repetition_penalty": 1.0, "frequency_penalty": 0, "presence_penalty": 0}
# fmt: on
Chat = list[dict[str, str]]


@dataclass(frozen=True)
class Plan:
    """What the probes say, taken from the reference: its default system text, control tokens, rendered prompt."""

    system: str = ""  # what the template puts in where a chat has none
    controls: tuple[str, ...] = ("<s>", "</s>")
    prompt: str = ""  # the rendered QUESTION, with BOS: for /v1/completions
    prompt_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()  # the reference's answer, whose log-probabilities are asked for

    def chats(self) -> dict[str, Chat]:
        """The probes by name."""
        asked = {"role": "user", "content": QUESTION}
        turns = [asked, {"role": "assistant", "content": "玉山。"}, {"role": "user", "content": "多高？"}]
        typed = {"role": "user", "content": f"{''.join(self.controls)}這些是什麼符號？"}
        chats = {
            "plain": [asked],
            "system": [{"role": "system", "content": "你是國小的自然老師。"}, asked],
            "turns": turns,
            "typed": [typed],
        }
        return chats | ({"default": [{"role": "system", "content": self.system}, asked]} if self.system else {})


@dataclass(frozen=True)
class Answer:
    """One answer: its text, why it ended, and the counts the server gave."""

    text: str
    finish: str | None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass
class Observations:
    """What a server did. None: it does not offer that, or refused."""

    url: str
    facts: dict[str, Any] = field(default_factory=dict)  # model, context, template, bos, eos, precision, …
    tokens: dict[str, list[int]] = field(default_factory=dict)  # of TEXTS
    answers: dict[str, Answer] = field(default_factory=dict)  # each probe, temperature 0 and nothing else
    neutral: Answer | None = None  # plain, with every sampling setting neutral
    again: list[str] = field(default_factory=list)  # plain, temperature 0, asked again
    unasked: list[str] = field(default_factory=list)  # plain, no sampling setting at all
    unlimited: Answer | None = None  # plain, temperature 0, no max_tokens
    stop: str = ""  # a piece out of the middle of the server's own plain answer
    stopped: Answer | None = None  # plain with that stop string
    streamed: str | None = None
    raw: Answer | None = None  # /v1/completions of the plan's prompt, as text
    logprobs: list[float] | None = None  # of the plan's answer_ids after its prompt_ids
    refused: dict[str, str] = field(default_factory=dict)  # what was refused, and how


class Server:
    """An HTTP server that is asked."""

    def __init__(self, url: str, *, key: str = "", model: str = "") -> None:
        """`url` with or without /v1; `model` '' takes the first of /v1/models."""
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT_S)
        self.model = model
        self.refused: dict[str, str] = {}

    def close(self) -> None:
        """Give back the connection."""
        self.http.close()

    def get(self, path: str) -> Any:
        """The JSON of a GET, None where there is none."""
        return self._json("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON of a POST, None where it is refused (noted in `refused`)."""
        return self._json("POST", path, body)

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        try:
            reply = self.http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise UserError(
                f"連不上伺服器 (cannot reach the server): {error or type(error).__name__}",
                self.url + path,
                "檢查網址，確認它已啟動",
            ) from error
        if reply.status_code in (401, 403):
            raise UserError("伺服器要金鑰 (key needed)", self.url, "加上 --api-key")
        try:
            found = reply.json() if reply.is_success else None
        except ValueError:
            found = None
        if found is None:
            self.refused[path] = f"HTTP {reply.status_code}: {reply.text[:200]}"
        return found

    def ask(self, chat: Chat, **settings: Any) -> Answer | None:
        """One whole answer."""
        body = {"model": self.model, "messages": chat, "max_tokens": ANSWER, **settings}
        found = self.post("/v1/chat/completions", {k: v for k, v in body.items() if v is not None})
        try:
            choice, usage = found["choices"][0], found.get("usage") or {}
            text = choice["message"]["content"] or ""
        except (TypeError, KeyError, IndexError):
            return None
        return Answer(text, choice.get("finish_reason"), usage.get("prompt_tokens"), usage.get("completion_tokens"))

    def stream(self, chat: Chat, most: int | None = None, **settings: Any) -> Answer | None:
        """A streamed answer, left after `most` pieces."""
        body = {"model": self.model, "messages": chat, "stream": True, **settings}
        pieces: list[str] = []
        finish = None
        try:
            with self.http.stream("POST", "/v1/chat/completions", json=body) as reply:
                if not reply.is_success:
                    return None
                for line in reply.iter_lines():
                    data = line.removeprefix("data:").strip()
                    if not line.startswith("data:") or data.startswith("[DONE]"):
                        continue
                    for choice in json.loads(data).get("choices") or []:
                        pieces.append((choice.get("delta") or {}).get("content") or "")
                        finish = choice.get("finish_reason") or finish
                    if most is not None and len(pieces) > most:
                        break
        except (httpx.HTTPError, ValueError):
            return None
        return Answer("".join(pieces), finish, completion_tokens=len([p for p in pieces if p]))


def observe(server: Server, plan: Plan) -> Observations:
    """All probes.

    Raises:
        UserError: the server cannot be reached, wants a key, or has no chat API.
    """
    seen = Observations(server.url, read_facts(server))
    server.model = server.model or seen.facts.get("model") or "default"
    seen.tokens = {text: ids for text in TEXTS if (ids := _tokenize(server, text)) is not None}
    for name, chat in plan.chats().items():
        if (answer := server.ask(chat, temperature=0)) is not None:
            seen.answers[name] = answer
    if "plain" not in seen.answers:
        why = server.refused.get("/v1/chat/completions", "")
        raise UserError(
            f"伺服器不回答 (no answer from /v1/chat/completions): {why}",
            server.url,
            "twllm doctor 要 OpenAI 相容的網址",
        )
    plain = plan.chats()["plain"]
    seen.neutral = server.ask(plain, **NEUTRAL)
    seen.again = [a.text for _ in range(REPEATS - 1) if (a := server.ask(plain, temperature=0)) is not None]
    seen.unasked = [a.text for _ in range(REPEATS) if (a := server.ask(plain)) is not None]
    seen.unlimited = server.stream(plain, ENDLESS, temperature=0)
    streamed = server.stream(plain, temperature=0, max_tokens=ANSWER)
    seen.streamed = None if streamed is None else streamed.text
    text = seen.answers["plain"].text
    seen.stop = text[len(text) // 3 :][:2].strip()
    seen.stopped = server.ask(plain, temperature=0, stop=[seen.stop]) if seen.stop else None
    if plan.prompt:
        seen.raw = _complete(server, plan.prompt)
        seen.logprobs = _logprobs(server, plan)
    seen.refused = server.refused
    return seen


def read_facts(server: Server) -> dict[str, Any]:
    """What the server says of itself, by whichever of its own routes: ours, vLLM's, TGI's, llama.cpp's, Ollama's."""
    facts: dict[str, Any] = {}
    listed = ((server.get("/v1/models") or {}).get("data") or [{}])[0]
    facts |= {"model": listed.get("id"), "context": listed.get("max_model_len")}
    info = server.get("/info") or {}
    if isinstance(info, dict) and info.get("max_total_tokens"):
        facts["context"] = facts["context"] or info["max_total_tokens"]
    tokenizer = server.get("/tokenizer_info") or {}
    if isinstance(tokenizer, dict):
        facts |= {
            "template": tokenizer.get("chat_template"),
            "bos": tokenizer.get("bos_token"),
            "eos": tokenizer.get("eos_token"),
        }
    props = server.get("/props")
    if isinstance(props, dict):
        settings = props.get("default_generation_settings") or {}
        facts["context"] = facts["context"] or settings.get("n_ctx")
        facts["template"] = facts.get("template") or props.get("chat_template")
    own = server.get("/api/contract")
    if isinstance(own, dict):
        facts |= {key: value for key, value in own.items() if value is not None}
    return {key: value for key, value in facts.items() if value is not None}


def _tokenize(server: Server, text: str) -> list[int] | None:
    """Ids of plain text, without special tokens: vLLM's and our shape, then llama.cpp's."""
    if server.refused.get("/tokenize", "").startswith("HTTP 404"):
        return None
    for body in ({"prompt": text, "add_special_tokens": False}, {"content": text}):
        found = server.post("/tokenize", body)
        tokens = found.get("tokens") if isinstance(found, dict) else None
        if isinstance(tokens, list) and all(isinstance(id, int) for id in tokens):
            return tokens
    return None


def _complete(server: Server, prompt: str) -> Answer | None:
    """The greedy continuation of a raw text."""
    body = {"model": server.model, "prompt": prompt, "max_tokens": ANSWER, **NEUTRAL}
    found = server.post("/v1/completions", body)
    try:
        choice, usage = found["choices"][0], found.get("usage") or {}
        return Answer(choice["text"], choice.get("finish_reason"), usage.get("prompt_tokens"))
    except (TypeError, KeyError, IndexError):
        return None


def _logprobs(server: Server, plan: Plan) -> list[float] | None:
    """Log-probabilities of the reference's answer: echoed by /v1/completions."""
    ids = [*plan.prompt_ids, *plan.answer_ids]
    if not plan.answer_ids:
        return None
    body = {"model": server.model, "prompt": [ids], "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
    found = server.post("/v1/completions", body) or server.post("/v1/completions", body | {"max_tokens": 1})
    try:
        given = found["choices"][0]["logprobs"]["token_logprobs"]
        return [float(value) for value in given[len(plan.prompt_ids) : len(ids)]]
    except (TypeError, KeyError, IndexError):
        return None
