"""Other trainers as workers of train_speed.py: they train a few steps whenever they are told to, and say how long they took.

    python benchmarks/train_peers.py JOB.json     # in the peer's environment; nothing of twllm is imported

JOB.json: peer ("trl", "llamafactory" or "axolotl"), checkpoint, rows (a JSON-lines file of {"messages": …} or {"text": …}), context, lr, threads,
settings (over the trainer's own defaults). Then a number a line on stdin = that many optimizer steps; an answer a line on stdout: real
tokens (padding left out), seconds, processor seconds, losses, peak resident memory. Loading of batches counts, as on our side.
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

warnings.filterwarnings("ignore")
os.environ.setdefault("DISABLE_VERSION_CHECK", "1")  # LLaMA-Factory's
os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
STEPS_AT_MOST = 100_000


class Clock:
    """Counts tokens and takes orders between steps."""

    def __init__(self) -> None:
        self.left = self.tokens = self.places = 0
        self.before, self.losses = (0, 0), list[float]()
        self.start, self.cpu = 0.0, 0.0
        self.took = (0.0, 0.0)
        self.facts: dict[str, Any] = {}  # about the trainer, for the first answer

    def next_order(self, control: Any) -> None:
        """Wait for a line; none: stop."""
        line = sys.stdin.readline()
        if not line.strip():
            control.should_training_stop = True
            return
        self.left, self.before, self.losses = int(line), (self.tokens, self.places), []
        memory(reset=True)
        self.start, self.cpu = time.perf_counter(), time.process_time()

    def answer(self) -> None:
        """One line about the steps since the last order."""
        facts = {"tokens": self.tokens - self.before[0], "places": self.places - self.before[1], "losses": self.losses}
        print(json.dumps({**facts, "seconds": self.took[0], "cpu_s": self.took[1], **memory()}), flush=True)

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
        def __init__(self) -> None:
            self.clock = clock

        def on_train_begin(self, _args: Any, _state: Any, control: Any, **__: Any) -> None:
            print(json.dumps({"ready": True, **clock.facts}), flush=True)
            clock.next_order(control)

        def on_step_begin(self, _args: Any, _state: Any, control: Any, **__: Any) -> None:
            if clock.left <= 0:
                clock.next_order(control)

        def on_step_end(self, _args: Any, _state: Any, _control: Any, **__: Any) -> None:
            clock.left -= 1
            if clock.left == 0:
                wait()
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


def trl_model(job: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model that TRL trains, and how it was made: from the checkpoint, or random where it is used (as train_worker.py does)."""
    from importlib.metadata import version
    from importlib.util import find_spec

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not job.get("random"):
        return AutoModelForCausalLM.from_pretrained(job["checkpoint"], dtype=torch.float32), {}
    flash = job["device"] == "cuda" and find_spec("flash_attn")
    made: dict[str, Any] = {"attn_implementation": "flash_attention_2" if flash else "sdpa"}
    made["dtype"] = torch.bfloat16 if job.get("rank") else torch.float32  # frozen weights in bf16, trained ones in fp32
    torch.manual_seed(0)
    with torch.device(job["device"]):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job["checkpoint"]), **made)
    versions = {
        name: version(name)
        for name in ("trl", "transformers", "liger-kernel", "flash-attn")
        if find_spec(name.replace("-", "_"))
    }
    return model, {"attention": made["attn_implementation"], "versions": versions}


def run_trl(job: dict[str, Any], rows: list[Any], steps: Any, folder: str) -> None:
    """TRL's SFTTrainer."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    own = {"max_length": job["context"], "shuffle_dataset": True, "assistant_only_loss": "messages" in rows[0]}
    model, steps.clock.facts = trl_model(job)
    adapter = None
    if job.get("rank"):
        from peft import LoraConfig

        adapter = LoraConfig(r=job["rank"], lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=model, args=SFTConfig(**{**common(job, folder), **own, **job["settings"]}), peft_config=adapter,
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


def run_axolotl(job: dict[str, Any], rows: list[Any], steps: Any, folder: str) -> None:
    """axolotl: full fine-tuning with the tokenizer's own template, or pretraining on texts."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.core.builders import HFCausalTrainerBuilder
    from axolotl.train import setup_model_and_trainer
    from axolotl.utils.dict import DictDefault

    source = {"path": job["rows"], "ds_type": "json"}
    if "messages" in rows[0]:
        source |= {
            "type": "chat_template",
            "chat_template": "tokenizer_default",
            "field_messages": "messages",
            "roles_to_train": ["assistant"],
        }
    else:
        source |= {"type": "completion", "field": "text"}
    own = {
        "base_model": job["checkpoint"], "datasets": [source], "sequence_len": job["context"], "attn_implementation": "sdpa",
        "dataset_prepared_path": f"{folder}/prepared", "output_dir": folder, "learning_rate": job["lr"], "lr_scheduler": "constant",
        "max_steps": STEPS_AT_MOST, "num_epochs": 1, "logging_steps": 1, "save_strategy": "no", "bf16": job["precision"] == "bf16", "tf32": False,
        "optimizer": "adamw_torch_fused", "max_grad_norm": 1.0, "adam_beta2": 0.95, "val_set_size": 0.0, "dataset_num_proc": 1,
        "dataloader_num_workers": 0, "gradient_checkpointing": False, "micro_batch_size": 1, "gradient_accumulation_steps": 1,
    }  # fmt: skip
    # its configuration knows no CPU: what transformers' TrainingArguments need for one goes in by its own hook
    HFCausalTrainerBuilder.hook_pre_create_training_args = lambda _, found: {
        **found,
        "use_cpu": common(job, folder)["use_cpu"],
    }
    config = load_cfg(DictDefault({**own, **job["settings"]}))
    trainer, *_ = setup_model_and_trainer(config, load_datasets(cfg=config))
    trainer.add_callback(steps)
    trainer.train()


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
    run = {"trl": run_trl, "llamafactory": run_llamafactory, "axolotl": run_axolotl}[job.get("peer", "trl")]
    with tempfile.TemporaryDirectory() as folder:
        run(job, rows, callback(clock), folder)


if __name__ == "__main__":
    main()
