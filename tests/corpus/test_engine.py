"""The engine: the same bytes however it is run, killed or resumed; global steps; errors of tasks elsewhere."""

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from twllm.corpus.build import build_corpus, build_folder, work_beside
from twllm.corpus.config import CorpusConfig, CorpusSource
from twllm.corpus.document import Document
from twllm.corpus.engine import load_job, plan_job
from twllm.corpus.executors import raise_first_error
from twllm.corpus.global_step import GlobalStep, write_drops
from twllm.corpus.store import read_documents
from twllm.errors import UserError

LINE = "第 {} 攤的蚵仔煎要排隊二十分鐘，老闆說：「慢慢來，比較快！」"


@pytest.fixture
def config(tmp_path: Path) -> CorpusConfig:
    """Four parts of two sources; copies within a part, across parts and across sources; short texts."""
    for name, start in (("a/0", 0), ("a/1", 20), ("a/2", 35), ("b/0", 10)):
        rows = [
            {"id": f"{name}-{n}", "text": LINE.format(n), "url": f"https://h{n % 3}.tw/{n}"}
            for n in range(start, start + 30)
        ]
        rows += [{"text": "短", "id": f"{name}-短"}, rows[0] | {"id": f"{name}-again"}]
        (tmp_path / name).parent.mkdir(exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    sources = tuple(CorpusSource(path=str(tmp_path / name), license="CC0-1.0") for name in "ab")
    return CorpusConfig(
        sources=sources, steps=("normalize", "quality", "dedup"), part_mb=1e-6, held_out=0.1, samples_per_reason=3
    )


def digests(folder: Path) -> dict[str, str]:
    """Of all files but the manifest, which has the time in it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_dedup_keeps_the_first_over_all_parts(config: CorpusConfig, tmp_path: Path) -> None:
    facts = build_folder(config, tmp_path / "out")
    assert facts and facts["dropped"] == {"duplicate": 4 + 10 + 15 + 30, "too_short": 4}
    kept = [d.id for part in ("documents", "held_out") for d in read_documents(tmp_path / "out", part)]
    assert sorted(kept) == sorted(
        [f"a/a/0-{n}" for n in range(30)]
        + [f"a/a/1-{n}" for n in range(30, 50)]
        + [f"a/a/2-{n}" for n in range(50, 65)]
    )
    assert not work_beside(tmp_path / "out").exists()


def test_parts_do_not_change_the_documents(config: CorpusConfig, tmp_path: Path) -> None:
    build_folder(config, tmp_path / "parts")
    build_folder(config.model_copy(update={"part_mb": 64.0}), tmp_path / "whole")
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")


def test_two_processes_give_the_same_bytes(config: CorpusConfig, tmp_path: Path) -> None:
    build_folder(config, tmp_path / "one")
    build_folder(config, tmp_path / "two", workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_written_in_shards(config: CorpusConfig, tmp_path: Path) -> None:
    build_folder(config, tmp_path / "one")
    build_folder(config.model_copy(update={"write": "shards"}), tmp_path / "shards")
    names = sorted(path.name for path in (tmp_path / "shards" / "documents").iterdir())
    assert names[0] == "00000.jsonl.zst" and len(names) >= 3
    assert list(read_documents(tmp_path / "shards")) == list(read_documents(tmp_path / "one"))
    assert digests(tmp_path / "one")["held_out.jsonl.zst"] == digests(tmp_path / "shards")["held_out.jsonl.zst"]
    again = CorpusConfig(sources=(CorpusSource(path=str(tmp_path / "shards"), name="again"),), steps=(), held_out=0)
    assert build_corpus(again, _new(tmp_path / "again"))["documents"] == len(list(read_documents(tmp_path / "one")))


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


KILLER = """
import json, os, signal, sys
from pathlib import Path
from twllm.corpus import build, engine, store
from twllm.corpus.config import CorpusConfig
point, number, config, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
left = [number]
def dying(function):
    def run(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return run
owner, name = {
    "write": (store.DocumentWriter, "write"), "map": (engine.Worker, "_map"), "report": (engine, "write_json"),
    "decide": (engine, "make_global"), "funnel": (build, "write_funnel"), "parts": (build._Lines, "write"),
    "manifest": (build, "input_hashes"),
}[point]
setattr(owner, name, dying(getattr(owner, name)))
build.build_folder(CorpusConfig.model_validate_json(config), Path(out))
"""


def test_kill_9_anywhere_and_the_same_bytes(config: CorpusConfig, tmp_path: Path) -> None:
    build_folder(config, tmp_path / "whole")
    out, work = tmp_path / "out", work_beside(tmp_path / "out")
    done: dict[str, int] = {}
    for point, number in (
        ("write", 45),
        ("report", 3),
        ("write", 35),
        ("map", 1),
        ("parts", 2),
        ("funnel", 0),
        ("manifest", 0),
    ):
        command = [sys.executable, "-c", KILLER, point, str(number), config.model_dump_json(), str(out)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == -signal.SIGKILL, (point, found.stderr)
        assert not out.exists()
        now = {
            path.relative_to(work).as_posix(): path.stat().st_mtime_ns for path in work.glob("*-?/*") if path.is_dir()
        }
        assert done.items() <= now.items()  # what was finished was not done again
        done = {name: time for name, time in now.items() if not name.rpartition("/")[2].startswith(".")}
    assert len(done) == 4 + 2 + 4
    build_folder(config, out)
    assert digests(out) == digests(tmp_path / "whole")
    assert not list(tmp_path.glob(".out*"))


def test_a_mended_file_does_not_undo_the_others(config: CorpusConfig, tmp_path: Path) -> None:
    broken = tmp_path / "a" / "1.jsonl"
    good = broken.read_text(encoding="utf-8")
    broken.write_text("{\n" + good, encoding="utf-8")
    with pytest.raises(UserError, match="broken JSON line"):
        build_folder(config, tmp_path / "out")
    first = work_beside(tmp_path / "out") / "map-0" / "00000"
    before = first.stat().st_mtime_ns
    broken.write_text(good, encoding="utf-8")
    plan_job(config, work_beside(tmp_path / "out"))
    assert first.stat().st_mtime_ns == before
    plan_job(config.model_copy(update={"min_chars": 5}), work_beside(tmp_path / "out"))
    assert not first.exists()
    build_folder(config, tmp_path / "out")
    build_folder(config, tmp_path / "fresh")
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_an_error_in_another_process_is_told_here(config: CorpusConfig, tmp_path: Path) -> None:
    from twllm.corpus.trove import phase_step

    with (tmp_path / "a" / "2.jsonl").open("a", encoding="utf-8") as lines:
        lines.write("{broken\n")
    job = plan_job(config, tmp_path / "work")
    assert load_job(tmp_path / "work") == job
    for rank in range(4):
        phase_step(job, job.phases[0]).run(None, rank, 4)
    assert [job.done(job.phases[0], task) for task in range(4)] == [True, True, False, True]
    with pytest.raises(UserError) as error:
        raise_first_error(job)
    assert error.value.where.endswith("a/2.jsonl:33")
    with pytest.raises(UserError):
        phase_step(job, job.phases[0], strict=True).run(None, 2, 4)


def test_a_source_can_skip_steps(config: CorpusConfig, tmp_path: Path) -> None:
    """A replay source in English: neither its copies nor its short texts are looked at by the steps it skips."""
    skipping = config.sources[1].model_copy(update={"skip_steps": ("quality", "dedup")})
    facts = build_folder(config.model_copy(update={"sources": (config.sources[0], skipping)}), tmp_path / "out")
    assert facts and facts["sources"]["b"]["kept_documents"] == 32
    assert facts["sources"]["a"]["kept_documents"] == 65


class Longest(GlobalStep):
    """Keeps the longest text of the whole corpus; two tasks decide, each for half of the parts."""

    name, parts = "longest", 2

    def __init__(self, config: CorpusConfig) -> None:
        pass

    def scan(self, documents: Iterable[Document], folder: Path) -> Iterator[Document]:
        sizes = []
        for document in documents:
            sizes.append(len(document.text))
            yield document
        (folder / "sizes.json").write_text(json.dumps(sizes))

    def decide(self, scans: Sequence[Path], out: Path, part: int) -> None:
        sizes = [json.loads((scan / "sizes.json").read_text()) for scan in scans]
        best = max(map(max, sizes))
        for number in range(part, len(scans), self.parts):
            write_drops(out, number, ((n, "shorter", str(size)) for n, size in enumerate(sizes[number]) if size < best))

    def conclude(self, scans: Sequence[Path], out: Path) -> None:
        (out / "parts.txt").write_text(" ".join(path.name for path in sorted(out.glob("*.drops.jsonl"))))

    def publish(self, out: Path, folder: Path) -> dict[str, Any]:
        shutil.copy(out / "parts.txt", folder / "parts.txt")
        return {"longest": "told"}


def test_a_global_step_of_ones_own(config: CorpusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from twllm.corpus import steps

    steps.names()
    monkeypatch.setitem(steps._GLOBAL, "longest", Longest)
    monkeypatch.setattr(steps, "names", lambda: ("dedup", "longest", "normalize", "quality"))
    own = config.model_copy(update={"steps": ("longest", "normalize", "dedup", "quality"), "held_out": 0.0})
    facts = build_folder(own, tmp_path / "out")
    assert facts and facts["longest"] == "told"
    assert (tmp_path / "out" / "parts.txt").read_text().count(".drops.jsonl") == 4
    kept = list(read_documents(tmp_path / "out"))
    assert {len(document.text) for document in kept} == {len(LINE.format(10))}
    assert {document.history for document in kept} == {("longest", "normalize", "dedup", "quality")}
    stages = json.loads((tmp_path / "out" / "funnel.json").read_text(encoding="utf-8"))["stages"]
    assert [stage["stage"] for stage in stages] == ["read", "longest", "normalize", "dedup", "quality"]


FAKE_SBATCH = """#!{python}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(" ".join(sys.argv[1:-1]) + "\\n" + script + "\\n=====\\n")
if os.environ.get("FAKE_RUN") and "merge_stats" not in script:
    last = int(re.search(r"--array=0-(\\d+)", script)[1])
    for task in range(last + 1):
        more = {{"SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "n1", "RUN_OFFSET": "0"}}
        subprocess.run(["bash", sys.argv[-1]], env=os.environ | more, check=True, stdout=2)
print("Submitted batch job", sum(line == "=====\\n" for line in open(os.environ["FAKE_LOG"])))
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm made of scripts: jobs run at once, one after the other, where FAKE_RUN is set. Returns its log."""
    scripts = {
        "sbatch": FAKE_SBATCH.format(python=sys.executable),
        "srun": '#!/bin/bash\nwhile [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done\nexec "$@"\n',
        "scontrol": "#!/bin/bash\necho n1\n",
    }
    folder = _new(tmp_path / "bin")
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "sbatch.log"))
    return tmp_path / "sbatch.log"


def test_slurm_chain(config: CorpusConfig, tmp_path: Path, cluster: Path) -> None:
    settings = {"partition": "cpu", "time": "01:00:00", "mem_per_cpu_gb": 4}
    assert build_folder(config, tmp_path / "out", 3, "slurm", settings) is None
    jobs = [job for job in cluster.read_text().split("\n=====\n") if "launch_pickled_pipeline" in job]
    names = [line for job in jobs for line in job.splitlines() if "--job-name" in line]
    assert [name.rpartition("=")[2] for name in names] == [
        "corpus-map-0", "corpus-decide-0", "corpus-conclude-0", "corpus-map-1", "corpus-finish",
    ]  # fmt: skip
    assert "--array=0-3%3" in jobs[0] and "--partition=cpu" in jobs[0] and "--mem-per-cpu=4G" in jobs[0]
    assert all("--dependency=afterok:" in job.splitlines()[0] for job in jobs[1:])
    with pytest.raises(UserError, match="unknown setting") as error:
        build_folder(config, tmp_path / "out", 1, "slurm", {"partitoin": "cpu"})
    assert "partition" in error.value.fix
    with pytest.raises(UserError, match="no partition"):
        build_folder(config, tmp_path / "out", 1, "slurm", {})


@pytest.mark.slow
def test_slurm_runs(config: CorpusConfig, tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_RUN", "1")
    build_folder(config, tmp_path / "out", 1, "slurm", {"partition": "cpu"})
    build_folder(config, tmp_path / "here")
    assert digests(tmp_path / "out") == digests(tmp_path / "here")
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.slow
def test_ray_runs(config: CorpusConfig, tmp_path: Path) -> None:
    """On a cluster of one machine, in a process of its own: Ray leaves threads and warnings behind."""
    pytest.importorskip("ray", reason="extra `ray`")
    code = (
        "import sys; from pathlib import Path; from twllm.corpus.build import build_folder\n"
        "from twllm.corpus.config import CorpusConfig\n"
        "build_folder(CorpusConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), 2, 'ray')\n"
    )
    command = [sys.executable, "-c", code, config.model_dump_json(), str(tmp_path / "ray")]
    subprocess.run(command, check=True, env=os.environ | {"RAY_AUTH_MODE": "disabled"})
    build_folder(config, tmp_path / "here")
    assert digests(tmp_path / "ray") == digests(tmp_path / "here")
