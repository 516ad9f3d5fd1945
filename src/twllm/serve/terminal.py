"""Chat in the terminal, with a checkpoint folder or any OpenAI-compatible server; answers appear as they are written.

Ctrl-C stops the answer and not the program. With piped stdin each line is a question and stdout holds the answers
alone, so `echo 問題 | twllm chat MODEL` works in scripts; an error there ends the program.
Not covered: saving the conversation, ratings (the web page has them), logins at remote servers.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from twllm.errors import UserError

HELP = """/clear  忘掉前面的對話，重新開始
/system 文字  改系統提示（不給文字就拿掉）並重新開始
/help   這份說明
/exit   離開（Ctrl-D 也可以）
Ctrl-C  停止正在寫的回答"""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a model must not be able to steer the terminal
Messages = list[dict[str, str]]
Talk = Callable[[Messages], Iterator[str]]  # messages → pieces of the answer


def chat(
    model: str,
    *,
    system: str | None = None,
    temperature: float = 0.7,
    max_tokens: int = 512,
    engine: str = "auto",
    allow_template_mismatch: bool = False,
) -> None:
    """Talk with `model` (a folder, or an http(s) URL of a server) until /exit or the end of stdin.

    Raises:
        UserError: the model cannot be loaded or reached, or (stdin piped) a question cannot be answered.
    """
    if model.startswith(("http://", "https://")):
        loop(remote(model, temperature, max_tokens), system)
        return
    from twllm.serve.engines.interface import Sampling

    with closing(_load(engine, Path(model), allow_template_mismatch)) as loaded:
        sampling = Sampling(
            temperature=temperature, max_tokens=max_tokens, repetition_penalty=loaded.defaults.repetition_penalty
        )

        def talk(messages: Messages) -> Iterator[str]:
            ids = loaded.tokenizer.encode_chat(messages, add_generation_prompt=True).ids
            return (event.text for event in loaded.generate(ids, sampling))

        loop(talk, system)


def _load(kind: str, folder: Path, allow_template_mismatch: bool) -> Any:
    from rich.console import Console

    from twllm.serve.engines import open_engine

    with Console(stderr=True).status(f"載入模型 (loading) {folder}"):
        return open_engine(kind, folder, allow_template_mismatch=allow_template_mismatch)


def remote(url: str, temperature: float, max_tokens: int) -> Talk:
    """Ask the server at `url` (with or without a trailing /v1)."""
    import httpx

    address = url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
    settings = {"model": "default", "stream": True, "temperature": temperature, "max_tokens": max_tokens}

    def talk(messages: Messages) -> Iterator[str]:
        timeout = httpx.Timeout(10, read=600)
        try:
            with httpx.stream("POST", address, json={**settings, "messages": messages}, timeout=timeout) as response:
                if response.status_code != 200:
                    response.read()
                    raise UserError(
                        f"伺服器回答錯誤 (HTTP {response.status_code}): {_reason(response.text)}",
                        address,
                        "檢查位址與訊息",
                    )
                yield from _pieces(response.iter_lines(), address)
        except httpx.HTTPError as error:
            raise UserError(
                f"連不上伺服器 (cannot reach the server): {error}", address, "確認伺服器已啟動：twllm serve MODEL"
            ) from error

    return talk


def _pieces(lines: Iterator[str], address: str) -> Iterator[str]:
    """Text pieces of a stream of chat completion chunks."""
    for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data.startswith("[DONE]"):
            continue
        event = json.loads(data)
        if "error" in event:
            raise UserError(
                f"伺服器中途出錯 (error while answering): {_reason(data)}", address, "再問一次，或看伺服器的記錄"
            )
        for choice in event.get("choices", []):
            yield (choice.get("delta") or {}).get("content") or ""


def _reason(body: str) -> str:
    """The message of an error body, or its beginning where it has another shape."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200]


def loop(talk: Talk, system: str | None) -> None:
    """Read questions, write answers, remember both."""
    interactive = sys.stdin.isatty()
    start: Messages = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    if interactive:
        _use_line_editing()
        print("輸入問題，/help 看說明，/exit 離開。")
    for line in _lines(interactive):
        command, _, rest = line.partition(" ")
        if command == "/exit":
            return
        elif command == "/help":
            print(HELP)
        elif command == "/clear":
            messages = list(start)
            _say(interactive, "（已清除對話）")
        elif command == "/system":
            start = [{"role": "system", "content": rest.strip()}] if rest.strip() else []
            messages = list(start)
            _say(interactive, "（已更換系統提示）")
        elif command.startswith("/") and command[1:].isalpha() and interactive:
            print(f"沒有這個指令：{command}\n{HELP}")
        else:
            _turn(talk, messages, line, interactive)


def _turn(talk: Talk, messages: Messages, question: str, interactive: bool) -> None:
    """One question and its answer, added to `messages`; a failed question is forgotten."""
    messages.append({"role": "user", "content": question})
    pieces: list[str] = []
    try:
        for piece in talk(messages):
            pieces.append(piece)
            print(CONTROL.sub("", piece), end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        print("\n（已停止）")
    except UserError as error:
        if not interactive:
            raise
        print(f"\n{error}")
    if answer := "".join(pieces):
        messages.append({"role": "assistant", "content": answer})
    else:
        messages.pop()


def _lines(interactive: bool) -> Iterator[str]:
    """Lines that say something, until the end of stdin."""
    while True:
        try:
            line = input("\n你> " if interactive else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n（/exit 離開）")
            continue
        if line:
            yield line


def _say(interactive: bool, text: str) -> None:
    if interactive:
        print(text)


def _use_line_editing() -> None:
    """Arrow keys, and whole Chinese characters for backspace, where the platform has readline."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
