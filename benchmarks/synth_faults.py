"""`twllm synth` under faults: what is caught, what is dropped wrongly, what kill -9 loses. Prints a table.

Three runs against a local server that misbehaves in known dialogues and rows (tests/synth/planted.py and translations.py):
self-play, translation from English, translation from Simplified. The good texts are shipped Taiwan rows, so a false drop is
a drop of real Taiwan Mandarin. With --url, self-play also runs against that endpoint through a local proxy that plants the same
faults in the first turn of every second dialogue (and a good question before a bad answer); what the model itself says is not known to be good or bad, so its drops
are listed by reason and not called false. Each run is killed with kill -9 twice and started again.

    python benchmarks/synth_faults.py
    python benchmarks/synth_faults.py --url http://127.0.0.1:8080 --model twllm --small   # a model with a short context

Columns: planted faults (that were reached), caught (dropped for the fault's reason, or recovered from an HTTP fault), good rows and
how many of them were dropped, requests, answers that the server sent whole, stored answers that were asked for again (must be
0), answers under way at a kill that had to be asked for again (at most two kills × concurrency).
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.synth.fault_server import FaultServer, Reply
from tests.synth.planted import FAULTS, Dialogues, planted_in
from tests.synth.translations import FAULTS as TRANSLATION_FAULTS
from tests.synth.translations import Bad, english_pairs, simplified_pairs
from twllm.synth.cache import Cache
from twllm.synth.config import SelfplayConfig, make
from twllm.synth.endpoint import address

CONCURRENCY, KILLS = 8, (0.25, 0.6)  # killed when so much of the expected answers has gone out
OFTEN = ("--set", "endpoint.backoff_s=0.02", "--set", "endpoint.max_attempts=5", "--concurrency", str(CONCURRENCY))
OF_CONTENT = ("self_repeat", "parrot", "duplicate")  # depend on what was said before; not planted through the proxy
SMALL = '[selfplay]\nuser = "{persona}想知道{topic}。"\nopening = "請問。"\nassistant = "用臺灣的中文回答。"\n'


@dataclass
class Result:
    """One line of the table."""

    name: str
    planted: int
    caught: int
    good: int | None
    false_drops: int
    requests: int
    answers: int
    stored_again: int
    under_way_again: int
    seconds: float
    reasons: dict[str, int]
    missed: list[str]


class Proxy:
    """Forwards to an endpoint, but plants a fault in the first turn of every second dialogue."""

    def __init__(self, url: str, settings: SelfplayConfig, names: tuple[str, ...]) -> None:
        self.dialogues, self.names = Dialogues(settings, names), names
        self.http = httpx.Client(timeout=600)
        self.address = address(url)
        self.reached: set[int] = set()

    def __call__(self, body: dict[str, Any], before: int) -> Reply:
        number, turn, role = self.dialogues.places[body["seed"]]
        name = planted_in(number, self.names)
        fault = FAULTS.get(name)
        if fault is not None and turn == 0 and role == fault.role:
            self.reached.add(number)
            if fault.reply is None:
                return Reply(fault.text(number // (2 * len(self.names))), fault.finish_reason)
            reply = fault.reply(before)
            if reply.text is not None or reply.raw is not None or reply.how != "whole":
                return reply
        if name and turn == 0 and role == "user":  # a good question, so that the fault in its answer is reached
            return Reply(self.dialogues.good(number, turn, role))
        response = self.http.post(self.address, json=body)
        return Reply(raw=response.text, status=response.status_code, paid=response.status_code == 200)


def run(
    script: Callable[[dict[str, Any], int], Reply], command: list[str], out: Path, expected: int, timeout_s: float = 3.0
) -> tuple[FaultServer, int, int, float]:
    """Run the command to its end through two kills; (server, stored answers asked again, others asked again, seconds)."""
    started, stored = time.monotonic(), dict[str, int]()
    with FaultServer(script, slow_s=1.3 * timeout_s, one_by_one=False) as server:
        line = [
            sys.executable,
            "-m",
            "twllm.cli",
            "synth",
            *command,
            "--url",
            server.url,
            "--out",
            str(out),
            "--timeout",
            str(timeout_s),
            *OFTEN,
        ]
        for share in KILLS:
            process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
            while server.answered.total() < share * expected and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            with Cache(out.with_name(out.name + ".cache")) as cache, server.lock:
                stored |= {
                    key: count
                    for key, count in server.answered.items()
                    if cache.get(key) is not None and key not in stored
                }
        subprocess.run(line, check=True)
    again = sum(server.answered[key] > count for key, count in stored.items())
    twice = sum(count - 1 for count in server.answered.values() if count > 1)
    return server, again, twice - again, time.monotonic() - started


def judge(out: Path, expected: dict[str, tuple[str, ...]], names: dict[str, str]) -> tuple[int, int, list[str]]:
    """(caught, false drops, missed faults) of an output folder; `expected`: row → reasons that count."""
    lines = (out / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    reasons = {row["id"]: row["reason"] for row in map(json.loads, lines)}
    right = {id: reasons.get(id, "") in wanted for id, wanted in expected.items()}
    missed = [f"{id} {names[id]}: {reasons.get(id, 'kept')}" for id, ok in right.items() if not ok and names[id]]
    caught = sum(ok for id, ok in right.items() if names[id])
    return caught, sum(not ok for id, ok in right.items() if not names[id]), missed


def selfplay(work: Path, num: int, url: str | None, model: str, small: bool) -> Result:
    """200 dialogues, against the fault server or (url) through the proxy."""
    names = tuple(name for name in FAULTS if url is None or name not in OF_CONTENT)
    limits: dict[str, Any] = {"max_tokens_user": 40, "max_tokens_assistant": 60} if small else {}
    turns = 2 if small else 3
    settings = make(SelfplayConfig, {"num_dialogues": num, "max_turns": turns, **limits})
    command = ["selfplay", "--model", model, "--dialogues", str(num), "--turns", f"2-{turns}"]
    command += [part for key, value in limits.items() for part in ("--set", f"{key}={value}")]
    if small:
        (work / "small.toml").write_text(SMALL, encoding="utf-8")
        command += ["--prompts", str(work / "small.toml")]
    script = Dialogues(settings, names) if url is None else Proxy(url, settings, names)
    out = work / ("endpoint" if url else "selfplay")
    server, again, others, seconds = run(
        script, command, out, num * (5 if url is None else 2), 3.0 if url is None else 60.0
    )
    reached = set(range(num)) if isinstance(script, Dialogues) else script.reached
    faults = {f"selfplay-0-{number:06d}": planted_in(number, names) for number in range(num)}
    planted = {id: name for number, (id, name) in enumerate(faults.items()) if name and number in reached}
    good = {id: "" for id, name in faults.items() if not name and url is None}
    expected = {id: FAULTS[name].reasons for id, name in planted.items()} | dict.fromkeys(good, ("",))
    if url is not None:  # recovered: the row did not fail at the endpoint; what the model said may still be dropped
        other = tuple({reason for fault in FAULTS.values() for reason in fault.reasons} - {"endpoint"})
        expected |= {id: other for id, name in planted.items() if FAULTS[name].reasons == ("",)}
    caught, false_drops, missed = judge(out, expected, planted | good)
    title = "self-play, fault server" if url is None else f"self-play, {model} through the proxy"
    return result(
        title,
        out,
        server,
        (len(planted), caught, len(good) if url is None else None, false_drops),
        (again, others, seconds),
        missed,
    )


def translation(work: Path, language: str, pairs: list[tuple[str, str]]) -> Result:
    """Rows with planted translation faults."""
    bad, out = Bad(pairs), work / language
    source = bad.write(work / f"{language}.jsonl")
    command = ["translate", str(source), "--model", "m", "--set", 'filters.off=["near_duplicate"]']
    server, again, others, seconds = run(bad, command, out, len(pairs))
    names = {f"row-{number}": bad.planted.get(f"row-{number}", "") for number in range(len(pairs))}
    expected = {id: TRANSLATION_FAULTS[name][0] if name else ("",) for id, name in names.items()}
    caught, false_drops, missed = judge(out, expected, names)
    counts = (len(bad.planted), caught, len(pairs) - len(bad.planted), false_drops)
    return result(f"translation from {language}, fault server", out, server, counts, (again, others, seconds), missed)


def result(
    name: str,
    out: Path,
    server: FaultServer,
    counts: tuple[int, int, int | None, int],
    cost: tuple[int, int, float],
    missed: list[str],
) -> Result:
    """A line of the table."""
    planted, caught, good, false_drops = counts
    reasons = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["reasons"]
    return Result(
        name, planted, caught, good, false_drops, server.seen.total(), server.answered.total(), *cost, reasons, missed
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="also run against this endpoint, through the proxy")
    parser.add_argument("--model", default="default")
    parser.add_argument("--small", action="store_true", help="short prompts and answers, for a context of 256 tokens")
    parser.add_argument("--dialogues", type=int, default=200)
    parser.add_argument("--only-url", action="store_true", help="leave out the runs against the fault server")
    given = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if not given.only_url:
            results.append(selfplay(work, given.dialogues, None, "m", False))
            results.append(translation(work, "en", english_pairs(given.dialogues)))
            results.append(translation(work, "zh-CN", simplified_pairs(given.dialogues)))
        if given.url:
            results.append(selfplay(work, given.dialogues, given.url, given.model, given.small))
    table = Table(
        "run",
        "planted",
        "caught",
        "good",
        "false drops",
        "requests",
        "answers",
        "stored, asked again",
        "under way, asked again",
        "seconds",
    )
    for line in results:
        share = f"{line.caught} ({line.caught / max(1, line.planted):.1%})"
        good = ("?", "?") if line.good is None else (str(line.good), str(line.false_drops))
        counts = (line.requests, line.answers, line.stored_again, line.under_way_again)
        table.add_row(line.name, str(line.planted), share, *good, *map(str, counts), f"{line.seconds:.0f}")
    console = Console(width=180)
    console.print(table)
    for line in results:
        console.print(
            f"{line.name}: {Counter(line.reasons).most_common()}",
            *(f"  missed {text}" for text in line.missed),
            sep="\n",
        )


if __name__ == "__main__":
    main()
