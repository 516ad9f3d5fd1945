"""The mean of checkpoints is each tensor's mean, and only checkpoints of one model have one."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from twllm.errors import UserError
from twllm.model.average import average
from twllm.model.build import load
from twllm.model.commands import average_models


@pytest.fixture
def three(tiny_checkpoint: Path, tmp_path: Path) -> list[Path]:
    """The tiny checkpoint, and two that moved away from it."""
    folders = [tiny_checkpoint]
    for number in (1, 2):
        folder = tmp_path / f"m{number}"
        shutil.copytree(tiny_checkpoint, folder)
        model = load(folder)
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter) * 0.1
        model.save_pretrained(folder, max_shard_size="20KB" if number == 1 else "5GB")  # other shards, same tensors
        if number == 1:
            (folder / "model.safetensors").unlink(missing_ok=True)
        folders.append(folder)
    return folders


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def test_the_mean_is_each_tensors(three: list[Path], tmp_path: Path) -> None:
    average_models([str(folder) for folder in three], tmp_path / "out", "1,1,2")
    parts, found = [tensors(folder) for folder in three], tensors(tmp_path / "out")
    for name, tensor in found.items():
        expected = (parts[0][name].double() + parts[1][name] + 2 * parts[2][name]) / 4
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
    ids = torch.tensor([[0, 5, 9, 33]])
    assert torch.isfinite(load(tmp_path / "out")(ids).logits).all() and (tmp_path / "out" / "tokenizer.json").is_file()


def test_what_has_no_mean_is_refused(three: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least two"):
        average(three[:1], [1.0], tmp_path)
    with pytest.raises(UserError, match="one weight each"):
        average(three, [1.0, 1.0], tmp_path)
    (three[1] / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer"):
        average(three, [1.0, 1.0, 1.0], tmp_path)
