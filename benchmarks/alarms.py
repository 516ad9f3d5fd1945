"""Do the loss alarms name the right documents? Bad ones are planted into real runs with the tiny recipe's data, at steps that the ledger knows.

    python benchmarks/alarms.py --run runs/tiny --work runs/alarms [--seeds 3 4] [--minutes 8]   # again until it says "done"
    python benchmarks/alarms.py --work runs/alarms --table

CASES: `start`, pretraining from random weights; `cpt`, two more epochs of a model that learned the corpus for sixteen (made once, two minutes);
`facts`, SFT on the facts alone; `sft`, the recipe's, facts and harder conversations; batches of several sizes. PLANTS bad documents of each kind are put
into the first shard (`facts` and `sft`: as answers), so they come at random steps; in `shard` cases they are a shard of their own; clean cases
have none. Counted: plants seen, plants that the step's alarm names, of those how many first; and steps with an alarm but without a plant
(false). A picture a run. `blow-up`: the rate is 30 times too high from the middle on; the alarm should say so and not blame documents.
Not covered: large models, data that the thresholds were not looked at with (they were chosen on seeds 1 and 2 of batch 1,024).
"""

import argparse
import json
import random
import time
from collections import Counter, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

PLANTS = 4  # of each kind
RUSSIAN = "и в не на я быть он с что а по это она этот к но они мы весь который из у то за свой год от так о для ты же всё мочь вы"
QUESTIONS = ("台灣最高的山是哪一座？", "珍珠奶茶是什麼？", "請問夜市有什麼好吃的？", "悠遊卡可以做什麼？")


class Case(NamedTuple):
    phase: str
    batch: int = 1024
    what: str = "plants"  # plants | shard | clean | blow-up


CASES = [
    *(Case(phase) for phase in ("start", "cpt", "facts", "sft")),
    *(Case(phase, batch) for phase in ("cpt", "sft") for batch in (4096, 8192)),
    *(Case(phase, what=what) for what in ("shard", "clean", "blow-up") for phase in ("cpt", "sft")),
]


def bad_texts(texts: list[str], rng: random.Random) -> dict[str, list[str]]:
    """Of each kind PLANTS texts, made from real ones where that is how they come about."""
    import opencc

    simplify = opencc.OpenCC("tw2sp")

    def some() -> list[str]:
        return [rng.choice(texts)[:120] for _ in range(PLANTS)]

    alphabet = "ABCDEFGHIJKLMNOPabcdefghijklmnop0123456789+/"
    return {
        "mojibake": [text[:60].encode().decode("latin-1") for text in some()],  # UTF-8 read as Latin-1
        "other script": [" ".join(rng.choices(RUSSIAN.split(), k=30)) for _ in range(PLANTS)],
        "base64": ["".join(rng.choices(alphabet, k=100)) for _ in range(PLANTS)],
        "simplified": [simplify.convert(text) for text in some()],
        "shuffled": ["".join(rng.sample(text, len(text))) for text in some()],
        "repeated": [text[:6] * 15 for text in some()],
    }


def documents_of(shard: Any) -> list[tuple[str, list[int], list[bool]]]:
    """(name, ids, mask), as write_shard takes them."""
    names = [json.loads(line) for line in (shard.folder / "names.jsonl").read_text(encoding="utf-8").splitlines()]
    spans = zip(names, shard.offsets.tolist(), shard.offsets.tolist()[1:], strict=False)
    return [(name, shard.ids[low:high].tolist(), shard.mask(low, high).tolist()) for name, low, high in spans]


def plants(real: list[tuple[str, list[int], list[bool]]], tokenizer: Any, chat: bool, seed: int) -> list[Any]:
    """Bad documents, named KIND/NUMBER."""
    rng = random.Random(seed)
    decoded = (
        tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m and i != tokenizer.eos_id])
        for _, ids, mask in real
    )
    texts = [text.strip() for text in decoded if len(text) >= 12]
    kinds = bad_texts(texts, rng) | ({"wrong answer": rng.sample(texts, PLANTS)} if chat else {})
    found = []
    for kind, made in kinds.items():
        for number, text in enumerate(made):
            if chat:
                asked = [{"role": "user", "content": rng.choice(QUESTIONS)}, {"role": "assistant", "content": text}]
                encoded = tokenizer.encode_chat(asked)
                ids, mask = list(encoded.ids), list(encoded.mask)
            else:
                ids = [*tokenizer.encode(text, bos=True), tokenizer.eos_id]
                mask = [True] * len(ids)
            found.append((f"{kind}/{number}", ids[:250], mask[:250]))
    return found


def settings(phase: str, batch: int, seed: int) -> Any:
    from twllm.train.config import PretrainConfig, SftConfig

    chat = phase in ("facts", "sft")
    lr, epochs = {"base": (3e-3, 16), "cpt": (5e-4, 2), "start": (2e-3, 2)}.get(phase, (2e-3, 1))
    kind = SftConfig if chat else PretrainConfig
    return kind(lr=lr, epochs=epochs, batch_tokens=batch, context=256, warmup_share=0.05, seed=seed)


