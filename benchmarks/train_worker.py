"""Our loop as a worker of train_speed.py; the same orders and answers as train_peers.py, and "peak" for the matrix product's speed.

python benchmarks/train_worker.py JOB.json
"""

import json
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")


def make_trainer(job: dict[str, Any], folder: Path) -> Any:
    """A Trainer on the job's rows: conversations become SFT, texts become pretraining."""
    from twllm.model.build import load
    from twllm.tokens.build import chat_shard
    from twllm.tokens.conversation import Conversation
    from twllm.tokens.shards import TokenShard, write_shard
    from twllm.tokens.tokenizer import ChatTokenizer
    from twllm.train.config import MachineConfig, PretrainConfig
    from twllm.train.data import PackedData
    from twllm.train.loop import Trainer

    tokenizer = ChatTokenizer.load(job["checkpoint"])
    with Path(job["rows"]).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    if "messages" in rows[0]:
        chats = (Conversation(tuple(row["messages"]), id=str(i)) for i, row in enumerate(rows))
        chat_shard(folder / "s", chats, tokenizer, job["context"])
    else:
        ids = ([*tokenizer.encode(row["text"]), tokenizer.eos_id] for row in rows)
        write_shard(folder / "s", ((str(i), document, None) for i, document in enumerate(ids)), tokenizer.vocab_size)
    data = PackedData([TokenShard(folder / "s")], [1.0], job["context"], 0)
    config = PretrainConfig(
        lr=job["lr"], batch_tokens=job["batch_tokens"], context=job["context"], warmup_share=0.0, schedule="constant", epochs=1000
    )  # fmt: skip
    machine = MachineConfig(
        threads=job["threads"], precision=job["precision"], tensorboard=False, compile=job.get("compile", "on"),
        micro_batch_tokens=job.get("micro_batch_tokens", job["batch_tokens"]), checkpointing=job.get("checkpointing", "none"),
    )  # fmt: skip
    trainer = Trainer("ours", load(job["checkpoint"]), data, config, machine, folder / "w")
    trainer.model.train()
    return trainer


def step_flops(trainer: Any, rows: list[Any]) -> float:
    """FLOPs a step really does in matrix products: layers on all places, attention on pairs of a document, head on labels."""
    config, data = trainer.model.config, trainer.data
    batch = data.batch(rows)
    layers = sum(p.numel() for p in trainer.model.get_decoder().layers.parameters() if p.ndim == 2)
    pairs = sum(length * (length + 1) / 2 + length * batch.prefix for _, _, length in batch.pieces)
    attention = 12.0 * pairs * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    labelled = int((batch.labels >= 0).sum())
    return 6.0 * batch.ids.numel() * layers + attention + 6.0 * labelled * config.vocab_size * config.hidden_size


def matmul_peak(precision: str) -> float:
    """FLOP/s of a 1,024² product: what the hardware can do at best."""
    import torch

    a = torch.randn(1024, 1024, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    best = 0.0
    for _ in range(30):
        start = time.perf_counter()
        a @ a
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best


def train(trainer: Any, step: int, count: int) -> dict[str, Any]:
    """`count` steps from `step`; reading and packing the rows counts, counting the FLOPs does not."""
    per_step, data = trainer.plan.rows_per_step, trainer.data
    tokens = places = 0
    seconds = cpu_s = flops = 0.0
    losses: list[float] = []
    for number in range(step, step + count):
        rows = data.rows(number * per_step, per_step)
        start, cpu = time.perf_counter(), time.process_time()
        losses.append(trainer.train_step(number)["loss"])
        seconds, cpu_s = seconds + time.perf_counter() - start, cpu_s + time.process_time() - cpu
        tokens, places = tokens + data.num_document_tokens(rows), places + per_step * trainer.plan.context
        flops += step_flops(trainer, rows)
    return {"tokens": tokens, "places": places, "seconds": seconds, "cpu_s": cpu_s, "losses": losses, "flops": flops}


def main() -> None:
    """Set up, then do as told until stdin ends."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(job, Path(folder))
        facts = {
            "prefix": trainer.data.prefix,
            "padding_share": trainer.data.waste,
            "machine": trainer.machine.as_dict(),
        }
        print(json.dumps({"ready": True, **facts, "lengths": trainer.data.lengths.tolist()}), flush=True)
        step = 0
        for line in sys.stdin:
            if not line.strip():
                break
            if line.strip() == "peak":
                print(json.dumps({"peak_flop_s": matmul_peak(trainer.machine.precision)}), flush=True)
                continue
            result = train(trainer, step, int(line))
            step += int(line)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps({**result, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
