"""Serving speed on one machine in one run: ours (two engines) against `transformers serve` and llama-cpp-python's server.

Same model (random Llama, bf16; f16 in the GGUF), same prompts, same client, all servers up and those not measured stopped
(SIGSTOP), rounds interleaved, the median of the rounds counts. N concurrent streams are sent at once; tokens per second is
all their tokens by the time until the last one ended. The time to the first token is that of the streams of those rounds.
The memory-bandwidth limit of batch 1 is measured in the same run, on a buffer as large as the weights.

    python benchmarks/serve_load.py --model 85m --seconds 20          # needs: pip install -e '.[bench]'
    python benchmarks/serve_load.py --soak 600                        # 500 clients for ten minutes
    python benchmarks/serve_load.py --ratings 10000                   # kill -9 while ratings come in

Every stream of ours is compared with the greedy answer to its prompt. In bf16 a random model has near ties, which a batch may
decide otherwise than a single row: a text that differs is followed in transformers (fp32) and counts as wrong unless each of its
tokens was within TIE of the best. A stream counts as wrong, too, when it is cut or its token count is not the one asked for.
llama-cpp-python's server needs a Python that has `llama-cpp-python[server]` (--llama-python); without one it is left out.
Prints one line `RESULT {…}` at the end. Loopback only.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")

from serve_peers import MODELS, Reply, Server, ask, ask_all, bandwidth_gb_s, llama_server, make_model, make_prompts, ours, transformers_serve  # noqa: E402, I001  # fmt: skip

TOKENS = {"tiny": 48, "85m": 48, "1b": 24}  # of every answer
TIE = 0.25  # of the standard deviation of the logits: rounding moves a logit by less, another prompt's token misses by about 4
FOLLOWED = 200  # differing texts that are followed; more are counted as wrong


class Judge:
    """Knows whether a text is a greedy answer to a prompt, up to near ties."""

    def __init__(self, folder: Path, tokens: int) -> None:
        self.folder, self.tokens = folder, tokens
        self.known: dict[str, str] = {}
        self.differing: Counter[tuple[str, str]] = Counter()
        self.cut = 0

    def see(self, prompt: str, reply: Reply) -> None:
        """Take in one stream that was answered (status 200)."""
        usage = next((event["usage"] for event in reversed(reply.events) if event.get("usage")), {})
        whole = reply.done and reply.finish_reason == "length" and usage.get("completion_tokens") == self.tokens
        if not whole:
            self.cut += 1
        elif self.known.setdefault(prompt, reply.text) != reply.text:
            self.differing[prompt, reply.text] += 1

    def wrong(self, also: int = 4) -> int:
        """Streams that were cut or are no greedy answer; some of the known answers themselves are followed, too."""
        from transformers import AutoModelForCausalLM

        from twllm.tokens.tokenizer import ChatTokenizer

        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype="float32").eval()
        tokenizer = ChatTokenizer.load(self.folder)
        wrong = self.cut
        sample = [(prompt, text) for prompt, text in list(self.known.items())[:also]]
        known_bad = {prompt for prompt, text in sample if not follows(model, tokenizer, prompt, text, self.tokens)}
        wrong += len(known_bad)
        for (prompt, text), times in self.differing.most_common(FOLLOWED):
            wrong += 0 if follows(model, tokenizer, prompt, text, self.tokens) else times
        left = self.differing.most_common()[FOLLOWED:]
        return wrong + sum(times for _, times in left)


def follows(model: Any, tokenizer: Any, prompt: str, text: str, tokens: int) -> bool:
    """Whether some path of `tokens` ids, each within TIE of the best at its place, reads `text`.

    Ids are not told by a chat stream, therefore all near-best ids that go on with the text are tried, the best first.
    """
    import torch
    from transformers import DynamicCache

    ids = tokenizer.encode_chat([{"role": "user", "content": prompt}], add_generation_prompt=True).ids
    cache, held = DynamicCache(), []
    paths: list[list[int]] = [[]]
    for _ in range(20 * tokens):
        if not paths or len(paths[-1]) == tokens:
            break
        path = paths.pop()
        sequence = ids + path
        same = 0
        while same < min(len(held), len(sequence) - 1) and held[same] == sequence[same]:
            same += 1
        if same < len(held):
            cache.crop(same - len(held))  # negative: how many to remove
        with torch.inference_mode():
            logits = model(torch.tensor([sequence[same:]]), cache=cache).logits[0, -1]
        held = sequence
        floor = float(logits.max() - TIE * logits.std())
        near = [int(id) for id in torch.nonzero(logits >= floor).flatten()]
        near.sort(key=lambda id, row=logits: float(row[id]))  # type: ignore[misc]
        for id in near:
            said = tokenizer.decode([*path, id]).rstrip("\ufffd").lstrip()
            last = len(path) + 1 == tokens
            if (text.rstrip("\ufffd") == said) if last else text.startswith(said):
                paths.append([*path, id])
    return bool(paths) and len(paths[-1]) == tokens


def measure(servers: list[Server], args: argparse.Namespace, judge: Judge) -> dict[str, dict[int, dict[str, Any]]]:
    """{server: {streams: {tokens_s, ttft_p50_ms, ttft_p95_ms, rss_mb}}}."""
    speeds: dict[tuple[str, int], list[float]] = defaultdict(list)
    firsts: dict[tuple[str, int], list[float]] = defaultdict(list)
    memory: dict[tuple[str, int], int] = {}
    tokens = TOKENS[args.model]
    for number in range(args.rounds):
        for streams in args.clients:
            for server in servers if number % 2 == 0 else servers[::-1]:
                server.resume()
                end = time.monotonic() + args.seconds / args.rounds
                wave = 0
                while not wave or time.monotonic() < end:
                    prompts = pick(args.prompts, streams, wave + number * 1000)
                    started = time.perf_counter()
                    replies = asyncio.run(ask_all(server, prompts, tokens))
                    wall = time.perf_counter() - started
                    check(server, prompts, replies, judge)
                    speeds[server.name, streams].append(streams * tokens / wall)
                    firsts[server.name, streams] += [reply.first_s or reply.wall_s for reply in replies]
                    wave += 1
                memory[server.name, streams] = server.rss_mb()
                server.pause()
    return {
        server.name: {
            streams: {
                "tokens_s": round(statistics.median(speeds[server.name, streams]), 1),
                "ttft_p50_ms": round(1000 * statistics.median(firsts[server.name, streams]), 1),
                "ttft_p95_ms": round(1000 * quantile(firsts[server.name, streams], 0.95), 1),
                "rss_mb": memory[server.name, streams],
            }
            for streams in args.clients
        }
        for server in servers
    }


def pick(prompts: list[str], count: int, seed: int) -> list[str]:
    """`count` different prompts; another choice for another wave, so that no answer can come from a cache of the last one."""
    return random.Random(seed).sample(prompts, count)


def check(server: Server, prompts: list[str], replies: list[Reply], judge: Judge) -> None:
    """Ours is judged; a peer has to have answered."""
    for prompt, reply in zip(prompts, replies, strict=True):
        if reply.status != 200:
            raise RuntimeError(f"{server.name}: HTTP {reply.status} {reply.raw[:300]!r}")
        if server.name.startswith("twllm"):
            judge.see(prompt, reply)
        elif reply.finish_reason != "length":
            raise RuntimeError(f"{server.name} cut a stream: {reply.raw[-300:]!r}")


def quantile(values: list[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def compare(folder: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison; the RESULT."""
    usage = {"stream_options": {"include_usage": True}}
    judge = Judge(folder, TOKENS[args.model])
    servers = [ours(folder, work, engine) for engine in args.engines]
    for server in servers:
        server.extra = dict(usage, ignore_eos=True)
    if not args.no_peers:
        servers.append(transformers_serve(folder, work))
        if args.llama_python:
            servers.append(llama_server(make_gguf(folder, work / "model.gguf"), work, args.llama_python))
    weights = weight_bytes(folder)
    limits = [bandwidth_gb_s(weights)]
    try:
        for server in servers:
            server.start()
            server.pause()
        table = measure(servers, args, judge)
    finally:
        for server in servers:
            server.stop()
    limits.append(bandwidth_gb_s(weights))
    show(table, args.clients)
    best = servers[0].name
    limit = max(limits)
    print(f"bandwidth {limits[0]:.1f} and {limits[1]:.1f} GB/s (before, after), weights {weights / 1e6:.0f} MB in bf16")
    return {
        "model": args.model, "engine": best, "bandwidth_gb_s": round(limit, 1), "threads": os.cpu_count(),
        "bandwidth_share_b1": share(table[best].get(1), weights, limit),
        "ratio_transformers_16": ratio(table, best, "transformers", 16),
        "ratio_llamacpp_16": ratio(table, best, "llama-cpp-python", 16),
        "ttft_p95_ms": table[best][max(args.clients)]["ttft_p95_ms"],
        "wrong_streams": judge.wrong(), "table": table,
    }  # fmt: skip


