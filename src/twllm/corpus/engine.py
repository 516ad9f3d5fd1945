"""The engine of a corpus build: parts × phases in a work folder, each finished task a folder that appeared in one rename.

The steps are cut at the global ones. `map 0` reads each part and takes it through the steps before the first global step;
`decide 0` looks at what the scans of all parts left; `map 1` applies the decision and goes on, and so forth. The last
map splits off the candidates of the held-out part. A task whose folder is there is not run again, so a build that was
killed goes on where it was, and the bytes are the same: a task depends on its part and on finished phases only. Price:
the documents are written once a phase (Zstandard, about a quarter of their JSON) and deleted at the end.
How tasks are run (here, in processes, by Slurm, by Ray) is executors.py's.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from twllm.artifact import fingerprint, hash_path, write_folder, write_json
from twllm.corpus.config import CorpusConfig
from twllm.corpus.document import Document, Dropped
from twllm.corpus.files import OUTPUT, OnBytes
from twllm.corpus.funnel import Funnel, estimate_tokens
from twllm.corpus.global_step import GlobalStep
from twllm.corpus.read import Reading
from twllm.corpus.sources import Part, plan_source, read_part
from twllm.corpus.steps import Step, is_global, make_global, make_step
from twllm.corpus.store import open_writer, read_document_file
from twllm.corpus.takedown import Takedown, read_takedown

PLAN = "plan.json"
CANDIDATES = "candidates.jsonl.zst"
REPORT = "report.json"


@dataclass(frozen=True)
class Segment:
    """Steps that a part goes through in one task, and the global step behind them."""

    steps: tuple[str, ...]
    then: str | None


@dataclass(frozen=True)
class Phase:
    """`tasks` tasks that may run side by side; the next phase needs all of them."""

    kind: str  # map, decide, conclude
    segment: int
    tasks: int

    @property
    def name(self) -> str:
        """Such as `map-0`."""
        return f"{self.kind}-{self.segment}"


@dataclass(frozen=True)
class Listener:
    """Who wants to hear of progress in this process."""

    on_bytes: OnBytes = lambda _: None
    on_document: Callable[[], None] = lambda: None
    on_phase: Callable[[], None] = lambda: None  # the documents are counted anew


@dataclass(frozen=True)
class Job:
    """One build: its settings, its work folder, its parts as (number of the source, part)."""

    config: CorpusConfig
    work: Path
    parts: tuple[tuple[int, Part], ...]

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The steps, cut behind each global one."""
        found, steps = [], list[str]()
        for name in self.config.steps:
            if is_global(name):
                found.append(Segment(tuple(steps), name))
                steps = []
            else:
                steps.append(name)
        return (*found, Segment(tuple(steps), None))

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """All phases in order."""
        found: list[Phase] = []
        for number, segment in enumerate(self.segments):
            found.append(Phase("map", number, len(self.parts)))
            if segment.then:
                found.append(Phase("decide", number, make_global(segment.then, self.config).parts))
                found.append(Phase("conclude", number, 1))
        return tuple(found)

    def folder(self, phase: Phase, task: int) -> Path:
        """Where a task's result appears."""
        if phase.kind == "map":
            return self.work / phase.name / f"{task:05}"
        name = "decided" if phase.kind == "conclude" else f"task-{task:05}"
        return self.work / f"decide-{phase.segment}" / name

    def decided(self, segment: int) -> Path:
        """Where the decision of a segment's global step lies."""
        return self.folder(Phase("conclude", segment, 1), 0)

    def map_folders(self, segment: int) -> list[Path]:
        """The results of a map phase, part after part."""
        return [self.folder(Phase("map", segment, 0), number) for number in range(len(self.parts))]

    def done(self, phase: Phase, task: int) -> bool:
        """Whether a task is finished."""
        return self.folder(phase, task).is_dir()


