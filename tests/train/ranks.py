"""Starts functions as several processes of one group (gloo); a server that has torch and transformers loaded forks them."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.train.rank_work"])


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _enter(
    job: Callable[..., Any], rank: int, count: int, port: int, pipe: Any, folder: Path, settings: dict[str, Any]
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    from twllm.errors import UserError
    from twllm.train import distributed
    from twllm.train.config import MachineConfig

    try:
        distributed.start(MachineConfig(device="cpu", timeout_s=60))
        pipe.send(("ok", job(folder, **settings)))
    except UserError as error:
        pipe.send(("error", str(error)))
    except BaseException:
        import traceback

        pipe.send(("crash", traceback.format_exc()))
    distributed.stop()


def start_ranks(job: Callable[..., Any], count: int, folder: Path, **settings: Any) -> list[tuple[Any, Any]]:
    """(process, pipe) of each rank."""
    port, found = free_port(), []
    for rank in range(count):
        mine, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_enter, args=(job, rank, count, port, theirs, folder, settings))
        process.start()
        theirs.close()
        found.append((process, mine))
    return found


def collect(ranks: list[tuple[Any, Any]], timeout_s: float = 240) -> list[tuple[str, Any]]:
    """What each said: ("ok", result), ("error", what a person reads), ("crash", a trace), ("gone", None)."""
    found = []
    for process, pipe in ranks:
        try:
            found.append(pipe.recv() if pipe.poll(timeout_s) else ("silent", None))
        except EOFError:
            found.append(("gone", None))
        process.join(timeout_s)
        pipe.close()
    return found


def run_ranks(job: Callable[..., Any], count: int, folder: Path, **settings: Any) -> list[Any]:
    """The results of all ranks, none of which may fail."""
    found = collect(start_ranks(job, count, folder, **settings))
    assert [kind for kind, _ in found] == ["ok"] * count, found
    return [result for _, result in found]
