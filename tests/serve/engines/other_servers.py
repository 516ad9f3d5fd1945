"""Servers that speak as others do, over real HTTP: vLLM, TGI, llama.cpp, transformers serve. The answer is a script's, token by token."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from twllm.serve.engines.decoding.tokens import encode_raw
from twllm.serve.start import bind
from twllm.tokens.tokenizer import ChatTokenizer


@dataclass
class Script:
    """What a server does; tests change it while it runs."""

    tokenizer: ChatTokenizer
    answer: str = " 玉山，標高 3,952 公尺。🏔️砢磣！"
    kind: str = "vllm"
    model: str = "玉山"
    adds_bos: bool = True
    end: bool = True  # the end token comes after the answer
    delay_s: float = 0.0
    break_after: int | None = None  # tokens, then the connection is cut
    status: int = 200
    healthy: bool = True
    seen: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    cancelled: int = 0
    running: int = 0

    def ids(self) -> list[int]:
        said = self.tokenizer.encode(self.answer)
        return [*said, self.tokenizer.eos_id] if self.end else said


def other_app(script: Script) -> FastAPI:
    """The server of this kind."""
    app = FastAPI()

    @app.get("/health")
    def health() -> Any:
        return JSONResponse({}, 200 if script.healthy else 503)

    @app.get("/v1/models")
    def models() -> Any:
        if script.kind == "transformers":
            return JSONResponse({"detail": "CacheNotFound"}, 500)
        entry = {
            "id": script.model,
            "object": "model",
            "owned_by": {"vllm": "vllm", "llamacpp": "llamacpp"}.get(script.kind, "x"),
        }
        return {"data": [{**entry, **({"max_model_len": 400} if script.kind == "vllm" else {})}]}

    @app.get("/info")
    def info() -> Any:
        if script.kind != "tgi":
            return JSONResponse({"detail": "Not Found"}, 404)
        return {"model_id": script.model, "max_total_tokens": 300, "router": "text-generation-router"}

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Any:
        body = await request.json()
        text = body.get("inputs") or body.get("prompt") or body.get("content")
        if script.kind == "transformers":
            return JSONResponse({"detail": "Not Found"}, 404)
        if script.kind == "tgi":
            return [{"id": id, "text": "x"} for id in encode_raw(script.tokenizer, text, bos=script.adds_bos)]
        return {"tokens": encode_raw(script.tokenizer, text, bos=False)}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Any:
        return await respond(request, completion_event)

    @app.post("/generate_stream")
    async def generate_stream(request: Request) -> Any:
        return await respond(request, tgi_event)

    async def respond(request: Request, event: Any) -> Any:
        body = await request.json()
        script.seen.append(body)
        script.paths.append(request.url.path)
        if script.status != 200:
            return JSONResponse({"error": {"message": "not today"}}, script.status)
        if script.kind == "transformers" and not isinstance(body["prompt"], str):
            return JSONResponse({"detail": "prompt must be a string."}, 400)
        if event is completion_event and not body.get("stream"):
            if body.get("echo"):
                return echo(script, body)
            ids = encode_raw(script.tokenizer, body["prompt"], bos=script.adds_bos)
            return {"choices": [{"text": "x"}], "usage": {"prompt_tokens": len(ids)}}
        return StreamingResponse(stream(script, body, event), media_type="text/event-stream")

    return app


def echo(script: Script, body: dict[str, Any]) -> dict[str, Any]:
    names = [f"token_id:{id}" for id in [*body["prompt"], 7]]
    top = [None, *({name: -0.5 - at, "token_id:9": -9.0} for at, name in enumerate(names[1:]))]
    given = [None, *(-0.5 - at for at in range(len(names) - 1))]
    return {"choices": [{"text": "", "logprobs": {"tokens": names, "token_logprobs": given, "top_logprobs": top}}]}


async def stream(script: Script, body: dict[str, Any], event: Any) -> AsyncIterator[str]:
    decoder = script.tokenizer.stream()
    ids = script.ids()[: body.get("max_tokens") or body["parameters"]["max_new_tokens"]]
    script.running += 1
    finished = False
    try:
        yield ": keep-alive\n\n"
        for number, id in enumerate(ids, 1):
            if script.break_after is not None and number > script.break_after:
                raise ConnectionResetError
            await asyncio.sleep(script.delay_s)
            last = number == len(ids)
            text = "" if id == script.tokenizer.eos_id else decoder.push(id)
            text += decoder.finish() if last else ""
            reason = None if not last else "stop" if id == script.tokenizer.eos_id else "length"
            for line in event(script, body, id, text, reason):
                yield line
        if script.kind == "vllm":
            yield "data: [DONE]\n\n"
        finished = True
    finally:
        script.running -= 1
        script.cancelled += not finished and script.break_after is None


def completion_event(script: Script, body: dict[str, Any], id: int, text: str, reason: str | None) -> list[str]:
    choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
    if script.kind == "vllm" and body.get("return_token_ids"):
        choice["token_ids"] = [id]
    if body.get("logprobs") is not None and script.kind != "transformers":
        name = f"token_id:{id}" if body.get("return_tokens_as_token_ids") else text
        choice["logprobs"] = {
            "tokens": [name],
            "token_logprobs": [-0.25],
            "top_logprobs": [{name: -0.25, "token_id:9": -3.0}],
        }
    chunks = [choice]
    if script.kind == "transformers" and reason:  # the reason comes after the last text
        chunks = [{**choice, "finish_reason": None}, {"index": 0, "text": "", "finish_reason": reason}]
    if script.kind != "vllm" and not text and not reason:
        return []
    return [f"data: {json.dumps({'choices': [chunk]}, ensure_ascii=False)}\n\n" for chunk in chunks]


def tgi_event(script: Script, body: dict[str, Any], id: int, text: str, reason: str | None) -> list[str]:
    special = id == script.tokenizer.eos_id
    token = {"id": id, "text": "</s>" if special else text, "logprob": -0.25, "special": special}
    event: dict[str, Any] = {"index": 1, "token": token, "generated_text": None, "details": None}
    if top := body["parameters"].get("top_n_tokens"):
        event["top_tokens"] = [{**token, "logprob": -0.25 - at} for at in range(top)]
    if reason:
        reason = {"stop": "eos_token"}.get(reason, reason)
        event |= {"generated_text": script.answer, "details": {"finish_reason": reason, "generated_tokens": 1}}
    return [f"data:{json.dumps(event, ensure_ascii=False)}\n\n"]


class OtherServer:
    """One running server; it can be killed and started again at the same port."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        listener = bind("127.0.0.1", self._port)
        self._port = listener.getsockname()[1]
        config = uvicorn.Config(other_app(self.script), log_config=None, ws="none", timeout_graceful_shutdown=0)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.002)

    def kill(self) -> None:
        """Drop every connection and stop listening."""
        for connection in list(self._server.server_state.connections):
            with contextlib.suppress(Exception):
                connection.transport.abort()
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)


@contextlib.contextmanager
def serving(script: Script) -> Iterator[OtherServer]:
    server = OtherServer(script)
    try:
        yield server
    finally:
        server.kill()