def plan_job(config: CorpusConfig, work: Path) -> Job:
    """The job of a config in a work folder; what another config, input or code version left there is removed.

    Raises:
        UserError: a source is not there.
    """
    work.mkdir(parents=True, exist_ok=True)
    read_takedown(config.takedown)
    part_bytes = int(config.part_mb * 2**20)
    parts = tuple((n, part) for n, source in enumerate(config.sources) for part in plan_source(source, part_bytes))
    beside = [hash_path(path) for path in (config.takedown, *_local(config.decontaminate_against)) if path]
    settings = config.model_dump(mode="json")
    rows = [[number, part.to_row()] for number, part in parts]
    mark = fingerprint([settings, beside, code_hash()])
    plan = {"fingerprint": mark, "config": settings, "parts": json.loads(json.dumps(rows))}
    old = json.loads((work / PLAN).read_text(encoding="utf-8")) if (work / PLAN).is_file() else None
    if old != plan:
        _discard(work, old, plan)
        write_json(work / PLAN, plan)
    return Job(config, work, parts)


def code_hash() -> str:
    """Of the code that makes the documents: this folder's."""
    return fingerprint([hash_path(file) for file in sorted(Path(__file__).parent.rglob("*.py"))])


def _discard(work: Path, old: dict[str, Any] | None, plan: dict[str, Any]) -> None:
    """Remove what was made for another plan: all but the first map of parts that are the same as before."""
    same = set[str]()
    if old and old["fingerprint"] == plan["fingerprint"]:
        pairs = enumerate(zip(old["parts"], plan["parts"], strict=False))
        same = {f"{number:05}" for number, (before, now) in pairs if before == now}
    for left in work.iterdir():
        if left.name == "map-0":
            for task in left.iterdir():
                if task.name not in same:
                    shutil.rmtree(task)
        elif left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def _local(paths: Iterable[str]) -> list[Path]:
    from twllm import data

    return [data.resolve(path) for path in paths if data.resolve(path).exists()]


def load_job(work: Path) -> Job:
    """The job that was planned in a work folder: what a task in another process runs."""
    plan = json.loads((work / PLAN).read_text(encoding="utf-8"))
    parts = tuple((number, Part.from_row(row)) for number, row in plan["parts"])
    return Job(CorpusConfig.model_validate_json(json.dumps(plan["config"])), work, parts)