def share(row: dict[str, Any] | None, weights: int, limit_gb_s: float) -> float | None:
    """Bytes of weights read per second at batch 1, as a share of what can be read."""
    return None if row is None else round(row["tokens_s"] * weights / (limit_gb_s * 1e9), 3)


def ratio(table: dict[str, Any], one: str, other: str, streams: int) -> float | None:
    """How many times faster `one` is than `other`."""
    if other not in table or streams not in table[one]:
        return None
    return round(table[one][streams]["tokens_s"] / table[other][streams]["tokens_s"], 2)


def weight_bytes(folder: Path) -> int:
    """Bytes of weights that one token needs: all but the embedding, of which it needs a row."""
    shape = json.loads((folder / "config.json").read_text())
    embedding = 2 * shape["vocab_size"] * shape["hidden_size"]
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) - embedding


def make_gguf(folder: Path, file: Path) -> Path:
    """The model as GGUF in f16. llama.cpp has no name for our way to cut words; for its speed any will do: Llama 3's."""
    from unittest.mock import patch

    from twllm.release.gguf import write_gguf

    with patch("twllm.release.gguf._cut", lambda tokenizer: "llama-bpe"):
        write_gguf(folder, file)
    return file


def show(table: dict[str, dict[int, dict[str, Any]]], clients: list[int]) -> None:
    """The numbers for people."""
    print(f"{'server':18} {'streams':>7} {'tokens/s':>9} {'TTFT p50':>9} {'p95 ms':>9} {'RSS MiB':>8}")
    for streams in clients:
        for name, rows in table.items():
            row = rows[streams]
            print(
                f"{name:18} {streams:7} {row['tokens_s']:9} {row['ttft_p50_ms']:9} {row['ttft_p95_ms']:9} {row['rss_mb']:8}"
            )


