"""The shapes of an OpenAI-compatible endpoint: its address and key, what a request costs at worst, what an answer says."""

import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from twllm.errors import UserError
from twllm.synth.config import EndpointConfig

DEFAULT_KEY_ENV = "OPENAI_API_KEY"
PER_MESSAGE = 16  # tokens that a chat template puts around a message; chosen, generous


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    text: str
    finish_reason: str
    refusal: str = ""


def worst_case(body: dict[str, Any]) -> tuple[int, int]:
    """(tokens in, tokens out) that a request can cost at most: byte-level tokenizers have no token of less than a byte."""
    size = sum(len(str(message["content"]).encode("utf-8", "replace")) + PER_MESSAGE for message in body["messages"])
    return size, int(body.get("max_tokens") or body.get("max_completion_tokens") or 0)


def address(url: str) -> str:
    """The chat completions address of a base URL, with or without /v1.

    Raises:
        UserError: not an http(s) URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("不是 http(s) 網址 (not an http URL)", url, "例如 --url http://127.0.0.1:8080")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    path = path if re.search(r"/v\d+\w*(/openai)?$", path) else f"{path}/v1"
    return urlunsplit((parts.scheme, parts.netloc, f"{path}/chat/completions", parts.query, ""))


def public_url(url: str) -> str:
    """The URL without login and query, for manifests."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def api_key(config: EndpointConfig) -> str:
    """The key from the environment; "" for none.

    Raises:
        UserError: the variable named on the command line is not set, or what it holds cannot be a key.
    """
    key = os.environ.get(config.api_key_env or DEFAULT_KEY_ENV, "").strip()
    if config.api_key_env and not key:
        raise UserError("沒有這個環境變數 (not set)", config.api_key_env, f"export {config.api_key_env}=…")
    if not key.isascii() or any(char.isspace() for char in key):
        raise UserError("金鑰裡有不該有的字元 (bad characters in the key)", config.api_key_env, "重新複製金鑰")
    return key


def answer_of(response: dict[str, Any]) -> Answer:
    """Text, finish reason and refusal of a chat completion.

    Raises:
        LookupError, TypeError, AttributeError, ValueError: the response is not one.
    """
    choice = response["choices"][0]
    message = choice["message"]
    content = message.get("content")
    if isinstance(content, list):  # parts
        content = "".join(part.get("text", "") for part in content)
    if not isinstance(content, str | None):
        raise TypeError("content is not text")
    text = (content or "").encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # lone surrogates → U+FFFD
    thought, mark, rest = text.partition("</think>")
    if mark and (thought.lstrip().startswith("<think>") or "<think>" not in thought):
        text = rest
    return Answer(text.strip(), str(choice.get("finish_reason") or ""), str(message.get("refusal") or ""))


def usage_of(response: dict[str, Any], worst: tuple[int, int]) -> tuple[int, int]:
    """(tokens in, tokens out) as the server says; the worst case where it does not."""
    usage = response.get("usage") or {}
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    told = [count if isinstance(count, int) and count >= 0 else worst[at] for at, count in enumerate(counts)]
    return told[0], told[1]
