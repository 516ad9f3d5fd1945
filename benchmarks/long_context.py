"""Five ways to longer positions at equal tokens: recall against position and needles found, before and after a brief training.

    python benchmarks/long_context.py prepare runs/long              # texts, and a small model that uses all of its 256 positions
    python benchmarks/long_context.py compare runs/long --seeds 1 2 3   # recipes/long-tiny.toml once for each method and seed

What makes so small a model look back: lists of made-up words in which passages come again (periods first, then any distance), a loss on
the repeats alone, and embeddings that begin with a part all tokens share: Llama has no biases, and without a constant no head finds "the token
before" (with it the copying head forms after 0.7 M tokens, without it not within 1.2 M). RoPE's base is 625 for 256 positions, in the
ratio of Llama 2's 10,000 for 4,096: with 10,000 the slow angles hardly turn within 1,024, and nothing would break.
The hay of training and test are different paragraphs of the shipped knowledge; the needles' wordings are the same, their values are not.
"""

import argparse
import json
import math
import random
import shutil
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from twllm.artifact import write_json, write_text
from twllm.evaluate.haystack import fill, needle_items, needles
from twllm.evaluate.kinds.needle import grid
from twllm.evaluate.needle_data import conversations
from twllm.evaluate.positions import edges, markdown, plot
from twllm.evaluate.runner import evaluate_model
from twllm.evaluate.task import tasks
from twllm.evaluate.texts import read_texts
from twllm.model.build import load, save
from twllm.model.rope import extend_folder
from twllm.model.rope_config import RopeConfig
from twllm.model.sizes import Size
from twllm.recipe import load_recipe
from twllm.run import run_recipe
from twllm.tokens.config import TokenizerConfig
from twllm.tokens.shards import TokenShard, write_shard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.tokens.train import train_tokenizer
from twllm.train.config import MachineConfig, OptimConfig
from twllm.train.data import PackedData
from twllm.train.loop import Trainer

Messages = list[dict[str, str]]
Document = tuple[list[int], list[bool] | None]  # ids, what is learned
OLD, NEW, VOCABULARY = 256, 1024, 4096
SIZE, THETA = Size(D=128, L=2, H=2, K=2, F=352, tied=True), 625.0
METHODS = ("none", "linear", "dynamic", "yarn", "theta")
ROPES: dict[str, dict[str, Any]] = {"none": {"type": "theta", "theta": THETA}}  # the base's own angles, more positions
LENGTHS, DEPTHS = (
    "100 120 300 500 700 850",
    "0 25 50 75 100",
)  # characters: 120 and an answer fit 256 tokens, 850 fit 1,024