# -- soak -----------------------------------------------------------------------------------------------------------


async def soak(server: Server, args: argparse.Namespace, judge: Judge) -> dict[str, Any]:
    """Many clients, each one request after the other; whoever is refused waits a little, as Retry-After says."""
    tokens = TOKENS[args.model]
    statuses: Counter[int] = Counter()
    errors: Counter[str] = Counter()
    firsts: list[float] = []
    end = time.monotonic() + args.soak

    async def client(number: int) -> None:
        choose = random.Random(number)
        while time.monotonic() < end:
            prompt = choose.choice(args.prompts)
            try:
                reply = await ask(server, prompt, tokens)
            except (OSError, asyncio.IncompleteReadError) as error:
                errors[type(error).__name__] += 1
                continue
            statuses[reply.status] += 1
            if reply.status == 200:
                judge.see(prompt, reply)
                firsts.append(reply.first_s or reply.wall_s)
            elif reply.status in (429, 503):
                await asyncio.sleep(min(retry_after(reply), 5.0) * (0.5 + choose.random()))

    await asyncio.gather(*(client(number) for number in range(args.soak_clients)))
    odd = sum(count for status, count in statuses.items() if status not in (200, 429, 503))
    return {
        "soak_s": args.soak, "clients": args.soak_clients, "statuses": dict(statuses), "odd_statuses": odd,
        "connection_errors": dict(errors), "answered": statuses[200], "tokens_s": round(statuses[200] * tokens / args.soak, 1),
        "ttft_p95_ms": round(1000 * quantile(firsts, 0.95), 1), "rss_mb": server.rss_mb(),
    }  # fmt: skip


