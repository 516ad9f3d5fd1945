"""Four ways to longer positions at equal tokens: loss against position and needles found, before and after a brief training.

    python benchmarks/long_context.py prepare runs/long      # texts, and a tiny model that reads and looks up within 256 tokens
    python benchmarks/long_context.py compare runs/long      # recipes/long-tiny.toml once for each method, table, picture, JSON

`prepare` starts from a finished `twllm run recipes/tiny.toml` (--start) and teaches it to look a sentence up: that takes 5 M tokens.
The hay of training and test are different paragraphs of the shipped knowledge. Without a GPU: about 20 + 15 minutes on one quiet core.
"""

import argparse
import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twllm.artifact import write_json, write_text
from twllm.evaluate.haystack import fill, needles
from twllm.evaluate.needle_data import conversations
from twllm.evaluate.positions import curve, cut, edges, markdown, plot
from twllm.evaluate.runner import evaluate_model
from twllm.evaluate.task import tasks
from twllm.evaluate.texts import read_texts
from twllm.model.build import load, save
from twllm.model.rope import extend_folder
from twllm.model.rope_config import RopeConfig
from twllm.recipe import load_recipe
from twllm.run import run_recipe
from twllm.tokens.shards import TokenShard, write_shard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.config import MachineConfig, OptimConfig
from twllm.train.data import PackedData
from twllm.train.loop import Trainer

Messages = list[dict[str, str]]
OLD, NEW = 256, 1024
METHODS = ("none", "linear", "dynamic", "yarn", "theta")
ROPES: dict[str, dict[str, Any]] = {
    "none": {"type": "theta", "theta": 10_000.0}
}  # the base's own angles, more positions
LENGTHS, DEPTHS = "120 200 400 600 800", "0 50 100"  # characters; 200 fits 256 tokens, 800 fits 1,024


