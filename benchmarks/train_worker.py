"""Our loop as a worker of train_speed.py and train_gpu.py; the same orders and answers as train_peers.py, and "peak" for the matrix
product's speed.

python benchmarks/train_worker.py JOB.json
"""

import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from train_meter import memory, wait

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
        lr=job["lr"], batch_tokens=job["batch_tokens"], context=job["context"], warmup_share=0.0, schedule="constant", epochs=1000,
        lora={"r": job["rank"]} if job.get("rank") else None,
    )  # fmt: skip
    device = job.get("device", "auto")
    machine = MachineConfig(
        threads=None if device == "cuda" else job["threads"], precision=job["precision"], tensorboard=False, compile=job.get("compile", "on"),
        micro_batch_tokens=job.get("micro_batch_tokens", job["batch_tokens"]), checkpointing=job.get("checkpointing", "none"), device=device,
    )  # fmt: skip
    model = random_model(job["checkpoint"], device) if job.get("random") else load(job["checkpoint"])
    trainer = Trainer("ours", model, data, config, machine, folder / "w")
    trainer.model.train()
    return trainer


def random_model(folder: str, device: str) -> Any:
    """fp32 weights made where they are used: no file and no host memory for a large model's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)


def step_flops(trainer: Any, rows: list[Any]) -> tuple[float, float]:
    """FLOPs in matrix products: what a step does (layers on all places), and what the model needs (on tokens, without padding). Attention
    on pairs of a document, head on labels; nothing that is computed again counts. A frozen weight has no gradient of its own: 4, not 6.
    """
    config, data = trainer.model.config, trainer.data
    batch = data.batch(rows)
    layers = trainer.model.get_decoder().layers.parameters()
    a_token = float(sum((6 if p.requires_grad else 4) * p.numel() for p in layers if p.ndim == 2))
    pairs = sum(length * (length + 1) / 2 + length * batch.prefix for _, _, length in batch.pieces)
    head = trainer.model.get_output_embeddings().weight
    rest = 12.0 * pairs * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    rest += (6 if head.requires_grad else 4) * len(batch.places()) * head.numel()
    return batch.ids.numel() * a_token + rest, data.num_document_tokens(rows) * a_token + rest


def train(trainer: Any, step: int, count: int) -> dict[str, Any]:
    """`count` steps from `step`; reading and packing the rows counts, counting the FLOPs does not."""
    per_step, data = trainer.plan.rows_per_step, trainer.data
    tokens = places = 0
    seconds = cpu_s = flops = model_flops = 0.0
    losses: list[float] = []
    for number in range(step, step + count):
        rows = data.rows(number * per_step, per_step)
        wait()
        start, cpu = time.perf_counter(), time.process_time()
        losses.append(trainer.train_step(number)["loss"])
        wait()
        seconds, cpu_s = seconds + time.perf_counter() - start, cpu_s + time.process_time() - cpu
        tokens, places = tokens + data.num_document_tokens(rows), places + per_step * trainer.plan.context
        done, needed = step_flops(trainer, rows)
        flops, model_flops = flops + done, model_flops + needed
    found = {"tokens": tokens, "places": places, "seconds": seconds, "cpu_s": cpu_s, "losses": losses}
    return {**found, "flops": flops, "model_flops": model_flops}


def main() -> None:
    """Set up, then do as told until stdin ends."""
    from twllm.train.machine import measure_peak_tflops

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
                print(json.dumps({"peak_flop_s": 1e12 * measure_peak_tflops(trainer.machine)}), flush=True)
                continue
            memory(reset=True)
            result = train(trainer, step, int(line))
            step += int(line)
            print(json.dumps({**result, **memory()}), flush=True)


if __name__ == "__main__":
    main()
