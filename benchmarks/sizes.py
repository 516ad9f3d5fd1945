"""Other sizes out of one checkpoint, at equal token budgets: is a pruned, distilled or deepened model better than one from random weights?

    python benchmarks/sizes.py runs/sizes                 # built-in facts, every row, three seeds; goes on where it was stopped
    python benchmarks/sizes.py runs/sizes --texts FILES   # next-token loss on texts of your own instead (a folder or a file)

One tokenizer and one held-out set for all rows: answers to questions in wordings that are not among the training rows (a tenth). A large model
(tiny's width, 8 layers), a shallow one (tiny itself, 4 layers) and a half-trained shallow one are made first. Then, each for the same tokens,
with the same data order for a seed:
  4 layers   from random weights · large cut to 4 layers, cross entropy or distillation · large cut to half the heads and feed-forward width
  8 layers   from random weights, also for as much compute as the half-trained model had in all · the half-trained model deepened
  and the half-trained model trained on as it is.
Prints a markdown table of held-out losses (nats a labelled token) and writes results.json, both of the rows of this call.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from twllm.artifact import read_manifest, write_folder, write_json, write_manifest
from twllm.model.build import load, save
from twllm.model.deepen import deepen
from twllm.model.prune import prune
from twllm.model.shape_config import PruneConfig
from twllm.model.sizes import SIZES
from twllm.pipeline.run import run_recipe
from twllm.recipe import load_recipe
from twllm.tokens.shards import TokenShard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.config import MachineConfig, PretrainConfig, SftConfig
from twllm.train.phase import train_phase

RECIPE = Path(__file__).parents[1] / "recipes" / "tiny.toml"
SHALLOW, DEEP = 4, 8
CUTS = {"pruned": {"layers": SHALLOW}, "narrow": {"heads": 1, "intermediate": 176}}


class Bench:
    """Folders below `root`; whatever is there is not made again."""

    def __init__(self, root: Path, texts: str | None, args: argparse.Namespace) -> None:
        self.root, self.args = root, args
        torch.set_num_threads(args.threads)  # two that wait for each other are many times slower on a busy machine
        self.machine = MachineConfig(threads=args.threads, tensorboard=False, compile="off", checkpoint_every_s=1e9)
        self.phase = "pretrain" if texts else "sft"
        sets = ["corpus.held_out=0.1", "sft.held_out=0.1", 'sft.datasets=[{path="twllm:taiwan_facts"}]']
        if texts:
            sets += [
                f'corpus.sources=[{{path="{Path(texts).resolve()}", license="not given on"}}]',
                'release.license="internal"',
            ]
        run_recipe(load_recipe(RECIPE, sets), root / "data", self.machine, f"tokens-{self.phase}")
        self.tokenizer = ChatTokenizer.load(root / "data" / "tokenizer")
        self.tokens = root / "data" / f"tokens-{self.phase}"

    def random(self, layers: int, seed: int) -> PreTrainedModel:
        """tiny with so many layers."""
        torch.manual_seed(seed)
        shape = replace(SIZES["tiny"], L=layers).llama(self.tokenizer.vocab_size, 256)
        ends = {"bos_token_id": self.tokenizer.bos_id, "eos_token_id": self.tokenizer.eos_id, "pad_token_id": None}
        return LlamaForCausalLM(LlamaConfig(**shape, **ends))

    def train(self, name: str, model: PreTrainedModel, tokens: int, seed: int, lr: float, **more: Any) -> float:
        """Held-out loss of a row; the trained folder is kept."""
        out = self.root / name
        found = read_manifest(out)
        if found is None:
            kind = SftConfig if self.phase == "sft" else PretrainConfig
            phase = kind(
                lr=lr, epochs=1000, max_tokens=tokens, batch_tokens=1024, context=256, warmup_share=0.05, seed=seed,
                eval_every=self.args.eval_every, **more,
            )  # fmt: skip
            work = self.root / "work" / name
            work.mkdir(parents=True, exist_ok=True)
            with write_folder(out) as folder:
                metrics = train_phase(
                    "pretrain", phase, [1.0], model, self.tokenizer, self.tokens, folder, work, self.machine
                )
                found = write_manifest(folder, self.phase, phase.model_dump(mode="json"), {}, metrics=metrics)
        loss = float(found["metrics"]["held_out_loss"])
        print(f"{name:28} {found['metrics']['parameters']:>10,} {loss:.4f}", flush=True)
        return loss

    def calibration(self) -> tuple[list[list[int]], list[list[int]]]:
        """Rows of the training tokens: to measure importance on, and each fifth for the loss."""
        shard = TokenShard(self.tokens / "000")
        documents = [shard.ids[a:b][:256].tolist() for a, b in pairwise(shard.offsets[:1001])]
        return [row for i, row in enumerate(documents) if i % 5], documents[::5]

    def keep(self, name: str, make: Any) -> Path:
        """A changed model's folder."""
        out = self.root / name
        if read_manifest(out) is None:
            with write_folder(out) as folder:
                model, facts = make()
                save(model, self.tokenizer, folder)
                write_manifest(folder, name, {}, {}, metrics=facts)
        return out