def prepare(root: Path, start: Path, share: float, threads: int) -> None:
    """Texts, training conversations, and the base model, in three lessons: reading, looking up with little hay, with more."""
    root.mkdir(parents=True, exist_ok=True)
    texts = [one.text.strip() for one in read_texts("twllm:knowledge")]
    train, held = [t for i, t in enumerate(texts) if i % 10], texts[::10]
    chance = random.Random(1)
    write_rows(root / "long.jsonl", [fill(train, 1000, chance) for _ in range(400)])
    write_rows(root / "held.jsonl", held)
    write_rows(root / "held_long.jsonl", [fill(held, 4000, chance) for _ in range(10)])
    rows = conversations(train, 1500, 80, 850, 1)
    write_text(root / "needles.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    tokenizer, model = ChatTokenizer.load(start), load(start)
    reading = (row["messages"] for row in conversations(train, 8000, 80, 150, 7))
    lessons: list[
        tuple[Iterable[Messages], int, float, float]
    ] = [  # conversations, one in how many is learned whole, tokens, rate
        (reading, 1, 1.3e6, 2e-3),
        ((looking_up(train, f"dense/{n}", 2, n % 2) for n in range(20_000)), 0, 2e6, 1.5e-3),
        ((looking_up(train, f"dense5/{n}", 1, n % 4) for n in range(20_000)), 5, 2.4e6, 1.5e-3),
    ]
    for number, (chats, whole, tokens, rate) in enumerate(lessons):
        encoded = ((str(n), tokenizer.encode_chat(chat), n) for n, chat in enumerate(chats))
        rows_of = [
            (name, c.ids, None if whole and n % whole == 0 else c.mask) for name, c, n in encoded if len(c.ids) <= OLD
        ]
        shard = root / f"lesson{number}"
        write_shard(shard, rows_of, tokenizer.vocab_size)
        wsd = {} if number == 0 else {"schedule": "wsd", "min_lr_share": 0.1, "decay_share": 0.2 * number}
        config = OptimConfig.model_validate(
            {"lr": rate, "batch_tokens": 1024, "context": OLD, "max_tokens": int(share * tokens), **wsd}
        )
        machine = MachineConfig(threads=threads, tensorboard=False)
        data = PackedData([TokenShard(shard)], [1.0], OLD, 1)
        print(Trainer(f"lesson{number}", model, data, config, machine, root / f"work{number}").run())
    model.config.max_position_embeddings = OLD
    shutil.rmtree(root / "base", ignore_errors=True)
    save(model, tokenizer, root / "base")


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


def compare(root: Path, recipe: Path, threads: int, methods: list[str]) -> None:
    """Each method before and after."""
    tasks()["needle_zh"] = tasks()["needle_zh"].model_copy(
        update={"options": {**tasks()["needle_zh"].options, "lengths": LENGTHS, "depths": DEPTHS, "per_cell": 5, "text": str(root / "held.jsonl")}}
    )  # fmt: skip
    found: dict[str, Any] = {}
    for method in methods:
        folder = root / "models" / method
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rope = ROPES.get(method, {"type": method})
        extend_folder(root / "base", RopeConfig.model_validate({**rope, "factor": NEW / OLD}), folder)
        sets = [f"base.rope.{key}={value}" for key, value in rope.items()]
        sets += [
            f"base.model={root / 'base'}",
            f"corpus.sources=[{{path='{root / 'long.jsonl'}', license='CC-BY-4.0'}}]",
        ]
        sets += [
            f"sft.datasets=[{{path='{root / 'needles.jsonl'}'}}]",
            f"pretrain.forgetting.texts=['{root / 'held.jsonl'}']",
        ]
        run = root / "runs" / method
        run_recipe(load_recipe(recipe, sets), run, MachineConfig(threads=threads, tensorboard=False), until="sft")
        found[method] = {
            "before": look(folder, root, f"{method}-before"),
            "pretrained": look(run / "pretrain", root, f"{method}-pretrained"),
            "after": look(run / "sft", root, f"{method}-after"),
        }
        write_json(root / f"long-{method}.json", found[method])
    report(root)


def look(model: Path, root: Path, name: str) -> dict[str, Any]:
    """Bits per token by position on held-out hay, and needles found by length."""
    texts = [one.text for one in read_texts(root / "held_long.jsonl")]
    bits = curve(load(model), cut(texts, ChatTokenizer.load(model), NEW, 24), 8)
    out = root / "answers" / f"{name}.json"
    result = evaluate_model(str(model), suites=["needle_zh"], out=out, max_new_tokens=32, batch_size=8)["needle_zh"]
    grid = result["grid"]
    return {
        "bits": bits,
        "lengths": grid["lengths"],
        "found": [sum(row) for row in grid["correct"]],
        "asked": [sum(row) for row in grid["n"]],
    }


def report(root: Path) -> None:
    """One table and one picture of all methods that were run."""
    rows = {
        method: json.loads(file.read_text()) for method in METHODS if (file := root / f"long-{method}.json").is_file()
    }
    curves = {f"{method}, {when}": rows[method][when]["bits"] for method in rows for when in ("before", "pretrained")}
    told = {"context": NEW, "buckets": edges(NEW, 8), "bits_per_token": curves}
    plot(told, root / "long-positions.png")
    lines = [
        markdown(told),
        "| 找到的針 needles found，字數 characters | " + " | ".join(LENGTHS.split()) + " |",
        "|---" * 6 + "|",
    ]
    for method, row in rows.items():
        for when in ("before", "after"):
            cells = [f"{f}/{n}" for f, n in zip(row[when]["found"], row[when]["asked"], strict=True)]
            lines.append(f"| {method}, {when} | {' | '.join(cells)} |")
    write_text(root / "long.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "compare", "report"])
    parser.add_argument("root", type=Path)
    parser.add_argument("--start", type=Path, default=Path("runs/tiny/pretrain"))
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parent.parent / "recipes" / "long-tiny.toml")
    parser.add_argument("--share", type=float, default=1.0, help="of the base's 5.7 M tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    given = parser.parse_args()
    root = given.root.absolute()
    if given.what == "prepare":
        prepare(root, given.start, given.share, given.threads)
    elif given.what == "compare":
        compare(root, given.recipe, given.threads, given.methods)
    else:
        report(root)


if __name__ == "__main__":
    main()
