"""Run by a Python that has TRL: its own SFT, DPO and KTO losses, and gradient norms, on given rows. JSON in, JSON out.

Usage: python trl_losses.py REQUEST.json; the request names two model folders (policy, reference), the rows, and what to compute.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")


def shared(folder: str, rows: int) -> dict[str, Any]:
    """Settings of all trainers."""
    return {
        "output_dir": folder, "report_to": [], "use_cpu": True, "bf16": False, "max_length": None,
        "gradient_checkpointing": False, "per_device_train_batch_size": rows,
    }  # fmt: skip


def sft(request: dict[str, Any], folder: str, models: list[Any], tokenizer: Any) -> tuple[Any, Any]:
    """Rows with labels go to its collator as they are."""
    import trl
    from datasets import Dataset

    settings = trl.SFTConfig(**shared(folder, len(request["sft"])))
    data = Dataset.from_dict({"text": ["c", "d"]})
    made = trl.SFTTrainer(models[0], settings, train_dataset=data, processing_class=tokenizer)
    return made, made.data_collator(request["sft"])


def chats(request: dict[str, Any], folder: str, models: list[Any], tokenizer: Any) -> tuple[Any, Any]:
    """Messages: TRL's own tokens and labels, by the folder's chat template, the loss on what the assistant says."""
    import trl
    from datasets import Dataset

    rows = Dataset.from_list([{"messages": messages} for messages in request["chats"]])
    settings = trl.SFTConfig(**shared(folder, len(rows)), assistant_only_loss=True, packing=False)
    made = trl.SFTTrainer(models[0], settings, train_dataset=rows, processing_class=tokenizer)
    return made, made.data_collator([made.train_dataset[i] for i in range(len(rows))])


def dpo(request: dict[str, Any], folder: str, models: list[Any], tokenizer: Any) -> tuple[Any, Any]:
    """Pairs as token ids."""
    import trl
    from datasets import Dataset

    text = {"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]}
    settings = trl.DPOConfig(
        **shared(folder, len(request["dpo"])), beta=request["beta"], disable_dropout=True, **request.get("variant", {})
    )
    made = trl.DPOTrainer(*models, settings, train_dataset=Dataset.from_dict(text), processing_class=tokenizer)
    return made, made.data_collator(request["dpo"])


def kto(request: dict[str, Any], folder: str, models: list[Any], tokenizer: Any) -> tuple[Any, Any]:
    """Rated answers as token ids."""
    import trl
    from datasets import Dataset

    weights = {key: request[key] for key in ("desirable_weight", "undesirable_weight")}
    settings = trl.KTOConfig(
        **shared(folder, len(request["kto"])), beta=request["beta"], disable_dropout=True, **weights
    )
    data = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["c", "d"], "label": [True, False]})
    made = trl.KTOTrainer(*models, settings, train_dataset=data, processing_class=tokenizer)
    return made, made.data_collator(request["kto"])


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Loss and gradient norm by name; of SFT the labels, too."""
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["policy"])
    found: dict[str, Any] = {"trl": trl.__version__}
    jobs: list[tuple[str, Any, dict[str, Any]]] = [(make.__name__, make, request) for make in (sft, chats, dpo, kto)]
    jobs += [(name, dpo, {**request, "variant": settings}) for name, settings in request["variants"].items()]
    for name, prepare, what in jobs:
        models = [AutoModelForCausalLM.from_pretrained(request[key]) for key in ("policy", "reference")]
        with tempfile.TemporaryDirectory() as folder:
            made, batch = prepare(what, folder, models, tokenizer)
            labels = batch["labels"].tolist() if name == "chats" else None
            loss = made.compute_loss(made.model, batch)
            loss.backward()
            # of the output's table: transformers zeroes a row of the input's, where the pad id is the BOS id
            gradient = made.model.get_output_embeddings().weight.grad
            found[name] = {"loss": float(loss.detach()), "gradient": float(gradient.norm())}
            found |= {"labels": labels} if labels else {}
    return found


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
