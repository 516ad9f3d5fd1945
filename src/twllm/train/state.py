"""Resumable training states that go on with any number of processes: weights, moments and step as safetensors and JSON, no pickle.

Data order (data.py) and random numbers (loop.py seeds each step) are functions of the step, so this is all an exact resume needs.
torch.distributed.checkpoint writes and reads: each process its own part, under Hugging Face's names for parts (offsets in the
safetensors header) instead of torch's own storage, whose index is a pickle. One format for one process and for many.
A state is copied in memory while the step waits and written in a thread while training goes on; the folder appears whole, then older ones
go. Price: one more copy of weights and moments in the host's memory (12 bytes a parameter), and training waits where the disk
is slower than `checkpoint_every_s`. A full disk is told and the next state tried; the third time in a row ends the run.
"""

import errno
import json
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_checkpoint
from torch.distributed.checkpoint.state_dict_saver import save as save_checkpoint

from twllm.artifact import explain_os_errors, sync, sync_tree
from twllm.errors import UserError
from twllm.train import distributed
from twllm.train.parallel import local

FAILURES = 3  # full disks in a row before a run gives up; chosen
LAST_BITS = (
    "machine.threads",
    "machine.attention",
    "machine.compile",
)  # may differ from the state's: another computer, other cores


def save_tensors(tensors: Mapping[str, Tensor], folder: Path, group: Any = None) -> None:
    """Write into `folder`; all processes call it. An OSError of any process is an OSError here."""
    folder.mkdir(parents=True, exist_ok=True)
    if distributed.count() == 1:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
        return
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save_checkpoint(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        for cause, _ in error.failures.values():
            if isinstance(cause, OSError) or "No space left" in str(cause):
                number = getattr(cause, "errno", None) or errno.ENOSPC
                raise OSError(number, str(cause), str(folder)) from error
        raise


def load_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill `tensors` in place, each process its part, whoever wrote them."""
    reader = HuggingFaceStorageReader(str(folder))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is")  # what one process is told
        load_checkpoint(dict(tensors), storage_reader=reader, no_dist=distributed.count() == 1)


class Saver:
    """Writes states under `root`; one at a time, in the background."""

    def __init__(self, root: Path) -> None:
        self.root, self.failed = root, 0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._after: Callable[[], None] | None = None
        self._group = distributed.new_group() if distributed.count() > 1 else None
        self._mark = distributed.from_main(os.getpid)  # a killed run's process that still hangs writes elsewhere

    def save(
        self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], after: Callable[[], None] = lambda: None
    ) -> None:  # fmt: skip
        """Copy and go on; `after` is called (by the training thread) when the state is safe.

        Raises:
            UserError: an earlier state could not be written.
        """
        self.wait()
        copied = {name: host_copy(tensor) for name, tensor in tensors.items()}
        told = json.dumps({"step": step, **facts})
        self._after = after
        self._thread = threading.Thread(target=self._work, args=(step, copied, told), name="checkpoint")
        self._thread.start()

    def _work(self, step: int, tensors: Mapping[str, Tensor], told: str) -> None:
        partial, target = self.root / f".step-{step:08d}.partial-{self._mark}", self.root / f"step-{step:08d}"
        try:
            with explain_os_errors(target):
                save_tensors(tensors, partial, self._group)
                if distributed.is_main():
                    (partial / "state.json").write_text(told, encoding="utf-8")
                    sync_tree(partial)
                    if target.exists():
                        shutil.rmtree(target)
                    partial.rename(target)
                    sync(self.root)
                    for old in list_states(self.root):
                        if old != target:
                            shutil.rmtree(old)
        except BaseException as error:
            self._error = error
            shutil.rmtree(partial, ignore_errors=True)

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            UserError: it could not be written for the third time in a row, or for another reason than a full disk.
        """
        if self._thread is None:
            return
        self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is None:
            self.failed = 0
            if self._after:
                self._after()
            return
        self.failed += 1
        full = isinstance(error, UserError) and "no space left" in error.what
        if not full or self.failed >= FAILURES:
            raise error
        if distributed.is_main():
            print(f"⚠ 中斷點沒存成，訓練繼續，下次再試（{self.failed}/{FAILURES}）\n{error}", file=sys.stderr)

    def close(self) -> None:
        """Let the last one finish; what it says is told, not raised: the run is over or has its own error."""
        try:
            self.wait()
        except Exception as error:
            print(error, file=sys.stderr)


def host_copy(tensor: Tensor) -> Tensor:
    """The same tensor on the host, in memory of its own; of a sharded one this process's part."""
    from torch.distributed.tensor import DTensor

    mine = local(tensor.detach())
    copied = mine.to("cpu", copy=True).contiguous()
    if not isinstance(tensor, DTensor):
        return copied
    mesh = tensor.device_mesh
    if mesh.device_type != "cpu":
        mesh = _on_cpu(mesh)
    return DTensor.from_local(
        copied, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def _on_cpu(mesh: Any) -> Any:
    """The same mesh for tensors of the host; no group is made, since only places are asked of it."""
    from torch.distributed.device_mesh import DeviceMesh

    return DeviceMesh("cpu", mesh.mesh, mesh_dim_names=mesh.mesh_dim_names, _init_backend=False)


def list_states(root: Path) -> list[Path]:
    """Whole states, oldest first."""
    return sorted(root.glob("step-*")) if root.is_dir() else []


def state_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """What a state holds: tensors by name, and the optimizer's plain numbers of each parameter. Frozen weights are left out."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        tensors[f"weight.{name}"] = parameter.detach()
        if state := optimizer.state.get(parameter):
            for key, value in state.items():
                if value.ndim:
                    tensors[f"{key}.{name}"] = value
            numbers[name] = {key: float(value) for key, value in state.items() if not value.ndim}
    return tensors, numbers


def load_state(
    root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, facts: Mapping[str, Any],
    more: Callable[[dict[str, Any]], dict[str, Tensor]] = lambda saved: {},
) -> int:  # fmt: skip
    """Restore the newest state and return its step; 0 if there is none. `more` takes the state's JSON and gives further tensors to fill.

    Raises:
        UserError: the state belongs to another configuration (`facts` differ).
    """

    def look() -> str | None:
        for left in root.glob(".step-*.partial-*"):
            shutil.rmtree(left, ignore_errors=True)
        return str(states[-1]) if (states := list_states(root)) else None

    newest = distributed.from_main(look)
    if newest is None:
        return 0
    folder = Path(newest)
    try:
        saved = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        step, numbers = int(saved["step"]), saved["numbers"]
    except (OSError, ValueError, KeyError) as error:
        what = "中斷點讀不了 (damaged state, or made by an older twllm)"
        raise UserError(what, folder, "刪除這個資料夾重新訓練") from error
    _check_same_run(saved, facts, folder)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tensors = {f"weight.{name}": p.detach() for name, p in parameters.items()}
    moments: dict[str, dict[str, Tensor]] = {name: {} for name in numbers}
    for moment in saved["moments"]:
        key, name = moment.split(".", 1)
        moments[name][key] = tensors[moment] = torch.zeros_like(parameters[name])
    load_tensors(tensors | more(saved), folder)
    places = [p for group in optimizer.param_groups for p in group["params"]]
    names = {id(p): name for name, p in parameters.items()}
    state = {
        number: {**moments[name], **{key: torch.tensor(value) for key, value in numbers[name].items()}}
        for number, p in enumerate(places)
        if (name := names[id(p)]) in numbers
    }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return step


def _check_same_run(saved: Mapping[str, Any], facts: Mapping[str, Any], folder: Path) -> None:
    """Whether the state's run is this one. Threads, attention and compiling may change: only last bits do, and that is told."""
    changed: dict[str, str] = {}
    for key in sorted(facts.keys() - {"processes"}):
        old, new = saved.get(key), json.loads(json.dumps(facts[key]))
        both = (old, new) if isinstance(old, dict) and isinstance(new, dict) else ({"": old}, {"": new})
        for part in sorted(both[0].keys() | both[1].keys()):
            if both[0].get(part) != both[1].get(part):
                changed[f"{key}.{part}".rstrip(".")] = f"{both[0].get(part)} → {both[1].get(part)}"
    if differing := {name: how for name, how in changed.items() if name not in LAST_BITS}:
        told = "、".join(f"{name} {how}" for name, how in differing.items())
        what = f"中斷點與現在的設定不同 (state of another run): {told}"
        raise UserError(what, folder, "刪除這個資料夾重新訓練，或還原設定")
    if changed and saved.get("processes") == facts.get("processes") and distributed.is_main():
        told = "、".join(f"{name} {how}" for name, how in changed.items())
        print(f"※ {told}：照樣接續，權重只在最後幾位和不換時不同 (goes on; last bits differ)", file=sys.stderr)
