"""kill -9 and Ctrl-C of a real process: nothing lost, nothing paid twice, and the same bytes in the end."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.synth.conftest import endpoint, everything, rows_of
from tests.synth.fault_server import FaultServer, Reply
from tests.synth.planted import Dialogues
from twllm.synth.cache import Cache, request_key
from twllm.synth.config import SelfplayConfig, make
from twllm.synth.prompts import load_prompts
from twllm.synth.run import Session, make_rows
from twllm.synth.selfplay import Selfplay

NUM, AT_ONCE = 16, 4
NAMES = ("meta", "fence", "loop_sentence", "http_503")
SETTINGS = make(SelfplayConfig, {"num_dialogues": NUM, "max_turns": 3})


def start(url: str, out: Path) -> subprocess.Popen[bytes]:
    options = {
        "--url": url,
        "--model": "m",
        "--out": str(out),
        "--dialogues": str(NUM),
        "--turns": "2-3",
        "--concurrency": str(AT_ONCE),
    }
    command = [
        sys.executable,
        "-m",
        "twllm.cli",
        "synth",
        "selfplay",
        *(part for pair in options.items() for part in pair),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes], code: int = 0) -> str:
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == code, output
    return output


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)


def wait_for(condition: object, process: subprocess.Popen[bytes], timeout_s: float = 30.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Counter[str]]:
    """Rows of a run that nobody stopped, and the requests it needed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with FaultServer(Dialogues(SETTINGS, NAMES)) as server:
        manifest = make_rows(Selfplay(SETTINGS, load_prompts(), "m"), Session(out, endpoint(server.url)))
        assert manifest["counts"] == {"kept": NUM - 6, "dropped": 6, "unfinished": 0}
        return rows_of(out), server.answered


def test_kill_9_between_answers_loses_nothing(tmp_path: Path, uninterrupted: tuple[bytes, Counter[str]]) -> None:
    """All workers wait for the server when the process is killed: every answer that went out had been stored."""
    rows, needed = uninterrupted
    out = tmp_path / "out"
    with FaultServer(Dialogues(SETTINGS, NAMES), hold_after=25) as first:
        process = start(first.url, out)
        wait_for(lambda: first.num_held >= AT_ONCE, process)
        kill(process)
    assert not out.exists()
    with FaultServer(Dialogues(SETTINGS, NAMES)) as second:
        finish(start(second.url, out))
        assert first.answered.total() == 25
        assert first.answered + second.answered == needed  # each once, none twice
        assert rows_of(out) == rows
        before = everything(out)
    assert len(list(tmp_path.iterdir())) == 2  # out and out.cache: no half folder is left
    finish(start(second.url, out))  # the server is down
    assert everything(out) == before


def test_kill_9_at_any_moment(tmp_path: Path, uninterrupted: tuple[bytes, Counter[str]]) -> None:
    """What is stored is never asked again; at most the requests under way at a kill are."""
    rows, needed = uninterrupted
    out = tmp_path / "out"
    script = Dialogues(SETTINGS, NAMES)

    def slowly(body: dict[str, object], before: int) -> object:
        time.sleep(0.01)
        return script(body, before)

    with FaultServer(slowly) as server:  # type: ignore[arg-type]
        stored: set[str] = set()
        for number, count in enumerate((9, 27), 1):
            process = start(server.url, out)
            wait_for(lambda count=count: server.answered.total() >= count, process)
            kill(process)
            with Cache(tmp_path / "out.cache") as cache:
                now = {key for key in list(server.answered) if cache.get(key) is not None}
            asked = {key for key in list(server.seen) if server.answered[key]}
            assert stored <= now
            assert len(asked - now) <= number * AT_ONCE
            stored = now
            counts = {key: server.seen[key] for key in stored}
        finish(start(server.url, out))
        assert {key: server.seen[key] for key in counts} == counts
        assert set(server.answered) == set(needed)
        assert server.answered.total() - needed.total() <= 2 * AT_ONCE
    assert rows_of(out) == rows


def test_ctrl_c_waits_for_the_answers_under_way(tmp_path: Path, uninterrupted: tuple[bytes, Counter[str]]) -> None:
    rows, needed = uninterrupted
    out = tmp_path / "out"
    script = Dialogues(SETTINGS, NAMES)

    def slowly(body: dict[str, object], before: int) -> object:
        reply = script(body, before)
        reply.how = "slow" if reply.how == "whole" and reply.status == 200 else reply.how
        return reply

    with FaultServer(slowly, slow_s=0.3) as server:  # type: ignore[arg-type]
        process = start(server.url, out)
        wait_for(lambda: server.seen.total() >= 6, process)
        process.send_signal(signal.SIGINT)
        output = finish(process, 130)
        assert "Ctrl-C" in output
        assert "接續" in output
        with Cache(tmp_path / "out.cache") as cache:
            asked = [request_key(body, 0) for body in server.bodies]
            lost = [key for key in asked if cache.get(key) is None]
            assert len(lost) <= 2  # a 503 of the script that was waiting to be tried again
            assert cache.unknown() == (0, 0)
        assert not out.exists()
    with FaultServer(script) as server:
        finish(start(server.url, out))
        assert server.answered.total() + len(set(asked) - set(lost)) == needed.total()
    assert rows_of(out) == rows


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    with FaultServer(lambda body, before: Reply("好", how="slow"), slow_s=30.0) as server:
        process = start(server.url, tmp_path / "out")
        wait_for(lambda: server.seen.total() >= AT_ONCE, process)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        process.stdout.readline()  # it has understood the first
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        finish(process, 130)
        assert time.monotonic() - started < 10
    with Cache(tmp_path / "out.cache") as cache:
        assert cache.unknown()[1] == AT_ONCE * 300  # they may have been paid for, at worst so many tokens


def test_the_key_is_never_written(tmp_path: Path) -> None:
    os.environ["TWLLM_TEST_KEY"] = key = "sk-never-on-disk"
    try:
        with FaultServer(Dialogues(SETTINGS, NAMES)) as server:
            options = [
                "--url",
                server.url,
                "--model",
                "m",
                "--dialogues",
                "2",
                "--turns",
                "2-3",
            ]
            more = ["--out", str(tmp_path / "out"), "--api-key-env", "TWLLM_TEST_KEY"]
            subprocess.run(
                [sys.executable, "-m", "twllm.cli", "synth", "selfplay", *options, *more],
                check=True,
                capture_output=True,
            )
            assert server.headers[0]["Authorization"] == f"Bearer {key}"
    finally:
        del os.environ["TWLLM_TEST_KEY"]
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or key.encode() not in file.read_bytes()
