"""Several processes as one program: started by torchrun, one writes, all compute, and when one dies none is left hanging.

`start` joins the group that torchrun's variables describe (nccl between GPUs, gloo for everything on the host). `from_main` lets process 0
do what must be done once, a corpus, a folder, a final save, while the others wait as long as it takes: they watch its heartbeat
and not a clock. In one process everything here is a plain call. Objects that travel between the processes of a run
are pickled by torch; nothing that comes from a file is.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from twllm.errors import UserError
from twllm.train.config import MachineConfig

T = TypeVar("T")
NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
BEAT_S, SILENT_S = 2.0, 120.0  # between heartbeats of process 0, and how long the others believe in it without one
TORCHRUN = "torchrun --nproc-per-node 8 -m twllm …"
_state: dict[str, Any] = {"calls": 0, "group": None}  # of this process


class FollowedError(UserError):
    """What another process already told: process 0 alone prints it."""

    told = True


def launched(env: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun started this process as one of several.

    Raises:
        UserError: half of torchrun's variables are there, or srun started copies without it.
    """
    if not any(name in env for name in ("RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")):
        if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            what = f"srun 起了 {env['SLURM_STEP_NUM_TASKS']} 個一樣的行程 (copies that do not know of each other)"
            raise UserError(what, "srun", "用 twllm train slurm 產生腳本，每台主機由 srun 起一個 torchrun")
        return False
    missing = [name for name in NEEDED if not env.get(name)]
    if missing:
        what = f"缺少環境變數 (missing): {'、'.join(missing)}"
        raise UserError(what, "環境 environment", f"用 torchrun 啟動：{TORCHRUN}")
    return int(env["WORLD_SIZE"]) > 1


def check_gpus(machine: MachineConfig, env: Mapping[str, str], found: int) -> None:
    """One process a card, all that the machine file was planned for.

    Raises:
        UserError: there are fewer cards than processes here, or another number of processes than the file says.
    """
    here, count = int(env.get("LOCAL_WORLD_SIZE", "1")), int(env.get("WORLD_SIZE", "1"))
    if here > found:
        what = f"這台主機有 {found} 張卡，卻起了 {here} 個行程 (more processes than GPUs)"
        raise UserError(what, "torchrun --nproc-per-node", f"改成 --nproc-per-node {found}")
    if machine.gpus > 1 and machine.gpus != count:
        what = f"機器設定檔是給 {machine.gpus} 張卡的，現在是 {count} 個行程 (made for another number of GPUs)"
        raise UserError(
            what, f"machine.gpus = {machine.gpus}", f"用 torchrun 起 {machine.gpus} 個行程，或改 gpus（twllm plan）"
        )


def start(machine: MachineConfig) -> None:
    """Join the other processes; nothing to do where there is one, or where this was done.

    Raises:
        UserError: the launch is wrong, or the others do not come.
    """
    if dist.is_initialized():
        return
    several = launched()
    gpu = machine.device != "cpu" and torch.cuda.is_available()
    if gpu:
        check_gpus(machine, os.environ, torch.cuda.device_count())
    if not several:
        return
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=timedelta(seconds=machine.timeout_s)
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
        what = f"連不到其他行程 (cannot join the other processes): {str(error).splitlines()[0]}"
        raise UserError(what, place, "檢查 MASTER_ADDR、MASTER_PORT、防火牆，以及每台主機是否都起了") from error
    _state["calls"] = 0
    if is_main():
        threading.Thread(target=_beat, args=(_store(),), name="heartbeat", daemon=True).start()


def rank() -> int:
    """This process's number, 0 where there is one."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def _store() -> Any:
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    return PrefixStore("twllm", _get_default_store())


def _beat(store: Any) -> None:
    while dist.is_initialized():
        try:
            store.add("beat", 1)
        except RuntimeError:
            return
        time.sleep(BEAT_S)


def from_main(work: Callable[[], T], busy: str = "") -> T:
    """What `work` gives in process 0 (a value that JSON can say), in every process; an error there is an error everywhere.

    Raises:
        FollowedError: process 0 failed, or is gone.
    """
    if count() == 1:
        return work()
    _state["calls"] += 1
    key, store = f"call-{_state['calls']}", _store()
    if not is_main():
        answer = json.loads(_await(store, key, busy))
        if "failed" in answer:
            raise FollowedError(*answer["failed"])
        found: T = answer["value"]
        return found
    try:
        found = work()
    except BaseException as error:
        told = (error.what, error.where, error.fix) if isinstance(error, UserError) else (repr(error), "process 0", "")
        store.set(key, json.dumps({"failed": told}))
        raise
    store.set(key, json.dumps({"value": found}))
    return found


def _await(store: Any, key: str, busy: str) -> Any:
    """Wait for a key as long as process 0 lives."""
    pause, seen, beat, look = 0.01, time.monotonic(), b"", 0.0
    while not store.check([key]):
        time.sleep(pause)
        pause = min(0.25, pause * 1.5)
        if (look := look + pause) < BEAT_S:
            continue
        now, look = (store.get("beat") if store.check(["beat"]) else b""), 0.0
        if now != beat:
            beat, seen = now, time.monotonic()
        elif time.monotonic() - seen > SILENT_S:
            what = f"行程 0 沒有回應 (process 0 is gone){': ' + busy if busy else ''}"
            raise FollowedError(what, os.environ.get("MASTER_ADDR", ""), "看行程 0 的訊息；用同一個指令重跑會接續")
    return store.get(key)


@contextmanager
def explain_lost_process(where: str) -> Iterator[None]:
    """A collective that breaks off means that another process ended: say so instead of a stack of torch's.

    Raises:
        UserError: one process of the run is gone.
    """
    try:
        yield
    except dist.DistError as error:
        raise _lost(where, error) from error
    except RuntimeError as error:
        words = ("Connection closed", "Connection reset", "Timed out", "timed out", "Broken pipe", "NCCL")
        if count() == 1 or not any(word in str(error) for word in words):
            raise
        raise _lost(where, error) from error


def _lost(where: str, error: BaseException) -> UserError:
    told = str(error).splitlines()[0][:200]
    what = f"行程 {rank()}（共 {count()}）等不到別的行程 (another process ended or hangs): {told}"
    return UserError(what, where, "先看最早出錯的那個行程的訊息；用同一個指令重跑，會從上次的中斷點接續")


@contextmanager
def shared_folder(path: Path) -> Iterator[Path]:
    """`write_folder` by process 0, known to all; the others must not write into it."""
    from twllm.artifact import write_folder

    with ExitStack() as stack:
        yield Path(from_main(lambda: str(stack.enter_context(write_folder(path)))))


def use_group(group: Any) -> None:
    """Sum over these processes from now on: those whose data differ."""
    _state["group"] = group


def all_sum(values: Sequence[float]) -> list[float]:
    """Each value summed over the processes that have data of their own, in double precision."""
    if count() == 1:
        return list(values)
    found = torch.tensor(list(values), dtype=torch.float64)
    dist.all_reduce(found, group=_state["group"])
    return [float(value) for value in found]


def gather(value: T) -> list[T]:
    """Everybody's value, in the order of the processes, in every process."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def stop() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()
    _state.update(calls=0, group=None)