def retry_after(reply: Reply) -> float:
    """Seconds of the Retry-After header; an error where a refusal has none."""
    for line in reply.headers.lower().split(b"\r\n"):
        if line.startswith(b"retry-after:"):
            return float(line.split(b":")[1])
    raise RuntimeError(f"HTTP {reply.status} without Retry-After")


def run_soak(folder: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The soak, in fp32, where near ties are rare; known answers are asked one by one before it."""
    judge = Judge(folder, TOKENS[args.model])
    args.prompts = args.prompts[:48]
    server = ours(
        folder,
        work,
        args.engines[0],
        "--max-running",
        "128",
        "--max-waiting",
        "128",
        "--engine-option",
        "precision=fp32",
    )
    server.extra = {"stream_options": {"include_usage": True}, "ignore_eos": True}
    try:
        server.start()
        for prompt in args.prompts:
            judge.see(prompt, asyncio.run(ask(server, prompt, TOKENS[args.model])))
        before = server.rss_mb()
        found = asyncio.run(soak(server, args, judge))
    finally:
        server.stop()
    differing = sum(judge.differing.values())
    return {**found, "rss_before_mb": before, "differing": differing, "cut": judge.cut, "wrong_streams": judge.wrong()}


# -- ratings --------------------------------------------------------------------------------------------------------


def run_ratings(folder: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """`args.ratings` ratings with a kill -9 and a restart several times in between; what was acknowledged and is not there?"""
    import httpx

    from twllm.feedback.store import RatingStore

    database = work / f"ratings-kill-{os.getpid()}.db"
    acknowledged: set[str] = set()
    messages = [{"role": "user", "content": "玉山多高？"}, {"role": "assistant", "content": "3,952 公尺。"}]
    kills, number = 0, 0

    async def rate(port: int, until: int) -> None:
        nonlocal number
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:

            async def worker() -> None:
                nonlocal number
                while len(acknowledged) < until:
                    number += 1
                    name = f"c{number}"
                    body = {"conversation_id": name, "turn": 1, "rating": 1, "messages": messages, "user": str(number)}
                    reply = await http.post("/api/rating", json=body)
                    if reply.status_code == 200 and reply.json()["stored"]:
                        acknowledged.add(name)
                    if len(acknowledged) >= until:  # right after an acknowledgement, others are on their way
                        os.killpg(server.process.pid, signal.SIGKILL)  # type: ignore[union-attr]

            await asyncio.gather(*(worker() for _ in range(16)), return_exceptions=True)

    while len(acknowledged) < args.ratings:
        server = ours(folder, work, args.engines[0], "--no-warm-up")
        server.command[server.command.index("--db") + 1] = str(database)
        try:
            server.start()
            asyncio.run(rate(server.port, min(args.ratings, len(acknowledged) + args.ratings // 5)))
        finally:
            server.stop()
        kills += 1
    with RatingStore(database) as store:
        stored = {rating.conversation_id for rating in store.latest()}
    return {
        "acknowledged": len(acknowledged),
        "kills": kills,
        "stored": len(stored),
        "lost": len(acknowledged - stored),
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="85m")
    parser.add_argument("--seconds", type=float, default=12, help="for each server and number of streams")
    parser.add_argument("--clients", default="1,8,16,32", help="numbers of concurrent streams")
    parser.add_argument("--engines", default="auto,torch", help="of twllm; the first is compared")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--llama-python", default=os.environ.get("TWLLM_LLAMA_PYTHON", ""))
    parser.add_argument("--soak", type=float, default=0, help="seconds")
    parser.add_argument("--soak-clients", type=int, default=500)
    parser.add_argument("--ratings", type=int, default=0)
    parser.add_argument("--work", type=Path, help="keep model and logs here")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended
    args.clients = [int(number) for number in args.clients.split(",")]
    args.engines = args.engines.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        folder = work / args.model
        if not folder.exists():
            make_model(args.model, folder)
        args.prompts = make_prompts(max(128, *args.clients))
        run = run_soak if args.soak else run_ratings if args.ratings else compare
        result = run(folder, work, args)
    print("RESULT " + json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
