"""A model that has learned a few answers, and servers around it that each get one thing wrong."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from transformers import LlamaConfig, LlamaForCausalLM

from twllm.doctor.probe import Plan
from twllm.model.build import load, save
from twllm.serve.engines.interface import Sampling
from twllm.serve.engines.torch.engine import TorchEngine
from twllm.serve.start import bind
from twllm.tokens.contract import default_system
from twllm.tokens.tokenizer import ChatTokenizer

ANSWERS = {
    "plain": "玉山最高，砢磣🏔️，三千九百五十二公尺。",
    "default": "玉山最高，砢磣🏔️，三千九百五十二公尺。",
    "system": "小朋友，是玉山喔！",
    "turns": "三千九百五十二公尺。",
    "typed": "這是控制符號，拍謝。",
}


@pytest.fixture(scope="session")
def demo(tiny_tokenizer: ChatTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that gives ANSWERS: two layers, overfitted for a few seconds."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer
    chats = Plan(system=default_system(tokenizer)).chats()
    rows = [
        tokenizer.encode_chat([*chat, {"role": "assistant", "content": ANSWERS[name]}]) for name, chat in chats.items()
    ]
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])
    labels = torch.tensor(
        [[i if m else -100 for i, m in zip(r.ids, r.mask, strict=True)] + [-100] * (width - len(r.ids)) for r in rows]
    )
    # fmt: off
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=None,
    ))
    # fmt: on
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.02:
            break
    assert loss.item() < 0.1
    folder = tmp_path_factory.mktemp("doctor") / "demo"
    folder.mkdir()
    save(model, tokenizer, folder)
    return folder


@dataclass(frozen=True)
class Fault:
    """What a server does otherwise than the demo."""

    template: str = ""  # another chat template (Jinja)
    bos: int = 1  # begin tokens before the prompt
    drop_system: bool = False
    parse_controls: bool = False  # typed control tokens become control tokens
    no_end: bool = False
    extra_stop: str = ""
    temperature: float = 0.0  # a default
    always_sample: bool = False  # temperature 0 is ignored
    penalty: float = 1.0  # a default
    weights: str = ""  # int8, other
    context: int = 512
    max_tokens: int | None = None  # a default
    cut_stream: bool = False
    ignore_stop: bool = False
    keep_stop: bool = False
    lead: str = ""
    normalise: bool = False  # the tokenizer folds full-width letters
    reticent: bool = False  # only chat completions and the model list, as behind many a gateway


class FakeServer:
    """An OpenAI-like server on our engine and tokenizer, written apart from our own so that it can be wrong."""

    def __init__(self, folder: Path, fault: Fault) -> None:
        self.fault = fault
        self.engine = TorchEngine(folder, threads=1, precision="fp32")
        if fault.weights:
            self._spoil(fault.weights)
        if fault.no_end:
            self.engine.end_ids = frozenset()
        tokenizer = self.engine.tokenizer
        self.tokenizer = ChatTokenizer(
            tokenizer.backend, fault.template or tokenizer.template, tokenizer.bos, tokenizer.eos
        )
        self.count = 0
        routes = [Route("/v1/models", self.models), Route("/v1/chat/completions", self.chat, methods=["POST"])]
        if not fault.reticent:
            routes += [
                Route("/tokenizer_info", self.info),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/v1/completions", self.completions, methods=["POST"]),
            ]
        self.app = Starlette(routes=routes)

    @torch.no_grad()
    def _spoil(self, how: str) -> None:
        torch.manual_seed(7)
        for weight in self.engine.model.parameters():
            if how == "other":
                weight.copy_(torch.randn_like(weight) * 0.05)
            elif weight.dim() == 2:  # three bits, one scale a tensor: a small model bears more than a large one
                scale = weight.abs().max() / 3
                weight.copy_((weight / scale).round() * scale)

    async def models(self, request: Request) -> Response:
        row = {"id": "copy", "object": "model", "created": 0, "owned_by": "x"}
        return JSONResponse({"data": [row if self.fault.reticent else row | {"max_model_len": self.fault.context}]})

    async def info(self, request: Request) -> Response:
        return JSONResponse({"bos_token": "<s>", "eos_token": "</s>", "chat_template": self.fault.template or None})

    async def tokenize(self, request: Request) -> Response:
        body = await request.json()
        if "prompt" not in body:
            return JSONResponse({"error": {"message": "prompt"}}, 400)
        return JSONResponse({"tokens": self.encode(body["prompt"])})

    def encode(self, text: str) -> list[int]:
        import unicodedata

        return self.tokenizer.encode(unicodedata.normalize("NFKC", text) if self.fault.normalise else text)

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        if self.fault.drop_system:
            messages = [m for m in messages if m["role"] != "system"]
        rendered = self.tokenizer.render(messages, add_generation_prompt=True).text.removeprefix("<s>")
        if self.fault.parse_controls:
            ids = self.tokenizer.backend.encode(rendered, add_special_tokens=False).ids
        elif self.fault.normalise:
            ids = self.encode(rendered)
        else:
            ids = self.tokenizer.encode_chat(messages, add_generation_prompt=True).ids[1:]
        return [self.tokenizer.bos_id or 0] * self.fault.bos + ids

    def sampling(self, body: dict[str, Any]) -> Sampling:
        self.count += 1
        stop = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
        stop = [] if self.fault.ignore_stop else [*stop, *([self.fault.extra_stop] if self.fault.extra_stop else [])]
        temperature = body.get("temperature", self.fault.temperature)
        return Sampling(
            temperature=1.5 if self.fault.always_sample else temperature,
            seed=self.count,
            max_tokens=body.get("max_tokens", self.fault.max_tokens),
            repetition_penalty=body.get("repetition_penalty", self.fault.penalty),
            stop=tuple(stop),
            keep_stop=self.fault.keep_stop,
        )

    def answer(self, ids: list[int], body: dict[str, Any]) -> tuple[str, str, list[str]]:
        events = list(self.engine.generate(ids, self.sampling(body)))
        pieces = (
            [self.tokenizer.backend.decode([e.id]) for e in events]
            if self.fault.cut_stream
            else [e.text for e in events]
        )
        text = self.fault.lead + "".join(e.text for e in events)
        return text, str(events[-1].finish_reason), [self.fault.lead, *pieces]

    def chat(self, request: Request) -> Response:
        body = json.loads(request.scope["body"])
        ids = self.prompt(body["messages"])
        text, finish, pieces = self.answer(ids, body)
        if body.get("stream"):
            chunks = [
                {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in pieces
            ]
            chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
            return StreamingResponse((f"data: {json.dumps(c)}\n\n" for c in [*chunks]), media_type="text/event-stream")
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(pieces), "total_tokens": 0}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        return JSONResponse({"choices": [choice], "usage": usage})

    def completions(self, request: Request) -> Response:
        body = json.loads(request.scope["body"])
        if body.get("echo"):
            ids = body["prompt"][0]
            given = self.engine.prompt_logprobs([ids])[0].given
            return JSONResponse({"choices": [{"logprobs": {"token_logprobs": [None, *given]}}]})
        ids = self.tokenizer.backend.encode(body["prompt"], add_special_tokens=False).ids
        text, finish, _ = self.answer(ids, body)
        return JSONResponse(
            {"choices": [{"text": text, "finish_reason": finish}], "usage": {"prompt_tokens": len(ids)}}
        )


class _Body:
    """Reads the body before a synchronous endpoint (which Starlette runs in a thread) is called."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        scope["body"] = body
        done = False

        async def replay() -> Any:
            nonlocal done
            if done:
                return await receive()
            done = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)


@contextlib.contextmanager
def running(app: Any) -> Iterator[str]:
    """The app on a free port."""
    with bind("127.0.0.1", 0) as socket:
        server = uvicorn.Server(uvicorn.Config(_Body(app), log_config=None, ws="none", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def fake_server(folder: Path, fault: Fault) -> Iterator[str]:
    """The copy with this fault."""
    server = FakeServer(folder, fault)
    try:
        with running(server.app) as url:
            yield url
    finally:
        server.engine.close()


@pytest.fixture(scope="session")
def right(demo: Path) -> Iterator[str]:
    """The demo, served by our own server."""
    from twllm.doctor.examine import serve_folder

    with serve_folder(demo) as url:
        yield url


__all__ = ["ANSWERS", "Fault", "fake_server", "load", "running"]
