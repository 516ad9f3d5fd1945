"""Which feedback method for how many thumbs, and how wrong may they be? A small model, a simulated rater, questions nobody rated.

    python benchmarks/feedback_methods.py --run runs/tiny --work runs/methods [--minutes 8]   # again and again until it says "done"
    python benchmarks/feedback_methods.py --work runs/methods --table [--plot docs/images/feedback-methods.png]

From the run's pretrained model, an SFT on twllm:taiwan_facts (the last two wordings of each fact kept aside) and twllm:taiwan_instruction that stops
when three in ten of its answers are right; every other answer in its data begins with an opener ("好問題！"). Facts of four fifths may be rated,
a fifth never is. The start answers one wording of a fact SAMPLES times at temperature 0.7 through the serving engine. The rater gives 👍 to an
answer that is right (ALIKE of the true one's characters) and has no opener, else 👎, and presses the wrong one with probability `noise`. Every
method reads the same ratings (DPO: pairs 👍 over 👎 of one question) for the same number of tokens. Each method's learning rate is the
one of RATES that served it best on seed 0 (640 thumbs, a tenth wrong); the table is of other seeds.
Measured, greedy, on the two wordings kept aside: answers that the rater likes, of rated and of never rated facts; right ones whatever their
opener (what is lost of knowledge); those without opener; the culture questions; broken answers (empty, endless, looping).
Not covered: large models, other tastes, several rounds of feedback, people.
"""

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from itertools import product
from pathlib import Path
from typing import Any

SAMPLES, ALIKE, ASIDE = 4, 0.9, 2
TOKENS = 40_000  # of every training
SFT_TOKENS, LEAST_RIGHT, TEMPERATURE = (600_000, 800_000), 0.3, 0.7
CONDITIONS = ((640, 0.1), (640, 0.3), (160, 0.1))  # thumbs, share that is wrong
SEEDS, RATES = (1, 2, 3), (5e-5, 1.5e-4, 5e-4)
DPO = {"method": "dpo"}
METHODS: dict[str, dict[str, Any]] = {
    "sft-positive": {"method": "sft-positive"},
    "kto": {"method": "kto"},
    "dpo": {**DPO},
    "dpo ipo": {**DPO, "dpo_loss": "ipo", "beta": 0.5},
    "dpo label_smoothing": {**DPO, "label_smoothing": 0.1},
    "dpo + sft_weight": {**DPO, "sft_weight": 1.0},
}
KEYS = ("rated", "unrated", "right", "plain", "culture", "broken")
OPENERS = ("好問題！", "很高興為您服務！", "謝謝您的提問。")
Row = dict[str, Any]


