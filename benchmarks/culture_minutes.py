"""Time to the culture score: minutes from nothing to 80 of the 100 taught questions with recipes/tiny.toml (dev/LEADERBOARD.md).

`python benchmarks/culture_minutes.py [--runs 3] [--add]` runs the recipe's main line (no ablations) in fresh folders, checks the score, and
prints the median wall time of everything: corpus, tokenizer, training, evaluation. `--add` writes a row into dev/LEADERBOARD.md.
The gate of the recipe is 80: a run that misses it fails and counts as no time at all. Run it on a machine that does nothing else.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BOARD = ROOT / "dev" / "LEADERBOARD.md"


def one_run(folder: Path) -> tuple[float, int]:
    """(seconds, questions answered right)."""
    code = "from twllm.cli import main; main()"
    command = [sys.executable, "-c", code, "run", str(ROOT / "recipes" / "tiny.toml"), "--out", str(folder)]
    started = time.perf_counter()
    subprocess.run(
        [*command, "--set", "evaluate.ablations=[]"], check=True, stdout=subprocess.DEVNULL
    )  # fmt: skip
    seconds = time.perf_counter() - started
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return seconds, int(report["culture"]["correct"])


def commit() -> str:
    """Short hash, with a + where the tree has changes."""
    run = lambda *a: subprocess.run(["git", *a], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()  # noqa: E731
    return run("rev-parse", "--short", "HEAD") + ("+" if run("status", "--porcelain", "--untracked-files=no") else "")


def processor() -> str:
    """Its name and the cores at hand."""
    names = [
        x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")
    ]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--note", default="recipes/tiny.toml as it is")
    args = parser.parse_args()
    found = []
    for number in range(args.runs):
        with tempfile.TemporaryDirectory() as folder:
            seconds, correct = one_run(Path(folder) / "run")
        print(f"run {number + 1}: {seconds / 60:.2f} min, {correct}/100", flush=True)
        if correct < 80:
            raise SystemExit("fewer than 80 of 100: not a result")
        found.append((seconds, correct))
    minutes, correct = statistics.median(s for s, _ in found) / 60, min(c for _, c in found)
    load = os.getloadavg()[2]
    print(f"RESULT culture_minutes={minutes:.2f} culture_correct={correct} runs={args.runs} load_15min={load:.1f}")
    if args.add:
        row = (
            f"| {minutes:.2f} | {correct} | {commit()} | {date.today()} | {processor()} | {args.runs} | {args.note} |\n"
        )
        BOARD.write_text(BOARD.read_text(encoding="utf-8").rstrip("\n") + "\n" + row, encoding="utf-8")


if __name__ == "__main__":
    main()