def prepare(root: Path, share: float, threads: int) -> None:
    """Texts, training conversations, and the base model in lessons: repeating, looking up in Mandarin, far apart."""
    root.mkdir(parents=True, exist_ok=True)
    texts = [one.text.strip() for one in read_texts("twllm:knowledge")]
    train, held = [t for i, t in enumerate(texts) if i % 10], texts[::10]
    tokenizer = train_tokenizer(texts, TokenizerConfig(vocab_size=VOCABULARY, min_frequency=3), "taiwan-llm-v2")
    words = sorted({tokenizer.decode([i]) for i in range(VOCABULARY)})
    words = [word for word in words if all("\u4e00" <= c <= "\u9fff" for c in word) and word]
    chance = random.Random(1)
    write_rows(root / "long.jsonl", [echoes(train, words, 1000, chance) for _ in range(600)])
    write_rows(root / "held.jsonl", held)
    rows = conversations(train, 2000, 80, 850, 1)
    write_text(root / "needles.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    model = new_model(tokenizer)
    chats = [row["messages"] for row in conversations(train, int(6000 * share), 80, 300, 7)]
    chats += [looking_up(train, f"lookup/{n}", 2, n % 3) for n in range(int(4000 * share))]
    encoded = [tokenizer.encode_chat(chat) for chat in chats]
    talks = [(c.ids, c.mask) for c in encoded if len(c.ids) <= OLD]
    read = [(tokenizer.encode(echoes(train, words, 300, chance))[:OLD], None) for _ in range(int(1200 * share))]
    rng = np.random.default_rng(1)
    first = Lesson("repeat", int(3.2e6 * share), 3e-3, OLD)
    first.run(model, repeats(rng, VOCABULARY, OLD, first.tokens // OLD, 0.8), root, threads)
    second = Lesson("look-up", int(2e6 * share), 2e-3, OLD)
    second.run(model, [*repeats(rng, VOCABULARY, OLD, int(1500 * share)), *talks, *read], root, threads)
    chats = [row["messages"] for row in conversations(train, int(8000 * share), 80, 170, 8)]
    chats += [looking_up(train, f"farther/{n}", 1, 2 + n % 4) for n in range(int(4000 * share))]
    encoded = [tokenizer.encode_chat(chat) for chat in chats]
    talks = [(c.ids, c.mask) for c in encoded if len(c.ids) <= OLD]
    third = Lesson("farther", int(2e6 * share), 1.5e-3, OLD)
    third.run(model, [*repeats(rng, VOCABULARY, OLD, int(1500 * share), far=3.0), *talks], root, threads)
    save_as(model, tokenizer, root / "base", OLD)
    told = {"repeats, by distance": by_distance(model, 8), "needles": ask(root / "base", root, "base")}
    write_json(root / "base.json", told)
    print(json.dumps(told))


def new_model(tokenizer: ChatTokenizer, theta: float = THETA) -> PreTrainedModel:
    """Random weights, save that embeddings share a part and the logits begin three times as far apart."""
    torch.manual_seed(1)
    config = LlamaConfig(
        **SIZE.llama(tokenizer.vocab_size, OLD), rope_parameters={"rope_type": "default", "rope_theta": theta},
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table += config.initializer_range * torch.randn(SIZE.D).sign()
        model.model.norm.weight.fill_(3.0)
    return model


class Lesson:
    """Some tokens at one rate, in rows of `context`."""

    def __init__(self, name: str, tokens: int, lr: float, context: int, batch_tokens: int = 2048) -> None:
        self.name, self.tokens, self.context = name, tokens, context
        self.config = OptimConfig(
            lr=lr, batch_tokens=max(batch_tokens, context), context=context, max_tokens=tokens, epochs=100,
            schedule="wsd", min_lr_share=0.1, decay_share=0.3,
        )  # fmt: skip

    def run(self, model: PreTrainedModel, documents: Iterable[Document], root: Path, threads: int) -> dict[str, Any]:
        """Train in place."""
        shard, work = root / "lessons" / self.name, root / "work" / self.name
        for old in (shard, work):
            shutil.rmtree(old, ignore_errors=True)
        write_shard(shard, ((str(n), ids, mask) for n, (ids, mask) in enumerate(documents)), VOCABULARY)
        data = PackedData([TokenShard(shard)], [1.0], self.context, 1)
        machine = MachineConfig(threads=threads, tensorboard=False, micro_batch_tokens=max(8192, self.context))
        found = Trainer(self.name, model, data, self.config, machine, work).run()
        told = {key: found[key] for key in ("steps", "tokens", "loss", "train_s")}
        print(self.name, told, flush=True)
        return told


def repeats(
    rng: np.random.Generator, vocabulary: int, length: int, count: int, periodic: float = 0.0, far: float = 1.0
) -> Iterator[Document]:
    """Random tokens in passages of 2 to 12, three of five come again from anywhere before; only what can be known is learned.

    `periodic`: of the first document's passages so many are short periods instead (of 2 mostly: the token before last comes next),
    falling to 0.24 over the first quarter. `far` above 1 prefers passages at the beginning.
    """
    for number in range(count):
        share = periodic and max(0.24, periodic * (1 - 4 * number / count))
        yield repeating(rng, vocabulary, length, share, far)


def repeating(
    rng: np.random.Generator, vocabulary: int, length: int, periodic: float = 0.0, far: float = 1.0
) -> tuple[list[int], list[bool]]:
    """One such document; see `repeats`."""
    ids: list[int] = []
    known: list[bool] = []
    passages: list[NDArray[np.int64]] = []
    while len(ids) < length:
        if rng.random() < periodic:
            period = 2 + int(rng.exponential((0.3, 3, 10)[rng.integers(3)]))
            piece = np.tile(rng.integers(4, vocabulary, period), rng.integers(2, 8 if period == 2 else 5))
            new = period
        elif passages and rng.random() < 0.6:
            piece, new = passages[int(len(passages) * rng.random() ** far)], 1
        else:
            piece = rng.integers(4, vocabulary, rng.integers(2, 13))
            passages.append(piece)
            new = len(piece)
        ids += piece.tolist()
        known += [False] * new + [True] * (len(piece) - new)
    return ids[:length], known[:length]


def echoes(texts: list[str], words: list[str], length: int, chance: random.Random) -> str:
    """`length` characters of Mandarin in which clauses, half of them made-up, come again at any distance."""
    clauses = [part for text in texts for part in text.replace("。", "，").split("，") if 4 < len(part) < 30]
    told: list[str] = []
    while sum(map(len, told)) < length:
        if told and chance.random() < 0.6:
            told.append(chance.choice(told))
        elif chance.random() < 0.5:
            told.append(chance.choice(clauses) + "，")
        else:
            told.append("".join(chance.choices(words, k=chance.randint(2, 8))) + "，")
    return "".join(told)[: length - 1] + "。"


def looking_up(texts: list[str], seed: str, least: int, hay: int) -> Messages:
    """A conversation that asks for each of up to four sentences, between them at most `hay` pieces of other text."""
    chance, (known, words) = random.Random(seed), needles()
    told = []
    for needle in chance.sample(known, chance.randint(least, 4)):
        digits = needle.kind == "digits"
        value = str(chance.randrange(100_000, 1_000_000)) if digits else "".join(chance.sample(words, 2))
        told.append((needle.question, needle.sentence.format(value=value)))
    parts = [sentence for _, sentence in told]
    for _ in range(hay):
        parts.insert(chance.randint(0, len(parts)), fill(texts, chance.randint(10, 40), chance))
    chance.shuffle(told)
    first = tasks()["needle_zh"].prompt.format(context="".join(parts), question=told[0][0])
    asked = [first, *(question for question, _ in told[1:])]
    pairs = [(("user", question), ("assistant", answer)) for question, (_, answer) in zip(asked, told, strict=True)]
    return [{"role": role, "content": content} for pair in pairs for role, content in pair]


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
def recall(model: PreTrainedModel, length: int, buckets: int, documents: int = 16) -> list[float]:
    """Bits per repeated token in each bucket of positions: 12 is a guess (4,096 tokens), 0 is known."""
    model.eval()
    rng, total, count = np.random.default_rng(99), np.zeros(length), np.zeros(length)
    for _ in range(documents):
        ids, known = repeating(rng, VOCABULARY, length + 1)
        hidden = model.get_decoder()(input_ids=torch.tensor([ids[:-1]]), use_cache=False).last_hidden_state[0]
        places = torch.tensor(known[1:]).nonzero()[:, 0]
        loss = F.cross_entropy(
            model.get_output_embeddings()(hidden[places]).float(), torch.tensor(ids)[places + 1], reduction="none"
        )
        total[places.numpy()] += loss.numpy() / math.log(2)
        count[places.numpy()] += 1
    ends = edges(length, buckets)
    return [float(total[a:b].sum() / max(1, count[a:b].sum())) for a, b in zip([0, *ends], ends, strict=False)]


@torch.inference_mode()
def by_distance(model: PreTrainedModel, documents: int, length: int = OLD) -> dict[str, float]:
    """Bits per token of a passage at the end of a row that was there once before, so far back."""
    model.eval()
    rng, found = np.random.default_rng(98), {}
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        bits = []
        for _ in range(4 * documents):
            ids, passage = rng.integers(4, VOCABULARY, length), rng.integers(4, VOCABULARY, 8)
            back = max(8, int(share * (length - 16)))
            ids[-8:], ids[length - 8 - back : length - back] = passage, passage
            logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0, -8:-1].float()
            bits.append(float(F.cross_entropy(logits, torch.from_numpy(passage)[1:])) / math.log(2))
        found[str(back)] = round(statistics.fmean(bits), 2)
    return found


def compare(root: Path, recipe: Path, threads: int, methods: list[str], seeds: list[int]) -> None:
    """Each method and seed, before and after."""
    skip = list(load_recipe(recipe).recipe.corpus.sources[0].skip_steps)
    for seed in seeds:
        for method in methods:
            folder, run = root / "models" / method, root / "runs" / f"{method}-{seed}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            rope = ROPES.get(method, {"type": method})
            extend_folder(root / "base", RopeConfig.model_validate({**rope, "factor": NEW / OLD}), folder)
            sets = [f"base.rope.{key}={value}" for key, value in rope.items()]
            sets += [
                f"base.model={root / 'base'}",
                f"corpus.sources=[{{path='{root / 'long.jsonl'}', license='CC-BY-4.0', skip_steps={skip}}}]",
                f"sft.datasets=[{{path='{root / 'needles.jsonl'}'}}]",
                f"pretrain.forgetting.texts=['{root / 'held.jsonl'}']",
                f"pretrain.seed={seed}",
                f"sft.seed={seed}",
            ]
            run_recipe(load_recipe(recipe, sets), run, MachineConfig(threads=threads, tensorboard=False), until="sft")
            found = {
                "before": look(folder, root, f"{method}-before"),
                "after": look(run / "pretrain", root, f"{method}-{seed}-pretrained", needle=False),
                "sft": look(run / "sft", root, f"{method}-{seed}-sft"),
            }
            write_json(root / "found" / f"{method}-{seed}.json", found)
    report(root)


def look(model: Path, root: Path, name: str, needle: bool = True) -> dict[str, Any]:
    """Bits per repeated token by position, and needles found by length."""
    return {"bits": recall(load(model), NEW, 8), **(ask(model, root, name) if needle else {})}


def ask(model: Path, root: Path, name: str, lengths: str = LENGTHS, per_cell: int = 8) -> dict[str, Any]:
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
    """One table and one picture of all that was run: means over seeds, least to most behind."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for method in METHODS:
        if files := sorted((root / "found").glob(f"{method}-*.json")):
            rows[method] = [json.loads(file.read_text()) for file in files]
    curves = {}
    for when in ("before", "after"):
        for method, runs in rows.items():
            curves[f"{method}, {when}"] = [
                statistics.fmean(bits) for bits in zip(*(run[when]["bits"] for run in runs), strict=True)
            ]
    told = {"context": NEW, "buckets": edges(NEW, 8), "bits_per_token": curves}
    plot(told, root / "long-context.png", "Repeated passages, 256 → 1,024 positions", "bits per repeated token")
    heads = " | ".join(LENGTHS.split())
    lines = [markdown(told), f"| 找到的針 % needles found，字數 characters | {heads} |", "|---" * 7 + "|"]
    for when, kind in ((when, kind) for kind in ("words", "all") for when in ("before", "sft")):
        for method, runs in rows.items():
            cells = []
            for i in range(len(LENGTHS.split())):
                counts = [(sum(run[when][f"{kind} found"][i]), sum(run[when][f"{kind} asked"][i])) for run in runs]
                shares = [100 * found / asked for found, asked in counts if asked]
                spread = f" ({min(shares):.0f}–{max(shares):.0f})" if shares and max(shares) > min(shares) else ""
                cells.append(f"{statistics.fmean(shares):.0f}{spread}" if shares else "")
            lines.append(f"| {method}, {when}, {kind}, n = {len(runs)} | {' | '.join(cells)} |")
    write_text(root / "long.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "compare", "report"])
    parser.add_argument("root", type=Path)
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parent.parent / "recipes" / "long-tiny.toml")
    parser.add_argument("--share", type=float, default=1.0, help="of the base's tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    given = parser.parse_args()
    root = given.root.absolute()
    torch.set_num_threads(given.threads)
    if given.what == "prepare":
        prepare(root, given.share, given.threads)
    elif given.what == "compare":
        compare(root, given.recipe, given.threads, given.methods, given.seeds)
    else:
        report(root)


if __name__ == "__main__":
    main()