def _cut(large: Path, cut: PruneConfig, calibration: tuple[Any, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    return prune(load(large), cut, *calibration)


def _deepened(shallow: Path, method: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    deeper, sources = deepen(load(shallow), DEEP, method)
    return deeper, {"layer_sources": sources}


def rows(bench: Bench) -> dict[str, list[float]]:
    """Held-out losses of every row, a seed each."""
    args = bench.args
    first = {"large": bench.train("large", bench.random(DEEP, 1), args.large_tokens, 1, 2e-3)}
    if not args.rows or "shallow" in args.rows:
        first["shallow"] = bench.train("shallow", bench.random(SHALLOW, 1), args.large_tokens, 1, 2e-3)
    if not args.rows or any(name.startswith(("half", "deep")) for name in args.rows):
        first["half"] = bench.train("half", bench.random(SHALLOW, 1), args.half_tokens, 1, 2e-3)
    calibration = bench.calibration()
    large, half = bench.root / "large", bench.root / "half"
    cut = {
        name: bench.keep(name, partial(_cut, large, PruneConfig.model_validate(c), calibration))
        for name, c in CUTS.items()
    }
    methods = ("solar", "interleave", "expand") if "half" in first else ()
    deep = {method: bench.keep(method, partial(_deepened, half, method)) for method in methods}
    teachers = {f"kd{weight:g}": {"model": str(large), "weight": weight} for weight in args.weights}
    found: dict[str, list[float]] = {name: [loss] for name, loss in first.items()}
    for seed in range(1, args.seeds + 1):
        scratch = {layers: partial(bench.random, layers, seed) for layers in (SHALLOW, DEEP)}
        plans: dict[str, tuple[Callable[[], PreTrainedModel], float, dict[str, Any]]] = {
            "4 random": (scratch[SHALLOW], 2e-3, {}),
            "8 random": (scratch[DEEP], 2e-3, {}),
            "8 random, same compute": (scratch[DEEP], 2e-3, {}),
            "half on": (partial(load, half), args.lr, {}),
        }
        plans |= {f"deep {method}": (partial(load, folder), args.lr, {}) for method, folder in deep.items()}
        plans |= {f"{name} ce": (partial(load, folder), args.lr, {}) for name, folder in cut.items()}
        for kd, teacher in teachers.items():
            plans |= {f"{n} {kd}": (partial(load, f), args.lr, {"teacher": teacher}) for n, f in cut.items()}
            plans[f"4 random {kd}"] = scratch[SHALLOW], 2e-3, {"teacher": teacher}
        for name, (make, lr, more) in plans.items():
            if args.rows and name not in args.rows:
                continue
            tokens = args.tokens + (
                args.half_tokens * 5 // 8 if "compute" in name else 0
            )  # 4 layers cost 5/8 of 8 layers
            loss = bench.train(f"{name.replace(',', '').replace(' ', '-')}-{seed}", make(), tokens, seed, lr, **more)
            found.setdefault(name, []).append(loss)
            write_json(bench.root / "results.json", {"arguments": vars(args) | {"root": ""}, "losses": found})
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--texts")
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--large-tokens", type=int, default=400_000)
    parser.add_argument("--half-tokens", type=int, default=100_000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weights", type=float, nargs="*", default=[0.5, 1.0])
    parser.add_argument("--rows", nargs="*", help="only these; all without it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--eval-every", type=int, default=0)
    args = parser.parse_args()
    found = rows(Bench(args.root, args.texts, args))
    print("\n| row | held-out loss | seeds |\n|---|---|---|")
    for name, losses in found.items():
        print(f"| {name} | {sum(losses) / len(losses):.3f} | {', '.join(f'{loss:.3f}' for loss in losses)} |")
    print(json.dumps(vars(args), default=str))


if __name__ == "__main__":
    main()
