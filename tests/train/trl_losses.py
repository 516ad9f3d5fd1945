"""Run by a Python that has TRL: its own SFT, DPO and KTO losses, and gradient norms, on given token ids. JSON in, JSON out.

Usage: python trl_losses.py REQUEST.json; the request names two model folders (policy, reference) and the rows.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")


def main(request: dict[str, Any]) -> dict[str, float]:
    """Losses by name."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["policy"])
    found: dict[str, Any] = {"trl": trl.__version__}
    for name in ("sft", "dpo", "kto"):
        policy, reference = (AutoModelForCausalLM.from_pretrained(request[key]) for key in ("policy", "reference"))
        with tempfile.TemporaryDirectory() as folder:
            shared = {
                "output_dir": folder, "beta": request["beta"], "report_to": [], "use_cpu": True, "bf16": False, "max_length": None,
                "gradient_checkpointing": False, "per_device_train_batch_size": len(request[name]), "disable_dropout": True,
            }  # fmt: skip
            text = {"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]}
            if name == "sft":  # rows with labels go to its collator as they are
                plain = {key: value for key, value in shared.items() if key not in ("beta", "disable_dropout")}
                made: Any = trl.SFTTrainer(
                    policy, trl.SFTConfig(**plain), train_dataset=Dataset.from_dict({"text": text["chosen"]}), processing_class=tokenizer
                )  # fmt: skip
            elif name == "dpo":
                made = trl.DPOTrainer(
                    policy,
                    reference,
                    trl.DPOConfig(**shared),
                    train_dataset=Dataset.from_dict(text),
                    processing_class=tokenizer,
                )
            else:
                weights = {key: request[key] for key in ("desirable_weight", "undesirable_weight")}
                data = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["c", "d"], "label": [True, False]})
                made = trl.KTOTrainer(
                    policy,
                    reference,
                    trl.KTOConfig(**shared, **weights),
                    train_dataset=data,
                    processing_class=tokenizer,
                )
            batch = made.data_collator(request[name])
            loss = made.compute_loss(made.model, batch)
            loss.backward()
            gradient = (
                made.model.get_output_embeddings().weight.grad
            )  # transformers zeroes a row of the input's: pad id = BOS id
            found[name] = {"loss": float(loss.detach()), "gradient": float(gradient.norm())}
    return found


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
