"""A service behind the server that `twllm serve` runs, in a thread, with what a test needs to steer it."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from twllm.serve.app import create_app
from twllm.serve.operation.lifecycle import DrainingServer, PatientProtocol
from twllm.serve.operation.service import Service
from twllm.serve.start import bind

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "玉山多高？"}]}


@dataclass
class Live:
    """A running server."""

    url: str
    service: Service
    server: DrainingServer
    thread: threading.Thread
    http: httpx.Client  # one for all: making one reads the system's certificates

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.http.get(path, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        return self.http.post(path, json=ASK if body is None else body, **more)

    def stream(self, **more: Any) -> Any:
        return self.http.stream("POST", CHAT, json={**ASK, "stream": True}, **more)


@contextlib.contextmanager
def live(service: Service) -> Iterator[Live]:
    """The service on a free port of this machine."""
    server_socket = bind("127.0.0.1", 0)
    app = create_app(service)
    config = uvicorn.Config(app, http=PatientProtocol, ws="none", log_config=None, timeout_graceful_shutdown=1)
    server = DrainingServer(config, service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [server_socket]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        url = f"http://127.0.0.1:{server_socket.getsockname()[1]}"
        limits = httpx.Limits(max_connections=None)
        with httpx.Client(base_url=url, timeout=20, limits=limits, verify=False) as http:
            yield Live(url, service, server, thread, http)
    finally:
        server.should_exit = True
        thread.join(10)
        server_socket.close()


def until(true: Any, seconds: float = 5) -> None:
    """Wait until `true()`; an error when it does not become so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
