"""What `serve_load.py` needs: a model to serve, the servers, a client that costs little, the memory bandwidth."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCES = ("twllm:taiwan_instruction", "twllm:taiwan_facts")
MODELS = {
    "tiny": {"D": 128, "L": 4, "H": 4, "K": 4, "F": 352},  # to try the benchmark out
    "85m": {"D": 768, "L": 12, "H": 12, "K": 12, "F": 2048},  # 85 M, and 12 M for each end of 16,000 pieces
    "1b": {"D": 2048, "L": 16, "H": 32, "K": 8, "F": 8192},  # Llama-3.2-1B's shape
}
VOCABULARY = {"tiny": 4_000}  # others: 16,000
CONTEXT = 1024
# of transformers: without these it takes half of the machine's memory for its cache (11 GiB here) and is slower
PAGES = ("--cb-block-size", "32", "--cb-num-blocks", "1024", "--cb-max-batch-tokens", "512")


def make_model(name: str, folder: Path) -> None:
    """A random Llama in bf16 and a byte-level BPE trained on our conversations.

    With the usual small start and a tied head every prompt is answered with one repeated token, and streams that got mixed up
    would look right. These weights are larger and the embedding is small, so what is said hangs on the whole prompt.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from twllm.model.build import save
    from twllm.model.sizes import Size
    from twllm.tokens.config import TokenizerConfig
    from twllm.tokens.conversation import read_conversations
    from twllm.tokens.train import train_tokenizer

    texts = [message["content"] for source in SOURCES for row in read_conversations(source) for message in row.messages]
    config = TokenizerConfig(vocab_size=VOCABULARY.get(name, 16_000), min_frequency=1, max_piece_chars=6)
    tokenizer = train_tokenizer(texts, config, "taiwan-llm-v2")
    torch.manual_seed(0)
    shape = Size(**MODELS[name]).llama(tokenizer.vocab_size, CONTEXT)
    shape["initializer_range"] = 0.8 / MODELS[name]["D"] ** 0.5
    llama = LlamaConfig(**shape, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id)
    model = LlamaForCausalLM(llama)
    model.model.embed_tokens.weight.data.normal_(0, 0.02)
    model.lm_head.weight.data[tokenizer.eos_id] = 0  # it is never the best: every answer has the length asked for
    save(model.to(torch.bfloat16), tokenizer, folder)


def make_prompts(count: int) -> list[str]:
    """Distinct questions of our instruction data, in a fixed order."""
    import random

    from twllm.tokens.conversation import read_conversations

    found = {row.messages[0]["content"] for source in SOURCES for row in read_conversations(source)}
    questions = sorted(text for text in found if 10 <= len(text) <= 60)
    random.Random(0).shuffle(questions)
    return [questions[i % len(questions)] + ("" if i < len(questions) else f"（{i}）") for i in range(count)]


# -- servers --------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A server in a process group of its own; `pause` stops it while others are measured."""

    name: str
    command: list[str]
    port: int
    log: Path
    model: str = "default"  # what it calls the model
    extra: dict[str, Any] = field(default_factory=dict)  # more keys of a request
    process: subprocess.Popen[bytes] | None = None

    def start(self, timeout_s: float = 300) -> None:
        """Start it and wait until it has answered one request."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + timeout_s
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended: {self.log.read_text(errors='replace')[-2000:]}")
            if time.monotonic() > end:
                raise RuntimeError(f"{self.name} did not start in {timeout_s} s")
            try:
                (reply,) = asyncio.run(ask_all(self, ["你好"], 8))
                if reply.status == 200 and reply.finish_reason:
                    return
            except OSError:
                pass
            time.sleep(0.5)

    def pause(self) -> None:
        """Take no processor time."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, its children too."""
        if self.process and self.process.poll() is None:
            self.resume()
            self._signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
                self.process.wait(15)

    def rss_mb(self) -> int:
        """Resident memory of its process group: what it holds now, in MiB."""
        assert self.process is not None
        total = 0
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    if os.getpgid(int(folder.name)) == self.process.pid:
                        status = (folder / "status").read_text()
                        total += int(status.split("VmRSS:")[1].split()[0]) // 1024
                except (OSError, IndexError):
                    continue
        return total

    def _signal(self, number: int) -> None:
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, number)


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ours(folder: Path, work: Path, engine: str, *options: str) -> Server:
    """`twllm serve` with one of its engines."""
    port = free_port()
    command = [
        sys.executable, "-m", "twllm.cli", "serve", str(folder), "--engine", engine, "--port", str(port),
        "--db", str(work / f"{engine}.db"), "--name", "bench", *options,
    ]  # fmt: skip
    return Server(f"twllm {engine}", command, port, work / f"twllm-{engine}.log", "bench")


