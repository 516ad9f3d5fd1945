"""Does training survive `kill -9` at any moment? `python benchmarks/train_kills.py [--kills 40]` kills real runs and compares their ends.

Each phase (pretraining, SFT, DPO, LoRA with dropout and noise, an averaged and early-stopped SFT, SFT in two processes) is run once without a
kill. Then the same command is started, killed and started again until it finishes: at random moments of its whole length, while a state
is being written, and one of two processes. Weights must be equal byte for byte, losses and ledger, too, and what
`twllm train seen` prints. The processes are forks of a server that has torch loaded, and run the command's own `main`.
"""

import argparse
import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMMON = ("context=384", "batch_tokens=768", "seed=3", "eval_every=10")
DPO = ("method=dpo", "context=384", "batch_tokens=768", "seed=3", "epochs=12")
PHASES: dict[str, tuple[str, str, tuple[str, ...], int]] = {  # command, data, settings, processes
    "pretrain": ("pretrain", "texts", ("lr=3e-3", "max_tokens=46000", *COMMON), 1),
    "sft": ("sft", "chats", ("lr=3e-3", "max_tokens=46000", "epochs=9", "held_out=0.1", *COMMON), 1),
    "dpo": ("feedback", "pairs", ("lr=1e-3", *DPO), 1),
    "lora": ("sft", "chats", ("lr=3e-3", "max_tokens=46000", "epochs=9", "held_out=0.1", 'lora={r=4,dropout=0.2}', "neftune_alpha=5", *COMMON), 1),
    "best": ("sft", "chats", ("lr=3e-3", "max_tokens=46000", "epochs=9", "held_out=0.1", "patience=9", "ema_decay=0.9", *COMMON), 1),
    "two": ("sft", "chats", ("lr=3e-3", "max_tokens=15400", "epochs=9", "held_out=0.1", *COMMON), 2),
}  # fmt: skip


@dataclass
class Tally:
    """What was done to one phase."""

    kills: int = 0
    in_save: int = 0
    runs: int = 0  # that ended, each compared with the one that was not killed
    steps_lost: list[int] = field(default_factory=list)


def enter(argv: list[str], env: dict[str, str], log: str) -> None:
    """`twllm ARGV` in a forked process."""
    import torch

    sys.stdout = sys.stderr = open(log, "a", encoding="utf-8")  # noqa: SIM115, PTH123 - until the process ends
    torch.set_num_threads(1)
    os.environ |= env
    sys.argv = ["twllm", *argv]
    from twllm.cli import main

    main()