def held_out_place(document_id: str, seed: int) -> float:
    """Where a document falls in [0, 1): below `held_out` it is a candidate for the held-out part."""
    digest = hashlib.blake2b(f"{seed}\0{document_id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


@dataclass
class Worker:
    """Runs tasks of one job in this process; steps are built once."""

    job: Job
    listener: Listener = Listener()
    _steps: dict[str, Step] = field(default_factory=dict)
    _globals: dict[str, GlobalStep] = field(default_factory=dict)

    @cached_property
    def takedown(self) -> Takedown:
        """What must not be in the corpus."""
        return read_takedown(self.job.config.takedown)

    @cached_property
    def count_tokens(self) -> Callable[[str], int]:
        """The funnel's counter of tokens."""
        return token_counter(self.job.config.count_tokens)

    def step(self, name: str) -> Step:
        """A step of this job."""
        if name not in self._steps:
            self._steps[name] = make_step(name, self.job.config)
        return self._steps[name]

    def whole(self, name: str) -> GlobalStep:
        """A global step of this job."""
        if name not in self._globals:
            self._globals[name] = make_global(name, self.job.config)
        return self._globals[name]

    def run(self, phase: Phase, task: int) -> None:
        """Run a task, unless it is finished.

        Raises:
            UserError: the input is bad, or the disk is full.
        """
        if self.job.done(phase, task):
            return
        with write_folder(self.job.folder(phase, task)) as folder:
            if phase.kind == "map":
                self._map(phase.segment, task, folder)
                return
            name = self.job.segments[phase.segment].then
            assert name
            scans = [found / "scan" for found in self.job.map_folders(phase.segment)]
            if phase.kind == "decide":
                self.whole(name).decide(scans, folder, task)
                return
            for number in range(self.whole(name).parts):
                shutil.copytree(self.job.folder(Phase("decide", phase.segment, 0), number), folder, dirs_exist_ok=True)
            self.whole(name).conclude(scans, folder)

    # -- map ----------------------------------------------------------------------------------------------------

    def _map(self, segment: int, number: int, folder: Path) -> None:
        config, (source_number, part) = self.job.config, self.job.parts[number]
        source = config.sources[source_number]
        funnel = Funnel(config.samples_per_reason, config.seed, self.count_tokens)
        gone = Counter[str]()
        if segment == 0:
            documents = funnel.follow("read", self._read(part, source_number, gone))
        else:
            documents = self._resume(segment, number, funnel, source.skip_steps)
        steps, then = self.job.segments[segment].steps, self.job.segments[segment].then
        for name in steps:
            documents = funnel.follow(name, documents if name in source.skip_steps else self.step(name)(documents))
        if then:
            (folder / "scan").mkdir()
            if then in source.skip_steps:
                list(self.whole(then).scan(iter(()), folder / "scan"))
            else:
                documents = self.whole(then).scan(documents, folder / "scan")
        more = self._write(documents, folder, split=then is None)
        write_json(folder / REPORT, {"funnel": funnel.to_state(), "taken_down": sum(gone.values()), **more})

    def _read(self, part: Part, source_number: int, gone: Counter[str]) -> Iterator[Document | Dropped]:
        config = self.job.config
        source = config.sources[source_number]
        broken = source.on_broken or config.on_broken
        reading = Reading(
            source,
            skip_broken=broken == "skip" or (broken == "auto" and part.web),
            on_bytes=self.listener.on_bytes,
            max_bytes=int(config.max_document_mb * 2**20),
            max_seconds=config.max_document_seconds,
            takedown=self.takedown if config.takedown else None,
            on_takedown=lambda document: gone.update([document.id]),
        )
        return read_part(part, reading)

    def _resume(self, segment: int, number: int, funnel: Funnel, skipped: tuple[str, ...]) -> Iterator[Document]:
        before = self.job.segments[segment - 1].then
        assert before
        documents = read_document_file(self.job.map_folders(segment - 1)[number] / OUTPUT)
        if before in skipped:
            return funnel.follow(before, documents)
        return funnel.follow(before, self.whole(before).apply(documents, self.job.decided(segment - 1), number))

    def _write(self, documents: Iterable[Document], folder: Path, split: bool) -> dict[str, Any]:
        """The documents; in the last map, with the held-out candidates apart and what the summary needs of each kind."""
        config, places, licenses = self.job.config, list[tuple[float, int]](), Counter[str]()
        chars = 0
        with ExitStack() as open_files:
            kept = open_files.enter_context(open_writer(folder / OUTPUT))
            waiting = open_files.enter_context(open_writer(folder / CANDIDATES)) if split else None
            for document in documents:
                place = held_out_place(document.id, config.seed) if waiting else 1.0
                if waiting and place < config.held_out:
                    waiting.write(document)
                    places.append((place, len(document.text)))
                else:
                    kept.write(document)
                    chars += len(document.text)
                licenses[document.license] += 1
                self.listener.on_document()
        if not split:
            return {}
        return {"documents": kept.documents, "chars": chars, "candidates": places, "licenses": licenses}


def token_counter(tokenizer: str | None) -> Callable[[str], int]:
    """Exact with a tokenizer folder, else the estimate.

    Raises:
        UserError: there is no tokenizer.json.
    """
    if tokenizer is None:
        return estimate_tokens
    from tokenizers import Tokenizer

    from twllm.errors import require_file

    folder = Path(tokenizer)
    file = require_file(folder if folder.is_file() else folder / "tokenizer.json", "找不到分詞器 (no tokenizer.json)")
    pieces = Tokenizer.from_file(str(file))
    return lambda text: len(pieces.encode(text, add_special_tokens=False).ids)