def transformers_serve(folder: Path, work: Path) -> Server:
    """`transformers serve --continuous-batching`."""
    port = free_port()
    command = [
        str(Path(sys.executable).parent / "transformers"), "serve", str(folder), "--continuous-batching", "--device", "cpu",
        "--dtype", "bfloat16", *PAGES, "--port", str(port), "--host", "127.0.0.1",
    ]  # fmt: skip
    return Server("transformers", command, port, work / "transformers.log", str(folder))


def llama_server(gguf: Path, work: Path, python: str) -> Server:
    """llama-cpp-python's server."""
    port = free_port()
    command = [
        python, "-m", "llama_cpp.server", "--model", str(gguf), "--n_ctx", str(CONTEXT), "--port", str(port),
        "--host", "127.0.0.1", "--n_threads", str(os.cpu_count()), "--verbose", "false",
        "--interrupt_requests", "false",  # its default lets a new request break off the running one
    ]  # fmt: skip
    return Server("llama-cpp-python", command, port, work / "llama.log", "gguf")


# -- client ---------------------------------------------------------------------------------------------------------


@dataclass
class Reply:
    """One stream as it came: raw events, when the first text was there, how it ended."""

    status: int = 0
    first_s: float | None = None
    wall_s: float = 0.0
    raw: bytes = b""
    headers: bytes = b""

    @property
    def done(self) -> bool:
        """Whether the stream's last line, `[DONE]`, was there (transformers sends none)."""
        return self.raw.rstrip().endswith(b"[DONE]")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events as JSON."""
        lines = (line[5:].strip() for line in self.raw.split(b"\n") if line.startswith(b"data:"))
        return [json.loads(line) for line in lines if line and line != b"[DONE]"]

    @property
    def text(self) -> str:
        """What was said."""
        return "".join((c.get("delta") or {}).get("content") or "" for e in self.events for c in e.get("choices") or [])

    @property
    def finish_reason(self) -> str | None:
        """How it says it ended."""
        found = [c.get("finish_reason") for e in self.events for c in e.get("choices") or []]
        return next((reason for reason in found if reason), None)


async def ask(server: Server, prompt: str, max_tokens: int, path: str = "/v1/chat/completions") -> Reply:
    """One streamed chat over a connection of its own. Raw sockets: the client shares the processor with the servers.

    Only the arrival of the first piece is timed while it runs; everything else is parsed afterwards.
    """
    messages = [{"role": "user", "content": prompt}]
    body = {"model": server.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    data = json.dumps(body | server.extra).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 22)
    reply, chunks = Reply(), []
    try:
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        reply.headers = await reader.readuntil(b"\r\n\r\n")
        reply.status = int(reply.headers.split(b" ", 2)[1])
        while piece := await reader.read(1 << 16):
            chunks.append(piece)
            if reply.first_s is None and has_text(piece):
                reply.first_s = time.perf_counter() - started
    finally:
        writer.close()
    reply.wall_s = time.perf_counter() - started
    reply.raw = dechunk(b"".join(chunks)) if b"chunked" in reply.headers.lower() else b"".join(chunks)
    return reply


def has_text(piece: bytes) -> bool:
    """Whether a piece of a stream holds a token: content that is there, even if no whole character is."""
    return b'"content":' in piece.replace(b" ", b"") and b'"content":""' not in piece.replace(b" ", b"")


def dechunk(raw: bytes) -> bytes:
    """The body of a chunked answer; a cut one as far as it came."""
    found, at = [], 0
    while (end := raw.find(b"\r\n", at)) >= 0:
        size = int(raw[at:end].split(b";")[0] or b"0", 16)
        if not size:
            break
        found.append(raw[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(found)


async def ask_all(server: Server, prompts: Sequence[str], max_tokens: int) -> list[Reply]:
    """All prompts at once."""
    return list(await asyncio.gather(*(ask(server, prompt, max_tokens) for prompt in prompts)))


# -- memory bandwidth -----------------------------------------------------------------------------------------------


def bandwidth_gb_s(size_bytes: int, seconds: float = 2.0) -> float:
    """How fast `size_bytes` of weights can be read, again and again, by all cores: the best of several ways and rounds.

    A buffer as large as the weights, because a cache that holds the weights makes them faster than main memory does.
    """
    import torch

    rows = max(1, size_bytes // (2 * 4096))
    weights = torch.ones(rows, 4096, dtype=torch.bfloat16)
    flat = weights.view(torch.int64).view(-1)
    vector = torch.ones(4096, dtype=torch.bfloat16)
    half = flat[: len(flat) // 2]
    target = torch.empty_like(half)
    ways = (
        lambda: torch.mv(weights, vector),
        lambda: flat.sum(),
        lambda: flat.max(),
        lambda: target.copy_(half),  # reads one half, writes as much
    )
    best = 0.0
    for way in ways:
        way()
        end = time.perf_counter() + seconds / len(ways)
        while time.perf_counter() < end:
            started = time.perf_counter()
            way()
            best = max(best, weights.nbytes / (time.perf_counter() - started) / 1e9)
    return best
