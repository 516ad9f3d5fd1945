"""4,096 → 8,192 → 32,768 positions on one CPU core: a small base that looks back over all of its 4,096, then rung after rung by `twllm run`.

    python benchmarks/long_context.py prepare runs/long               # texts, and the base: 10 minutes on a busy core
    python benchmarks/long_context.py untrained runs/long             # each method's angles on the base, without training
    python benchmarks/long_context.py climb runs/long --methods yarn theta none   # recipes/long-tiny.toml twice for each method
    python benchmarks/long_context.py report runs/long                # the table and the picture

All go on where they were stopped: lessons, phases and measurements that are there are not made again.
What makes so small a model look back: lists of made-up words in which passages come again (periods, then any distance), a loss on the repeats
alone, documents of 256 to 4,096 tokens from the start, and embeddings that begin with a part all tokens share: Llama has no biases, and without
a constant no head finds "the token before" (dev/LOG.md). A rung is what a real one would be: the base of the rung below, `[base.rope]`, some
rows of long text (clauses that come again), some conversations of twelve needles each. `none` has the positions without the scaling.
Hay of training and test are different paragraphs of the shipped knowledge; the needles' wordings are the same, their values are not.
"""

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from twllm.artifact import read_manifest, write_json, write_text
from twllm.evaluate.haystack import needle_items
from twllm.evaluate.kinds.needle import grid
from twllm.evaluate.needle_data import conversations
from twllm.evaluate.positions import edges, plot
from twllm.evaluate.runner import evaluate_model
from twllm.evaluate.task import tasks
from twllm.evaluate.texts import read_texts
from twllm.model.build import load, save
from twllm.model.rope import extend_folder
from twllm.model.rope_config import RopeConfig
from twllm.model.sizes import Size
from twllm.tokens.config import TokenizerConfig
from twllm.tokens.shards import TokenShard, write_shard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.tokens.train import train_tokenizer
from twllm.train.config import MachineConfig, OptimConfig
from twllm.train.data import PackedData
from twllm.train.loop import Trainer
from twllm.train.machine import cpu_multiplies_bf16

Document = tuple[list[int], list[bool] | None]  # ids, what is learned
VOCABULARY = 4096
SIZE, THETA, BASE = Size(D=128, L=2, H=2, K=2, F=352, tied=True), 500_000.0, 4096  # OLMo 2's RoPE base and length
RUNGS = {8192: 2, 32768: 4}  # context and factor, each on the one before
ROWS = {8192: (16, 32), 32768: (8, 16)}  # of text, of conversations; of `context` tokens each
METHODS = ("yarn", "theta", "linear", "dynamic", "none")
LENGTHS, DEPTHS = "4000 8000 16000 32000", "0 25 50 75 100"  # characters: the suite's own, about 0.9 tokens each
REPEAT, LOOK_UP = 4_000_000, 4_000_000  # tokens of the base's lessons
RECIPE = Path(__file__).parent.parent / "recipes" / "long-tiny.toml"