class Bench:
    """Model, data and commands in one folder."""

    def __init__(self, folder: Path, rows: int, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload(["twllm.train.phase", "twllm.train.loop", "twllm.train.alone", "peft"])
        write_inputs(folder, rows)
        machine = "\n".join(('device = "cpu"', 'precision = "fp32"', "threads = 1", "tensorboard = false", "checkpoint_every_s = 0.03", 'sharding = "full"', "timeout_s = 60"))  # fmt: skip
        (folder / "cpu.toml").write_text(machine + "\n")

    def start(self, phase: str, out: Path) -> list[Any]:
        """The processes of the phase's command."""
        command, data, settings, count = PHASES[phase]
        argv = [
            "train",
            command,
            "--model",
            str(self.folder / "model"),
            "--data",
            str(self.folder / f"{data}.jsonl"),
            "--out",
            str(out),
        ]
        argv += ["--machine", str(self.folder / "cpu.toml"), "--license", "CC-BY-4.0"]
        argv += [word for setting in settings for word in ("--set", setting)]
        several = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        found = []
        for rank in range(count):
            env = {**several, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
            found.append(self.context.Process(target=enter, args=(argv, env, str(out) + f".log{rank}")))
            found[-1].start()
        return found

    def kill(self, phase: str, out: Path, length: float, in_save: bool) -> bool:
        """Start the command, kill (one of) it; False if it ended before. Whoever is left must end by itself."""
        ranks = self.start(phase, out)
        victim = self.random.choice(ranks)
        end = time.monotonic() + (60 if in_save else self.random.uniform(0.05, 1.0) * length)
        while victim.is_alive() and time.monotonic() < end:
            time.sleep(0.0005 if in_save else min(0.02, max(0.0, end - time.monotonic())))
            if in_save and any(out.parent.glob(f".{out.name}.work-*/states/.*.partial-*")):
                time.sleep(self.random.uniform(0, 0.004))
                break
        was_alive = victim.is_alive()
        if was_alive:
            os.kill(victim.pid, signal.SIGKILL)
        for process in ranks:
            process.join(90)
            assert process.exitcode is not None, f"{phase}: a process hangs"
        if was_alive:
            left = [process.exitcode for process in ranks if process is not victim]
            assert all(left), f"{phase}: a process went on alone: {left}"
            return True
        assert not any(p.exitcode for p in ranks), Path(str(out) + ".log0").read_text(encoding="utf-8")[-3000:]
        return False

    def soak(self, phase: str, kills: int) -> Tally:
        """Kill and go on until so many kills are done and the last run ended."""
        whole, tally = self.folder / f"{phase}-whole", Tally()
        started = time.monotonic()
        for process in (ranks := self.start(phase, whole)):
            process.join()
        assert not any(p.exitcode for p in ranks), Path(str(whole) + ".log0").read_text(encoding="utf-8")[-3000:]
        length, wanted = time.monotonic() - started, result(whole)
        while tally.kills < kills:
            out = self.folder / f"{phase}-{tally.runs}"
            while tally.kills < kills:
                in_save = self.random.random() < 0.4
                if not self.kill(phase, out, length, in_save):
                    break
                tally.kills += 1
                tally.in_save += in_save
                tally.steps_lost.append(lost_steps(out))
            else:
                for process in (ranks := self.start(phase, out)):
                    process.join()
            compare(phase, wanted, result(out))
            tally.runs += 1
        return tally


def write_inputs(folder: Path, rows: int) -> None:
    """A random model, its tokenizer and three data sets."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from twllm.model.build import save
    from twllm.tokens.config import TokenizerConfig
    from twllm.tokens.rows import list_files, read_rows
    from twllm.tokens.train import train_tokenizer

    kept: dict[str, list[dict[str, Any]]] = {}
    for name, source in (("texts", "twllm:knowledge"), ("chats", "twllm:taiwan_instruction")):
        found = [dict(row) for file in list_files(source) for _, row in read_rows(file)]
        kept[name] = random.Random(0).sample(found, rows)
    kept["pairs"] = [
        {"prompt": a["messages"][:1], "chosen": a["messages"][1:2], "rejected": b["messages"][1:2], "license": "CC-BY-4.0"}
        for a, b in zip(kept["chats"], kept["chats"][1:], strict=False)
    ]  # fmt: skip
    for name, found in kept.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    config = TokenizerConfig(vocab_size=1200, min_frequency=1, max_piece_chars=4)
    tokenizer = train_tokenizer([row["text"] for row in kept["texts"]], config, "taiwan-llm-v2")
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=384, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=None,
    )  # fmt: skip
    save(LlamaForCausalLM(llama), tokenizer, folder / "model")


def result(out: Path) -> dict[str, Any]:
    """What must be equal: weights, losses, ledger, and what the ledger tells of two steps and a document."""
    from twllm.train.ledger import blocks, tell
    from twllm.train.rows import read_rows

    steps = [step for step, _, _ in blocks(out / "ledger.bin")]
    assert steps == list(range(1, len(steps) + 1)), steps
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        tell(out, 1, None)
        tell(out, steps[-1], None)
        name = told.getvalue().splitlines()[1].split("\t")[-1]
        tell(out, None, name)
    assert "\t?" not in told.getvalue() and "第 1 步" in told.getvalue(), told.getvalue()
    moving = ("tokens_per_s", "memory_gib", "mfu")
    rows = [{k: v for k, v in row.items() if k not in moving} for row in read_rows(out / "metrics.jsonl")]
    files = {file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*.safetensors")}
    return {"weights": files, "ledger": (out / "ledger.bin").read_bytes(), "seen": told.getvalue(), "losses": rows}


def compare(phase: str, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Fails where anything differs."""
    for key, value in wanted.items():
        rows = (
            isinstance(value, list)
            and [pair for pair in zip(value, found[key], strict=False) if pair[0] != pair[1]][:2]
        )
        assert found[key] == value, f"{phase}: {key} differ {rows or ''}"


def lost_steps(out: Path) -> int:
    """Steps in the log that no state holds."""
    from twllm.train.rows import read_rows
    from twllm.train.state import list_states

    work = next(iter(out.parent.glob(f".{out.name}.work-*")), out)
    rows, states = read_rows(work / "metrics.jsonl"), list_states(work / "states")
    return max((row["step"] for row in rows), default=0) - int(states[-1].name[5:] if states else 0)


def free_port() -> int:
    """A port that nobody listens at."""
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=8, help="of each phase")
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=list(PHASES))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        bench = Bench(Path(folder), 120, args.seed)
        found = {}
        for phase in args.phases:
            tally = found[phase] = bench.soak(phase, args.kills)
            print(f"{phase:>9}: {tally.kills} kills ({tally.in_save} in a save), {tally.runs} runs equal, steps repeated after a kill {sorted(tally.steps_lost)}", flush=True)  # fmt: skip
    print("RESULT " + json.dumps({"kills": sum(t.kills for t in found.values()), "in_save": sum(t.in_save for t in found.values()), "runs_equal": sum(t.runs for t in found.values())}))  # fmt: skip


if __name__ == "__main__":
    main()