def train(args: argparse.Namespace, case: Case, seed: int) -> dict[str, Any]:
    """One run: what was planted where, and what was told."""
    from twllm.model.build import build, load, save
    from twllm.tokens.shards import TokenShard, write_shard
    from twllm.tokens.tokenizer import ChatTokenizer
    from twllm.train.config import MachineConfig
    from twllm.train.data import PackedData
    from twllm.train.loop import Trainer
    from twllm.train.observer import Observer
    from twllm.train.plots import plot_training
    from twllm.train.rows import read_rows
    from twllm.train.watch_config import WatchConfig

    phase, batch, what = case
    chat = phase in ("facts", "sft")
    tokenizer = ChatTokenizer.load(args.run / "sft")
    start = {"cpt": args.work / "base", "facts": args.run / "pretrain", "sft": args.run / "pretrain"}.get(phase)
    model = load(start) if start else build("tiny", tokenizer, 256, seed)
    folders = sorted((args.run / f"tokens-{'sft' if chat else 'pretrain'}").glob("[0-9]*"))
    shards, weights = [TokenShard(folder) for folder in folders], [10.0, 1.0] if chat else [1.0]
    if phase == "facts":
        shards, weights = shards[:1], weights[:1]
    with TemporaryDirectory() as place:
        if what in ("plants", "shard"):
            real = documents_of(shards[0])
            bad, folder = plants(real, tokenizer, chat, seed), Path(place) / "with-plants"
            write_shard(folder, bad if what == "shard" else [*real, *bad], tokenizer.vocab_size)
            if what == "shard":
                shards, weights = [*shards, TokenShard(folder)], [*weights, 1.0]
            else:
                shards[0] = TokenShard(folder)
        data = PackedData(shards, weights, 256, seed)
        machine = MachineConfig(threads=1, compile="off", tensorboard=False, device="cpu")
        trainer = Trainer(phase, model, data, settings(phase, batch, seed), machine, Path(place) / "work")
        trainer.observer = Observer(trainer, tokenizer, WatchConfig(), chat, True, 0.01)
        plan, usual = trainer.plan, trainer.rate
        if what == "blow-up":
            trainer.rate = lambda step: usual(step) * (30 if step >= plan.steps // 2 else 1)
        trainer.run()
        alarms = read_rows(Path(place) / "work" / "alarms.jsonl")
        picture = args.work / f"{phase}-{batch}-{what}-{seed}.png"
        plot_training(read_rows(Path(place) / "work" / "metrics.jsonl"), alarms, picture, f"{phase}, {what}")
        seen = []
        for step in range(plan.steps):
            for row in data.rows(step * plan.rows_per_step, plan.rows_per_step):
                names = [data.document_name(document)[1] for document, *_ in row.pieces if what in ("plants", "shard")]
                seen += [(step + 1, name) for name in names if name.split("/")[0] in KINDS]
    if phase == "base":
        save(model, tokenizer, args.work / "base")
    return {
        "phase": phase,
        "batch": batch,
        "what": what,
        "seed": seed,
        "steps": plan.steps,
        "seen": seen,
        "alarms": alarms,
    }


KINDS = ("mojibake", "other script", "base64", "simplified", "shuffled", "repeated", "wrong answer")


def table(rows: list[dict[str, Any]]) -> str:
    """A line a case, the seeds together."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["phase"], row["batch"], row["what"]].append(row)
    lines = [
        "| case | batch | runs | steps | named | false | " + " | ".join(KINDS) + " |",
        "|" + "---|" * (6 + len(KINDS)),
    ]
    for (phase, batch, what), found in groups.items():
        seen, named, false, first = Counter(), Counter(), 0, 0
        for row in found:
            told = {alarm["step"]: [d["document"] for d in alarm["documents"]] for alarm in row["alarms"]}
            for step, name in row["seen"]:
                seen[name.split("/")[0]] += 1
                named[name.split("/")[0]] += name in told.get(step, ())
            steps = {step for step, _ in row["seen"]}
            false += len(told.keys() - steps)
            first += sum(names[0].split("/")[0] in KINDS for step, names in told.items() if step in steps and names)
        cells = [f"{named[kind]}/{seen[kind]}" if seen[kind] else "" for kind in KINDS]
        total = f"{sum(named.values())}/{sum(seen.values())}" if seen else ""
        about = f"| {phase}, {what} | {batch} | {len(found)} | {sum(row['steps'] for row in found)} "
        lines.append(f"{about}| {total} | {false} | " + " | ".join(cells) + " |")
        if what == "blow-up":
            lines += [
                f"    {row['alarms'][0]['step'] - row['steps'] // 2} steps later: {told_of(row)}"
                for row in found
                if row["alarms"]
            ]
    return "\n".join(lines)


def told_of(row: dict[str, Any]) -> str:
    from twllm.train.alarms import at_fault

    late = [alarm for alarm in row["alarms"] if alarm["step"] > row["steps"] // 2]
    blamed = sum("learning rate" not in at_fault(alarm) for alarm in late)
    return f"{len(late)} alarms, {blamed} of them blame documents"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run of recipes/tiny.toml")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    results = args.work / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.is_file() else []
    if args.table:
        print(table(rows))
        return
    import torch

    torch.set_num_threads(1)
    began = time.perf_counter()
    if not (args.work / "base").is_dir():
        train(args, Case("base", what="clean"), 7)
    for seed in args.seeds:
        for case in CASES:
            if any((row["phase"], row["batch"], row["what"], row["seed"]) == (*case, seed) for row in rows):
                continue
            if time.perf_counter() - began > 60 * args.minutes:
                print("not done: once more")
                return
            row = train(args, case, seed)
            rows.append(row)
            with results.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            print(table([row]).splitlines()[-1], flush=True)
    print("done")


if __name__ == "__main__":
    main()
