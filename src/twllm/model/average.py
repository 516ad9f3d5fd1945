"""The mean of several checkpoints of one shape ("model soup", arXiv 2203.05482), tensor by tensor in fp32, rounded once.

Everything but the weights is the first one's. One tensor of each checkpoint is in memory at a time, and one shard of the result.
Not covered: checkpoints whose weights were permuted against each other (other seeds): their mean means nothing.
"""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from twllm.artifact import hash_path
from twllm.errors import UserError
from twllm.model.hub import PATTERNS


def average(folders: Sequence[Path], weights: Sequence[float], out: Path) -> dict[str, Any]:
    """Write the weighted mean into the folder `out` (which exists). Weights are taken as shares of their sum.

    Raises:
        UserError: fewer than two, weights that do not fit, other tensors or shapes, another tokenizer.
    """
    if len(folders) < 2:
        raise UserError("至少要兩個模型 (at least two)", " ".join(map(str, folders)), "twllm model average A B --out C")
    if len(weights) != len(folders) or min(weights) < 0 or not sum(weights):
        raise UserError("每個模型要一個不小於 0 的權重 (one weight each)", f"{list(weights)}", "例如 --weights 1,1,2")
    shares = [weight / sum(weights) for weight in weights]
    _same_tokenizer(folders)
    for file in sorted(folders[0].iterdir()):
        if (
            file.name not in ("manifest.json", "README.md")
            and any(file.match(p) for p in PATTERNS)
            and file.suffix != ".safetensors"
        ):
            shutil.copyfile(file, out / file.name)
    with ExitStack() as stack:
        readers = [_open(folder, stack) for folder in folders]
        _same_names(folders, readers)
        for file in sorted(folders[0].glob("*.safetensors")):
            with safe_open(file, framework="pt") as first:
                done = {name: _mean(name, readers, shares, folders) for name in first.keys()}  # noqa: SIM118
                save_file(done, out / file.name, metadata=first.metadata() or {"format": "pt"})
    return {"averaged": len(folders), "shares": [round(share, 6) for share in shares], "tensors": len(readers[0])}


def _open(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Tensor name → the open file that holds it."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError("沒有 safetensors 權重檔 (no safetensors)", folder, "需要 safetensors 格式的模型")
    opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
    return {name: file for file in opened for name in file.keys()}  # noqa: SIM118


def _same_names(folders: Sequence[Path], readers: Sequence[dict[str, Any]]) -> None:
    for folder, reader in zip(folders[1:], readers[1:], strict=True):
        if odd := sorted(readers[0].keys() ^ reader.keys()):
            what = f"不是同一種模型 (other tensors): {odd[0]}"
            raise UserError(what, f"{folders[0]} / {folder}", "只能平均同一個模型的檢查點")


def _mean(
    name: str, readers: Sequence[dict[str, Any]], shares: Sequence[float], folders: Sequence[Path]
) -> torch.Tensor:
    first = readers[0][name].get_tensor(name)
    total = first.float() * shares[0]
    for reader, share, folder in zip(readers[1:], shares[1:], folders[1:], strict=True):
        other = reader[name].get_tensor(name)
        if other.shape != first.shape:
            what = f"大小不同 (shapes differ): {name} {tuple(first.shape)} / {tuple(other.shape)}"
            raise UserError(what, folder, "只能平均同一個模型的檢查點")
        total += other.float() * share
    return total.to(first.dtype)


def _same_tokenizer(folders: Sequence[Path]) -> None:
    for name in ("tokenizer.json", "tokenizer.model", "chat_template.jinja"):
        hashes = {hash_path(folder / name) if (folder / name).is_file() else "" for folder in folders}
        if len(hashes) > 1:
            raise UserError("分詞器或範本不同 (tokenizer or template differs)", name, "只能平均同一個分詞器的檢查點")
