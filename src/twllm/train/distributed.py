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
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
SEEN_S = 60.0  # until a new file must be seen by all hosts: NFS remembers for up to a minute what is not there
TORCHRUN = "torchrun --nproc-per-node 8 -m twllm …"
_alone: dict[str, Any] = {"calls": 0, "group": None, "share": (0, 1), "timeout": None}
_state: dict[str, Any] = dict(_alone)  # of this process


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
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=timedelta(seconds=machine.timeout_s))
    except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
        what = f"連不到其他行程 (cannot join the other processes): {str(error).splitlines()[0]}"
        raise UserError(what, place, "檢查 MASTER_ADDR、MASTER_PORT、防火牆，以及每台主機是否都起了") from error
    _state.update(calls=0, share=(rank(), count()), timeout=timedelta(seconds=machine.timeout_s))
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
    try:
        return _watch(store, key, busy)
    except dist.DistError as error:  # the store was in a process that is gone
        raise _lost(busy or key, error) from error


def _watch(store: Any, key: str, busy: str) -> Any:
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
def held(make: Callable[[], AbstractContextManager[Any]]) -> Iterator[Any]:
    """A context that process 0 is in; gives what it gives there as text, in every process."""
    with ExitStack() as stack:
        yield from_main(lambda: str(stack.enter_context(make())))


@contextmanager
def shared_folder(path: Path) -> Iterator[Path]:
    """`write_folder` by process 0, known to all; the others must not write into it."""
    from twllm.artifact import write_folder

    with held(lambda: write_folder(path)) as folder:
        yield Path(folder)


def check_shared(folder: Path) -> None:
    """Every process sees what process 0 writes into `folder`, and so the states that all of them write there are one.

    Raises:
        UserError: some do not.
    """
    if count() == 1:
        return
    mark = folder / f".seen-{from_main(lambda: _touch(folder))}"
    end = time.monotonic() + SEEN_S
    while not (seen := mark.exists()) and time.monotonic() < end:
        time.sleep(0.5)
    blind = [number for number, sees in enumerate(gather(seen)) if not sees]
    if is_main():
        mark.unlink()
    if blind:
        what = (
            f"行程 {'、'.join(map(str, blind))} 看不到行程 0 的輸出資料夾 (they do not see process 0's output folder)"
        )
        raise (UserError if is_main() else FollowedError)(
            what, folder.absolute(), "--out 要在每台主機都看得到的共用檔案系統上"
        )


def _touch(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{os.getpid()}-{time.time_ns()}"
    (folder / f".seen-{name}").touch()
    return name


def new_group(ranks: Sequence[int] | None = None) -> Any:
    """A group on the host (None: of all) that waits as long as the machine file says; torch's own would wait half an hour."""
    return dist.new_group(None if ranks is None else list(ranks), timeout=_state["timeout"], backend="gloo")


def wait_as_configured(group: Any) -> None:
    """The same for a group that torch made."""
    from torch.distributed.distributed_c10d import _set_pg_timeout

    if _state["timeout"]:
        _set_pg_timeout(_state["timeout"], group)


def use_group(group: Any, share: tuple[int, int]) -> None:
    """From now on sum over these processes, those whose data differ, among which this one is number `share[0]` of `share[1]`."""
    _state.update(group=group, share=share)


def share() -> tuple[int, int]:
    """(number, count) of this process among those that share out the data; what computes a layer together counts once."""
    found: tuple[int, int] = _state["share"]
    return found


def main_says(flag: bool) -> bool:
    """Process 0's word, in every process."""
    if count() == 1:
        return flag
    found = torch.tensor(float(flag))
    dist.broadcast(found, 0)
    return bool(found)


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
    _state.update(_alone)
