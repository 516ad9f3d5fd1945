"""A local OpenAI-compatible server that misbehaves as told: HTTP errors, resets, half bodies, silence, bad texts.

A `Script` answers each request with a `Reply`; how often a request came and which answers went out whole is written down, so
that tests can say what was paid for. Used by the tests and by benchmarks/synth_faults.py.
"""

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from twllm.synth.cache import request_key


@dataclass
class Reply:
    """What to send. `text` makes a chat completion; `raw` is any body instead (`paid`: an answer); `how`: whole, reset, cut, slow."""

    text: str | None = None
    finish_reason: str = "stop"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: Any = None
    paid: bool = False
    how: str = "whole"


Script = Callable[[dict[str, Any], int], Reply]  # (request body, how often it came before) → reply


class FaultServer:
    """Serve `script` on a free port while used as a context.

    one_by_one: never call the script for two requests at a time.
    hold_after: after so many whole answers, further requests wait until `release` is set, and are then dropped unanswered.
    """

    def __init__(
        self, script: Script, hold_after: int | None = None, slow_s: float = 1.0, one_by_one: bool = True
    ) -> None:
        self.script, self.hold_after, self.slow_s = script, hold_after, slow_s
        self.seen: Counter[str] = Counter()  # request → times it came
        self.answered: Counter[str] = Counter()  # request → times it was answered whole with 200
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.num_held = 0
        self.release = threading.Event()
        self.most_at_once = self._at_once = 0
        self.lock = threading.Lock()
        self.script_lock = threading.Lock() if one_by_one else None
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FaultServer":
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def reply_to(self, body: dict[str, Any], headers: dict[str, str]) -> Reply | None:
        """The script's reply, counted; None when the request is held back and dropped."""
        key = request_key(body, 0)
        with self.lock:
            before, self.seen[key] = self.seen[key], self.seen[key] + 1
            self.bodies.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            hold = self.hold_after is not None and self.answered.total() >= self.hold_after
            self.num_held += hold
            if not hold and self.hold_after is not None:  # count before the next request looks
                return self._count(key, self.script(body, before))
        if hold:
            self.release.wait(60)
            return None
        with self.script_lock or nullcontext():
            reply = self.script(body, before)
        with self.lock:
            return self._count(key, reply)

    def _count(self, key: str, reply: Reply) -> Reply:
        answered = reply.raw is None or reply.paid
        self.answered[key] += reply.how == "whole" and reply.status == 200 and answered
        return reply


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    owner: FaultServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with owner.lock:
            owner._at_once += 1
            owner.most_at_once = max(owner.most_at_once, owner._at_once)
        try:
            if self.path != "/v1/chat/completions":
                self._send(404, {"error": {"message": f"no route {self.path}"}}, {})
            else:
                self._play(owner.reply_to(body, dict(self.headers)), body)
        finally:
            with owner.lock:
                owner._at_once -= 1

    def _play(self, reply: Reply | None, body: dict[str, Any]) -> None:
        if reply is None:
            self.close_connection = True
            return
        if reply.how == "slow":
            self.server.owner.release.wait(self.server.owner.slow_s)
        if reply.how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        value = reply.raw if reply.raw is not None else completion(body, reply.text or "", reply.finish_reason)
        self._send(reply.status, value, reply.headers, cut=reply.how == "cut")

    def _send(self, status: int, value: Any, headers: dict[str, str], cut: bool = False) -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.wfile.flush()
        if cut:
            self.close_connection = True


def completion(body: dict[str, Any], text: str, finish_reason: str = "stop") -> dict[str, Any]:
    """A chat completion; a token is a character here."""
    size = sum(len(message["content"]) for message in body["messages"])
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason},
        ],
        "usage": {"prompt_tokens": size, "completion_tokens": len(text), "total_tokens": size + len(text)},
    }
