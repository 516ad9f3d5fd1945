"""Other trainers as workers of train_speed.py: they train a few steps whenever they are told to, and say how long they took.

    python benchmarks/train_peers.py JOB.json     # in the peer's environment; nothing of twllm is imported

JOB.json: peer ("trl" or "llamafactory"), checkpoint, rows (a JSON-lines file of {"messages": …} or {"text": …}), context, lr, threads,
settings (over the trainer's own defaults). Then a number a line on stdin = that many optimizer steps; an answer a line on stdout: real
tokens (padding left out), seconds, processor seconds, losses, peak resident memory. Loading of batches counts, as on our side.
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

warnings.filterwarnings("ignore")
os.environ.setdefault("DISABLE_VERSION_CHECK", "1")  # LLaMA-Factory's
STEPS_AT_MOST = 100_000


class Clock:
    """Counts tokens and takes orders between steps."""

    def __init__(self) -> None:
        self.left = self.tokens = self.places = 0
        self.before, self.losses = (0, 0), list[float]()
        self.start, self.cpu = 0.0, 0.0
        self.took = (0.0, 0.0)

    def next_order(self, control: Any) -> None:
        """Wait for a line; none: stop."""
        line = sys.stdin.readline()
        if not line.strip():
            control.should_training_stop = True
            return
        self.left, self.before, self.losses = int(line), (self.tokens, self.places), []
        self.start, self.cpu = time.perf_counter(), time.process_time()

    def answer(self) -> None:
        """One line about the steps since the last order."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        facts = {"tokens": self.tokens - self.before[0], "places": self.places - self.before[1], "losses": self.losses}
        print(json.dumps({**facts, "seconds": self.took[0], "cpu_s": self.took[1], "peak_bytes": peak}), flush=True)

    def count(self, inputs: Any) -> None:
        """A micro-batch goes into the model."""
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        self.places += int(ids.numel())
        real = mask is not None and mask.shape == ids.shape
        self.tokens += int((mask != 0).sum()) if real else int(ids.numel())


def callback(clock: Clock) -> Any:
    """transformers' callback that stops at the clock between steps."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_train_begin(self, _args: Any, _state: Any, control: Any, **__: Any) -> None:
            print(json.dumps({"ready": True}), flush=True)
            clock.next_order(control)

        def on_step_begin(self, _args: Any, _state: Any, control: Any, **__: Any) -> None:
            if clock.left <= 0:
                clock.next_order(control)

        def on_step_end(self, _args: Any, _state: Any, _control: Any, **__: Any) -> None:
            clock.left -= 1
            clock.took = time.perf_counter() - clock.start, time.process_time() - clock.cpu

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **__: Any) -> None:
            if logs and "loss" in logs:
                clock.losses.append(logs["loss"])
                if clock.left == 0:
                    clock.answer()

    return Steps()


def common(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """transformers' TrainingArguments that both share."""
    import torch

    return {
        "output_dir": folder, "learning_rate": job["lr"], "lr_scheduler_type": "constant", "max_steps": STEPS_AT_MOST, "logging_steps": 1,
        "report_to": "none", "save_strategy": "no", "use_cpu": not torch.cuda.is_available(), "bf16": job["precision"] == "bf16",
        "disable_tqdm": True, "max_grad_norm": 1.0, "adam_beta2": 0.95,
    }  # fmt: skip


def run_trl(job: dict[str, Any], rows: list[Any], steps: Any, folder: str) -> None:
    """TRL's SFTTrainer."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    own = {"max_length": job["context"], "shuffle_dataset": True, "assistant_only_loss": "messages" in rows[0]}
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["checkpoint"], dtype=torch.float32),
        args=SFTConfig(**{**common(job, folder), **own, **job["settings"]}),
        processing_class=AutoTokenizer.from_pretrained(job["checkpoint"]), train_dataset=Dataset.from_list(rows), callbacks=[steps],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def run_llamafactory(job: dict[str, Any], rows: list[Any], steps: Any, folder: str) -> None:
    """LLaMA-Factory: full fine-tuning in fp32 weights with the tokenizer's own template, or pretraining on texts."""
    from llamafactory.train.tuner import run_exp

    chats, source = "messages" in rows[0], Path(job["rows"])
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    info = {
        "file_name": source.name,
        "columns": {"messages": "messages"} if chats else {"prompt": "text"},
    }
    info |= {"formatting": "sharegpt", "tags": tags} if chats else {}
    (source.parent / "dataset_info.json").write_text(json.dumps({"rows": info}), encoding="utf-8")
    own = {
        "stage": "sft" if chats else "pt", "do_train": True, "model_name_or_path": job["checkpoint"], "finetuning_type": "full", "dataset": "rows",
        "dataset_dir": str(source.parent), "cutoff_len": job["context"], "disable_gradient_checkpointing": True, "flash_attn": "sdpa",
        "preprocessing_num_workers": 1, "dataloader_num_workers": 0,
    }  # fmt: skip
    run_exp({**common(job, folder), **own, **job["settings"]}, callbacks=[steps])


def main() -> None:
    """Set up the trainer, then step as told until stdin ends."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import torch
    from datasets import disable_progress_bars
    from transformers import Trainer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    disable_progress_bars()
    torch.set_num_threads(job["threads"])
    with Path(job["rows"]).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    clock, step = Clock(), Trainer.training_step

    def counted(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        clock.count(inputs)
        return step(self, model, inputs, *rest, **more)

    Trainer.training_step = counted
    run = {"trl": run_trl, "llamafactory": run_llamafactory}[job.get("peer", "trl")]
    with tempfile.TemporaryDirectory() as folder:
        run(job, rows, callback(clock), folder)


if __name__ == "__main__":
    main()