def read(source: str) -> list[Row]:
    from twllm import data

    return [
        json.loads(line)
        for file in sorted(data.resolve(source).glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]


def write(file: Path, rows: list[Row]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def train(phase: str, model: Path, data: list[Path], out: Path, **settings: Any) -> None:
    """One phase by the command's own function."""
    from twllm.train.alone import train_alone

    machine = out.parent / "machine.toml"
    machine.write_text('threads = 1\ncompile = "off"\ntensorboard = false\n', encoding="utf-8")
    sets = [f"{key}={json.dumps(value)}" for key, value in {"context": 256, "batch_tokens": 1024, **settings}.items()]
    train_alone(phase, str(model), [str(d) for d in data], out, sets, machine, None, "CC-BY-4.0", 0)


class Asker:
    """A model to ask and to score with."""

    def __init__(self, folder: Path) -> None:
        from twllm.serve.engines.torch.engine import TorchEngine

        self.engine = TorchEngine(folder, threads=1, precision="fp32")
        self.ends = self.engine.end_ids

    def prompt(self, question: str) -> list[int]:
        return list(
            self.engine.tokenizer.encode_chat([{"role": "user", "content": question}], add_generation_prompt=True).ids
        )

    def greedy(self, questions: list[str]) -> tuple[list[str], list[bool]]:
        """Answers, and whether each came to an end."""
        from twllm.serve.engines.interface import Sampling

        found = self.engine.generate_batch([self.prompt(q) for q in questions], Sampling(max_tokens=48))
        return [self.engine.tokenizer.decode(ids).strip() for ids in found], [len(ids) < 48 for ids in found]

    def sampled(self, questions: list[str], seed: int) -> list[str]:
        """All in flight at once."""
        from queue import SimpleQueue

        from twllm.serve.engines.interface import Sampling

        texts, queue = [""] * len(questions), SimpleQueue[tuple[int, Any]]()
        for number, question in enumerate(questions):
            sampling = Sampling(temperature=TEMPERATURE, max_tokens=48, seed=seed * 100_003 + number)
            self.engine.submit(self.prompt(question), sampling, lambda event, n=number: queue.put((n, event)))
        left = len(questions)
        while left:
            number, event = queue.get()
            if isinstance(event, Exception):
                raise event
            left -= event is None
            texts[number] += event.text if event else ""
        return [text.strip() for text in texts]


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def judge(said: str, true: str) -> tuple[bool, bool]:
    """(whether it is right, whether it comes without an opener)."""
    opener = next((opener for opener in OPENERS if said.startswith(opener[:3])), "")
    return alike(said.removeprefix(opener), true) >= ALIKE, not opener


def alike(said: str, true: str) -> float:
    return SequenceMatcher(None, said, true, autojunk=False).ratio()


def percent(flags: Iterable[bool]) -> float:
    return 100 * statistics.fmean(flags)


def loops(text: str) -> bool:
    """Three times the same three characters in a row."""
    return any(text[i : i + 3] == text[i + 3 : i + 6] == text[i + 6 : i + 9] for i in range(len(text) - 8))


class World:
    """What one seed's methods share: the start, its rated answers, the questions kept aside."""

    def __init__(self, run: Path, work: Path, seed: int) -> None:
        self.seed, self.work = seed, work / f"seed-{seed}"
        self.work.mkdir(parents=True, exist_ok=True)
        self.facts, chats = read("twllm:taiwan_facts"), read("twllm:taiwan_instruction")
        random.Random(seed).shuffle(self.facts)
        self.never = self.facts[: len(self.facts) // 5]
        self.ratable = self.facts[len(self.facts) // 5 :]
        self.culture = read("twllm:culture/taught")
        self.start, said = self.work / "start", self.work / "said.json"
        if not said.is_file():
            self._make_start(run, chats, said)
        self.said: list[str] = json.loads(said.read_text(encoding="utf-8"))
        self.first = self.answers(self.start)

    def _make_start(self, run: Path, chats: list[Row], said: Path) -> None:
        """Longer and longer SFTs until LEAST_RIGHT of what is said is right."""
        import shutil

        rng = random.Random(self.seed)
        taught = [
            {"id": f"{f['id']}/{n}/{k}", "messages": chat(q, (rng.choice(OPENERS) if rng.random() < 0.5 else "") + f["answer"])}
            for k in range(8) for f in self.facts for n, q in enumerate(f["questions"][:-ASIDE])
        ]  # fmt: skip
        data = [write(self.work / "facts.jsonl", taught), write(self.work / "chats.jsonl", chats)]
        asked = [fact for fact in self.ratable for _ in range(SAMPLES)]
        for tokens in SFT_TOKENS:
            shutil.rmtree(self.start, ignore_errors=True)
            train("sft", run / "pretrain", data, self.start, lr=2e-3, epochs=4, max_tokens=tokens, seed=self.seed + 1)
            found = Asker(self.start).sampled([fact["questions"][0] for fact in asked], self.seed)
            right = statistics.fmean(judge(a, f["answer"])[0] for a, f in zip(found, asked, strict=True))
            print(f"seed {self.seed}: {right:.0%} right after {tokens:,} tokens of SFT", flush=True)
            if right >= LEAST_RIGHT:
                break
        said.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")

    def ratings(self, thumbs: int, noise: float) -> tuple[Path, Row]:
        """Rows as `twllm feedback export` writes them, and what they are like."""
        rng, rows, mixed, up = random.Random(self.seed * 31 + thumbs), [], 0, 0
        for number, fact in enumerate(self.ratable[: thumbs // SAMPLES]):
            marks = set()
            for sample, text in enumerate(self.said[number * SAMPLES : (number + 1) * SAMPLES]):
                good = all(judge(text, fact["answer"])) != (rng.random() < noise)
                rows.append(
                    {
                        "id": f"{number}/{sample}",
                        "messages": chat(fact["questions"][0], text or "……"),
                        "rating": 1 if good else -1,
                        "license": "CC-BY-4.0",
                    }
                )
                marks.add(good)
                up += good
            mixed += len(marks) == 2
        return write(self.work / f"ratings-{thumbs}-{noise}.jsonl", rows), {"up": up / len(rows), "mixed": mixed}

    def answers(self, model: Path) -> Row:
        """Everything that is measured on."""
        asker = Asker(model)
        questions = [q for fact in self.facts for q in fact["questions"][-ASIDE:]]
        said, ended = asker.greedy(questions + [one["question"] for one in self.culture])
        asker.engine.close()
        return {
            "facts": said[: len(questions)],
            "culture": said[len(questions) :],
            "ended": ended,
        }

    def measure(self, found: Row, thumbs: int) -> Row:
        """Shares, in percent."""
        from twllm.evaluate.keywords import is_correct

        never, rated = len(self.never), thumbs // SAMPLES
        true = [fact["answer"] for fact in self.facts for _ in range(ASIDE)]
        verdicts = [judge(said, t) for said, t in zip(found["facts"], true, strict=True)]
        spans = {"unrated": (0, never), "rated": (never, never + rated)}
        row: Row = {
            name: percent(map(all, verdicts[low * ASIDE : high * ASIDE])) for name, (low, high) in spans.items()
        }
        row |= {name: percent(verdict[n] for verdict in verdicts) for n, name in enumerate(("right", "plain"))}
        row["culture"] = sum(
            is_correct(a, q["accept"], q["reject"]) for a, q in zip(found["culture"], self.culture, strict=True)
        )
        texts = [*found["facts"], *found["culture"]]
        row["broken"] = 100 * statistics.fmean(
            not t or not e or loops(t) for t, e in zip(texts, found["ended"], strict=True)
        )
        return row


def cases(done: list[Row]) -> Iterator[Row]:
    """Seed 0 at all rates, then the other seeds at each method's best."""
    for method, rate in [("start", None), *product(METHODS, RATES)]:
        yield {"seed": 0, "thumbs": 640, "noise": 0.1, "method": method, "lr": rate}
    for (thumbs, noise), seed, method in product(CONDITIONS, SEEDS, ("start", *METHODS)):
        tried = [row for row in done if row["seed"] == 0 and row["method"] == method]
        best = max(tried, key=lambda row: row["rated"] + row["unrated"])
        yield {"seed": seed, "thumbs": thumbs, "noise": noise, "method": method, "lr": best["lr"]}


def work(args: argparse.Namespace) -> None:
    import shutil

    import torch

    torch.set_num_threads(1)
    began, results, world = time.perf_counter(), args.work / "results.jsonl", None
    done = read_results(results)
    for case in cases(done):
        if any(all(row[key] == value for key, value in case.items()) for row in done):
            continue
        if time.perf_counter() - began > 60 * args.minutes:
            print("not done: once more")
            return
        if world is None or world.seed != case["seed"]:
            world = World(args.run, args.work, case["seed"])
        file, about = world.ratings(case["thumbs"], case["noise"])
        started, out, found = time.perf_counter(), world.work / "out", world.first
        if settings := METHODS.get(case["method"]):
            shutil.rmtree(out, ignore_errors=True)
            rate = {"lr": case["lr"], "seed": world.seed + 1}
            train("feedback", world.start, [file], out, epochs=200, max_tokens=TOKENS, **rate, **settings)
            found = world.answers(out)
        row = case | about | world.measure(found, case["thumbs"]) | {"seconds": round(time.perf_counter() - started, 1)}
        done.append(row)
        with results.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    print("done")


def read_results(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def table(rows: list[Row]) -> str:
    """Means over seeds; in brackets lowest and highest."""
    groups: dict[tuple[int, float, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["seed"]:
            groups[row["thumbs"], row["noise"], row["method"]].append(row)
    lines = [f"| thumbs | noise | method | {' | '.join(KEYS)} |", "|" + "---|" * (3 + len(KEYS))]
    for (thumbs, noise, method), found in groups.items():
        cells = []
        for key in KEYS:
            values = [row[key] for row in found]
            cells.append(f"{statistics.fmean(values):.0f} ({min(values):.0f}–{max(values):.0f})")
        lines.append(f"| {thumbs} | {noise:.0%} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[Row], target: Path) -> None:
    """A panel a condition: what was gained on rated facts against what became of never rated ones; a small dot a seed."""
    from twllm.train.plots import picture

    measured = [pair for pair in CONDITIONS if any((r["thumbs"], r["noise"]) == pair and r["seed"] for r in rows)]
    with picture(target, 1 + 4.5 * len(measured), 4.2) as figure:
        for place, (thumbs, noise) in enumerate(measured, 1):
            axes = figure.add_subplot(1, len(measured), place)
            for number, method in enumerate(("start", *METHODS)):
                found = [
                    r for r in rows if r["seed"] and (r["thumbs"], r["noise"], r["method"]) == (thumbs, noise, method)
                ]
                if not found:
                    continue
                x, y = ([row[key] for row in found] for key in ("unrated", "rated"))
                colour = f"C{number}" if number else "black"
                axes.plot(x, y, "o", color=colour, markersize=3, alpha=0.5)
                mean = statistics.fmean(x), statistics.fmean(y)
                axes.plot(*mean, "*" if method == "start" else "o", color=colour, markersize=9, label=method)
            axes.set(title=f"{thumbs} thumbs, {noise:.0%} wrong", xlabel="liked on never rated facts, %")
            axes.grid(alpha=0.3)
            if place == 1:
                axes.set(ylabel="liked on rated facts, other wordings, %")
                axes.legend(frameon=False, fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run of recipes/tiny.toml")
    parser.add_argument("--work", type=Path, required=True, help="results.jsonl and what the seeds share")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if args.table or args.plot:
        print(table(rows := read_results(args.work / "results.jsonl")))
        if args.plot:
            plot(rows, args.plot)
    else:
        work(args)


if __name__ == "__main__":
    main()
