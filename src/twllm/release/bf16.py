"""A Hugging Face folder in bf16: half the size of what training writes (fp32), and what most published models are.

One file of weights at a time, each number rounded once, to the nearest. Not covered: quantised checkpoints, fp16.
"""

import json
from pathlib import Path

from twllm.artifact import copy_files, write_json
from twllm.release.quantise import plain_config


def write_bf16(folder: Path, out: Path) -> None:
    """Fill the folder `out` (which exists) with the checkpoint in bf16.

    Raises:
        UserError: the weights are quantised.
    """
    import torch
    from safetensors.torch import load_file, save_file

    config = plain_config(folder)
    copy_files(folder, out)
    size = 0
    for file in sorted(folder.glob("*.safetensors")):
        tensors = {
            name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
            for name, tensor in load_file(file).items()
        }
        size += sum(tensor.nbytes for tensor in tensors.values())
        save_file(tensors, out / file.name, metadata={"format": "pt"})
    write_json(out / "config.json", _renamed(config))
    if (index := out / "model.safetensors.index.json").is_file():
        told = json.loads(index.read_text(encoding="utf-8"))
        write_json(index, {**told, "metadata": {**told.get("metadata", {}), "total_size": size}})


def _renamed(config: dict[str, object]) -> dict[str, object]:
    """The same config that says bf16, also in the parts of a model that sees."""
    found = {
        key: _renamed(value) if isinstance(value, dict) and "model_type" in value else value
        for key, value in config.items()
    }
    return {**found, **{key: "bfloat16" for key in ("dtype", "torch_dtype") if key in config}}