def prepare(root: Path, share: float, threads: int) -> None:
    """Texts, training conversations, and the base model in lessons: repeating, then looking up in Mandarin."""
    root.mkdir(parents=True, exist_ok=True)
    texts = [one.text.strip() for one in read_texts("twllm:knowledge")]
    train, held = [t for i, t in enumerate(texts) if i % 10], texts[::10]
    tokenizer = train_tokenizer(texts, TokenizerConfig(vocab_size=VOCABULARY, min_frequency=3), "taiwan-llm-v2")
    write_rows(root / "held.jsonl", held)
    for context, (count, chats) in ROWS.items():
        write_rows(root / f"long-{context}.jsonl", [echoes(train, tokenizer, context, n) for n in range(count)])
        rows = talks(train, tokenizer, chats, context // 2, context, context)
        write_text(
            root / f"needles-{context}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        )
    model = new_model(tokenizer)
    lesson = Lesson("repeat", int(REPEAT * share), 4e-3)
    model = lesson.run(model, tokenizer, repeats(1, lesson.tokens), root, threads)
    lesson = Lesson("look-up", int(LOOK_UP * share), 2e-3)
    many, one = (
        talks(train, tokenizer, int(700 * share), 520, BASE, 7),
        talks(train, tokenizer, int(1500 * share), 80, 1500, 8, 1),
    )
    chats = [tokenizer.encode_chat(row["messages"]) for row in [*many, *one]]
    read: list[Document] = [
        (tokenizer.encode(echoes(train, tokenizer, BASE, -n)), None) for n in range(int(100 * share))
    ]
    documents = [*repeats(2, lesson.tokens // 4), *((chat.ids, chat.mask) for chat in chats), *read]
    model = lesson.run(model, tokenizer, documents, root, threads)
    save_as(model, tokenizer, root / "base", BASE)
    write_json(root / "base.json", found := look(root / "base", root, "base", BASE))
    print(json.dumps(found))


def new_model(tokenizer: ChatTokenizer, context: int = BASE) -> PreTrainedModel:
    """Random weights, save that embeddings share a part and the logits begin three times as far apart."""
    torch.manual_seed(1)
    config = LlamaConfig(
        **SIZE.llama(tokenizer.vocab_size, context), rope_parameters={"rope_type": "default", "rope_theta": THETA},
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table += config.initializer_range * torch.randn(SIZE.D).sign()
        model.model.norm.weight.fill_(3.0)
    return model


class Lesson:
    """Some tokens at one rate, in rows of the base's length; found done, or half done, it is not begun again."""

    def __init__(self, name: str, tokens: int, lr: float) -> None:
        self.name, self.tokens = name, tokens
        self.config = OptimConfig(
            optimizer="muon", lr=lr, batch_tokens=BASE, context=BASE, max_tokens=tokens, epochs=100, schedule="wsd",
            min_lr_share=0.1, decay_share=0.3,
        )  # fmt: skip

    def run(
        self, model: PreTrainedModel, tokenizer: ChatTokenizer, documents: Iterable[Document], root: Path, threads: int
    ) -> PreTrainedModel:
        """The model after it, the same object unless it was there already."""
        shard, work, done = (root / part / self.name for part in ("lessons", "work", "taught"))
        if done.is_dir():
            return load(done)
        if not (shard / "index.json").is_file():
            write_shard(shard, ((str(n), ids, mask) for n, (ids, mask) in enumerate(documents)), VOCABULARY)
        data = PackedData([TokenShard(shard)], [1.0], BASE, 1)
        machine = MachineConfig(threads=threads, tensorboard=False)
        found = Trainer(self.name, model, data, self.config, machine, work).run()
        print(self.name, {key: found[key] for key in ("steps", "tokens", "loss", "train_s")}, flush=True)
        save_as(model, tokenizer, done, BASE)
        return model


def repeats(seed: int, tokens: int) -> Iterator[Document]:
    """Documents of 256 to 4,096 tokens, as many tokens of each length; only what can be known is learned."""
    rng = np.random.default_rng(seed)
    for length in (256, 512, 1024, 2048, 4096):
        for _ in range(tokens // 5 // length + 1):
            ids, known = repeating(rng, length, rng.uniform(0.1, 0.6))
            yield ids, [depth > 0 for depth in known]


def repeating(rng: np.random.Generator, length: int, periodic: float = 0.0) -> tuple[list[int], list[int]]:
    """Random tokens in passages of 2 to 12, three of five come again from anywhere before; `periodic` of the passages are short periods
    instead (of 2 mostly: the token before last comes next). Beside each token how many before it say what it is.
    """
    ids: list[int] = []
    known: list[int] = []
    passages: list[NDArray[np.int64]] = []
    while len(ids) < length:
        if rng.random() < periodic:
            period = 2 + int(rng.exponential((0.3, 3, 10)[rng.integers(3)]))
            piece = np.tile(rng.integers(4, VOCABULARY, period), rng.integers(2, 8 if period == 2 else 5))
            new = period
        elif passages and rng.random() < 0.6:
            piece, new = passages[rng.integers(len(passages))], 1
        else:
            piece = rng.integers(4, VOCABULARY, rng.integers(2, 13))
            passages.append(piece)
            new = len(piece)
        ids += piece.tolist()
        known += [0] * new + list(range(new, len(piece)))
    return ids[:length], known[:length]


def echoes(texts: list[str], tokenizer: ChatTokenizer, tokens: int, seed: int) -> str:
    """About `tokens` tokens of Mandarin in which clauses, half of them made-up, come again at any distance."""
    chance = random.Random(f"echoes/{tokens}/{seed}")
    words = sorted({tokenizer.decode([i]) for i in range(VOCABULARY)})
    words = [word for word in words if word and all("\u4e00" <= c <= "\u9fff" for c in word)]
    clauses = [part for text in texts for part in text.replace("。", "，").split("，") if 4 < len(part) < 30]
    told: list[str] = []
    room = tokens - 2
    while True:
        if told and chance.random() < 0.6:
            clause = chance.choice(told)
        elif chance.random() < 0.5:
            clause = chance.choice(clauses) + "，"
        else:
            clause = "".join(chance.choices(words, k=chance.randint(2, 8))) + "，"
        room -= len(tokenizer.encode(clause))
        if room < 0:
            return "".join(told)
        told.append(clause)


def talks(
    texts: list[str], tokenizer: ChatTokenizer, count: int, shortest: int, longest: int, seed: int, needles: int = 12
) -> Iterator[dict[str, Any]]:
    """`twllm eval needle-data`'s conversations, those that fit `longest` tokens."""
    for row in conversations(texts, count, shortest, int(0.95 * longest) - 100, seed, needles):
        if len(tokenizer.encode_chat(row["messages"]).ids) <= longest:
            yield row


def write_rows(file: Path, texts: list[str]) -> None:
    """jsonl of documents."""
    rows = [{"id": str(i), "text": text, "license": "CC-BY-4.0"} for i, text in enumerate(texts)]
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def save_as(model: PreTrainedModel, tokenizer: ChatTokenizer, folder: Path, context: int) -> None:
    """A folder anew."""
    model.config.max_position_embeddings = context
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save(model, tokenizer, folder)


@torch.inference_mode()
def recall(model: PreTrainedModel, length: int, buckets: int = 8) -> list[float]:
    """Bits of a token of a passage that came before, at least three of it read, in each bucket of positions: 12 is a guess, 0 is known."""
    model.eval()
    rng, total, count = np.random.default_rng(99), np.zeros(length), np.zeros(length)
    for _ in range(max(1, 16_384 // length)):
        ids, known = repeating(rng, length + 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_multiplies_bf16()):  # as it is trained
            hidden = model.get_decoder()(input_ids=torch.tensor([ids[:-1]]), use_cache=False).last_hidden_state[0]
        places = (torch.tensor(known[1:]) >= 3).nonzero()[:, 0]
        logits = model.get_output_embeddings()(hidden[places].float())
        loss = F.cross_entropy(logits, torch.tensor(ids)[places + 1], reduction="none")
        total[places.numpy()] += loss.numpy() / math.log(2)
        count[places.numpy()] += 1
    ends = edges(length, buckets)
    return [float(total[a:b].sum() / max(1, count[a:b].sum())) for a, b in zip([0, *ends], ends, strict=False)]


def rope_of(method: str) -> dict[str, Any]:
    """[base.rope] without its factor; `none` has the old angles and more positions."""
    return {"type": "theta", "theta": THETA} if method == "none" else {"type": method}


def longer(base: Path, method: str, factor: int, out: Path) -> Path:
    """`out`, the base with other angles."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    extend_folder(base, RopeConfig.model_validate({**rope_of(method), "factor": factor}), out)
    return out


def untrained(root: Path, methods: list[str], per_cell: int) -> None:
    """The base at the last rung at once, with nothing but other angles."""
    longest = max(RUNGS)
    for method in methods:
        start = longer(root / "base", method, longest // BASE, root / "models" / f"{method}-untrained")
        look(start, root, f"{method}-untrained", longest, per_cell)
    report(root)


def climb(root: Path, threads: int, methods: list[str], per_cell: int, sets: list[str]) -> None:
    """Each method, rung by rung: the recipe as a command of its own, so that its peak memory is its own, and a look before and after."""
    skip = ["region", "quality", "privacy", "boilerplate", "near_dedup"]
    machine = root / "machine.toml"
    write_text(machine, f"threads = {threads}\ntensorboard = false\n")
    for method in methods:
        base = root / "base"
        for context, factor in RUNGS.items():
            out, rope = root / "runs" / f"{method}-{context}", rope_of(method)
            start = longer(base, method, factor, root / "models" / f"{method}-{context}")
            given = [
                f"base.model={base}",
                f"base.rope.factor={factor}",
                *(f"base.rope.{key}={value}" for key, value in rope.items()),
                *(f"{phase}.{key}={context}" for phase in ("pretrain", "sft") for key in ("context", "batch_tokens")),
                f"corpus.sources=[{{path='{root}/long-{context}.jsonl', license='CC-BY-4.0', skip_steps={skip}}}]",
                f"sft.datasets=[{{path='{root}/needles-{context}.jsonl'}}]",
                *sets,
            ]
            command = ["twllm.cli", "run", str(RECIPE), "--out", str(out), "--machine", str(machine), "--until", "sft"]
            subprocess.run([sys.executable, "-m", *command, *(f"--set={one}" for one in given)], check=True)
            found = {"before": look(start, root, f"{method}-{context}-before", context, max(1, per_cell // 2))}
            found["pretrain"] = {"bits": recall(load(out / "pretrain"), context)}
            found["sft"] = look(out / "sft", root, f"{method}-{context}-sft", context, per_cell)
            for phase in ("pretrain", "sft"):
                told = read_manifest(out / phase) or {}
                found[phase] |= {
                    "tokens": told["metrics"]["tokens"],
                    "s": told["seconds"],
                    "peak_mb": told["peak_rss_mb"],
                }
            write_json(root / "found" / f"{method}-{context}.json", found)
            base = out / "sft"
    report(root)


def look(model: Path, root: Path, name: str, context: int, per_cell: int = 4) -> dict[str, Any]:
    """Bits per repeated token by position, and needles found by length."""
    file = root / "looks" / f"{name}.json"
    if not file.is_file():
        started = time.perf_counter()
        lengths = " ".join(length for length in LENGTHS.split() if int(length) <= context)
        found = {"bits": recall(load(model), context), **ask(model, root, name, lengths, per_cell)}
        write_json(file, found | {"s": round(time.perf_counter() - started, 1)})
    return dict(json.loads(file.read_text()))


def ask(model: Path, root: Path, name: str, lengths: str, per_cell: int) -> dict[str, Any]:
    """Needles found in held-out hay, by length and by depth: all, and those whose value is a pair of words."""
    task = tasks()["needle_zh"]
    options = {
        **task.options,
        "lengths": lengths,
        "depths": DEPTHS,
        "per_cell": per_cell,
        "text": str(root / "held.jsonl"),
    }
    tasks()["needle_zh"] = asked = task.model_copy(update={"options": options})
    out = root / "answers" / f"{name}.json"
    try:
        found = evaluate_model(str(model), suites=["needle_zh"], out=out, max_new_tokens=32, batch_size=8)["needle_zh"]
    finally:
        tasks()["needle_zh"] = task
    words = {item.id for item in needle_items(asked, None) if not item.references[0].isdigit()}
    only = [row for row in found["items"] if row["id"] in words]
    told = {"lengths": found["grid"]["lengths"]}
    for kind, cells in (("all", found["grid"]), ("words", grid(asked, only))):
        told |= {f"{kind} found": cells["correct"], f"{kind} asked": cells["n"]}
    return told


def report(root: Path) -> None:
    """One table and one picture of all that was run."""
    longest, curves = max(RUNGS), dict[str, list[float]]()
    rows = []
    looks = [("base", BASE, "sft", json.loads((root / "base.json").read_text()))]
    for method in METHODS:
        if (file := root / "looks" / f"{method}-untrained.json").is_file():
            looks.append((method, longest, "untrained", json.loads(file.read_text())))
        for context in RUNGS:
            if (file := root / "found" / f"{method}-{context}.json").is_file():
                found = json.loads(file.read_text())
                looks += [(method, context, when, found[when]) for when in ("before", "pretrain", "sft")]
    for method, context, when, found in looks:
        if context == longest and when in ("untrained", "sft"):
            curves[f"{method}, {'trained' if when == 'sft' else when}"] = found["bits"]
        cells = [
            f"{sum(a)}/{sum(n)}" if sum(n) else ""
            for a, n in zip(found.get("all found", []), found.get("all asked", []), strict=True)
        ]
        rows.append([method, context, when, *(f"{x:.1f}" for x in found["bits"]), *cells, *[""] * (4 - len(cells))])
    told = {"context": longest, "buckets": edges(longest, 8), "bits_per_token": curves}
    if curves:
        plot(told, root / "long-context.png", "Repeated passages, 4,096 → 32,768 positions", "bits per repeated token")
    heads = ["", "位置 context", "", *(f"{n}/8" for n in range(1, 9)), *(f"{n} 字" for n in LENGTHS.split())]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [heads, ["---"] * len(heads), *rows]]
    write_text(root / "long.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "untrained", "climb", "report"])
    parser.add_argument("root", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the base's tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="*", default=["yarn", "theta", "none"], choices=METHODS)
    parser.add_argument(
        "--per-cell", type=int, default=4, help="needles at each length and depth; half of it before training"
    )
    parser.add_argument("--set", nargs="*", default=[], help="of the recipe, for all rungs")
    given = parser.parse_args()
    root = given.root.absolute()
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)  # a peaked softmax is full of them, and they are slow
    if given.what == "prepare":
        prepare(root, given.share, given.threads)
    elif given.what == "untrained":
        untrained(root, given.methods, given.per_cell)
    elif given.what == "climb":
        climb(root, given.threads, given.methods, given.per_cell, given.set)
    else:
        report(root)


if __name__ == "__main__":
    main()
