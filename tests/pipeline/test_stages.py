"""Stages: exactly the ones that depend on a changed key run again, folders appear whole, `status` explains."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from twllm import artifact
from twllm.artifact import lock
from twllm.errors import UserError
from twllm.pipeline.run import run_recipe, run_status
from twllm.pipeline.stages import build_stages
from twllm.recipe import load_recipe
from twllm.train.config import MachineConfig

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
SMALL = [
    "pretrain.max_tokens=3000",
    "sft.max_tokens=3000",
    "feedback.max_tokens=2000",
    "evaluate.limit=3",
    "evaluate.max_new_tokens=4",
    'evaluate.ablations=["no_cpt"]',
    "evaluate.gates={}",
]
MACHINE = MachineConfig(threads=1, tensorboard=False, checkpoint_every_s=1e-9)


def fingerprints(*overrides: str) -> dict[str, str]:
    return {name: stage.fingerprint for name, stage in build_stages(load_recipe(TINY, overrides)).items()}


TRAINED = {"pretrain", "sft", "feedback", "sft-no_cpt", "feedback-no_cpt"}
EVALUATED = {"evaluate-full", "evaluate-no_cpt", "evaluate-no_feedback", "model"}
TOKENS = {"tokens-pretrain", "tokens-sft", "tokens-feedback"}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("corpus.min_chars=21", {"corpus", "tokenizer"} | TOKENS | TRAINED | EVALUATED),
        ("tokenizer.vocab_size=4000", {"tokenizer"} | TOKENS | TRAINED | EVALUATED),
        ("pretrain.lr=1e-3", {"pretrain", "sft", "feedback", "evaluate-full", "evaluate-no_feedback", "model"}),
        ("sft.lr=1e-3", (TRAINED - {"pretrain"}) | EVALUATED),
        ("feedback.epochs=9", {"feedback", "feedback-no_cpt", "evaluate-full", "evaluate-no_cpt", "model"}),
        ("evaluate.limit=7", {"evaluate-full", "evaluate-no_cpt", "evaluate-no_feedback", "model"}),
        ("release.license=mit", {"model"}),
        ("evaluate.batch_size=3", set()),
        ("sft.eval_every=50", set()),
    ],
)
def test_a_changed_key_reruns_exactly_what_depends_on_it(override: str, changed: set[str]) -> None:
    before, after = fingerprints(), fingerprints(override)
    assert {name for name in before if before[name] != after[name]} == changed


def test_outside_files_count_by_content(tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text(
        json.dumps({"id": "1", "question": "臺灣最高的山？", "accept": ["玉山"], "reject": []}, ensure_ascii=False)
        + "\n"
    )
    override = f'evaluate.questions="{questions}"'
    before = fingerprints(override)
    os.utime(questions, (1, 1))
    assert fingerprints(override) == before
    questions.write_text(questions.read_text().replace("玉山", "雪山"))
    after = fingerprints(override)
    assert {name for name in before if before[name] != after[name]} == EVALUATED


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small run of the real recipe."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run_recipe(load_recipe(TINY, SMALL), out, MACHINE)
    return out


def created(out: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in out.glob("*/manifest.json")}


def test_the_report_keeps_the_contract(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text(encoding="utf-8"))
    assert report["culture"]["n"] == 3 == len(report["culture"]["items"])
    assert set(report["culture"]["items"][0]) >= {"id", "question", "answer", "correct"}
    assert set(report["ablations"]) == {"full", "no_cpt"} and report["ablations"]["full"]["n"] == 3
    assert report["wall_s"] > 0 and report["peak_rss_mb"] > 50
    for name in (
        "report.md",
        "loss.png",
        "ablations.png",
        "model/model.safetensors",
        "model/README.md",
        "corpus/funnel.json",
    ):
        assert (finished / name).stat().st_size > 0, name
    manifest = artifact.read_manifest(finished / "sft")
    assert manifest is not None and set(manifest) >= {
        "config",
        "inputs",
        "code_version",
        "metrics",
        "fingerprint",
        "seconds",
    }


def test_the_released_model_loads_in_transformers(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "你好"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model(**ids).logits.shape[-1] == len(tokenizer)


def test_nothing_runs_twice_and_a_change_is_explained(finished: Path, tmp_path: Path) -> None:
    before = created(finished)
    assert {state.state for state in run_status(finished)} == {"done"}
    run_recipe(load_recipe(TINY, SMALL), finished, MACHINE)
    assert created(finished) == before
    edited = tmp_path / "edited.toml"  # the run's own recipe, edited afterwards
    edited.write_text(f'extends = "{os.path.relpath(TINY, tmp_path)}"\n')
    run_recipe(load_recipe(edited, SMALL), finished, MACHINE)
    edited.write_text(edited.read_text() + "[feedback]\nlr = 4e-4\n")
    states = {state.name: state for state in run_status(finished)}
    assert states["feedback"].state == "stale" and "→ 0.0004" in states["feedback"].detail
    assert states["sft"].state == "done" and states["evaluate-full"].state == "stale"
    run_recipe(load_recipe(edited, SMALL), finished, MACHINE)
    again = {name for name, moment in created(finished).items() if moment != before[name]}
    assert again == {"feedback", "feedback-no_cpt", "evaluate-full", "evaluate-no_cpt", "model"}


def test_two_processes_may_not_share_a_folder(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from twllm.artifact import lock\nwith lock(Path({str(tmp_path)!r})): print('in', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        with pytest.raises(UserError, match="folder is in use"), lock(tmp_path):
            pass
        other.kill()
    with lock(tmp_path):
        pass


def test_a_look_at_the_lock_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    with (tmp_path / ".lock").open("a") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr(artifact.time, "sleep", lambda seconds: fcntl.flock(looking, fcntl.LOCK_UN))
        with lock(tmp_path):
            pass


def test_weights_have_the_rights_of_other_files(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    before = os.umask(0o027)
    try:
        with artifact.write_folder(tmp_path / "model") as folder:
            save_file({"x": np.zeros(3, np.float32)}, folder / "model.safetensors")
            (folder / "adapter").mkdir()
            save_file({"x": np.zeros(3, np.float32)}, folder / "adapter" / "adapter.safetensors")
            (folder / "config.json").write_text("{}")
    finally:
        os.umask(before)
    files = [file for file in (tmp_path / "model").rglob("*") if file.is_file()]
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o640"} and len(files) == 3


def test_folders_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "stage"
    with pytest.raises(RuntimeError), artifact.write_folder(target) as folder:
        (folder / "half").write_text("x")
        assert not target.exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with artifact.write_folder(target) as folder:
        artifact.write_manifest(folder, "stage", {}, {})
    with artifact.write_folder(target) as folder:
        (folder / "b").write_text("2")
    assert [p.name for p in target.iterdir()] == ["b"] and [p.name for p in tmp_path.iterdir()] == ["stage"]


@pytest.mark.parametrize("name", ["folder", "file"])
def test_what_is_not_ours_is_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("三年的心血")
    (tmp_path / "file").write_text("三年的心血")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="not made by twllm"), artifact.write_folder(tmp_path / name):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_status_and_rerun_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("玉山是臺灣最高的山。", encoding="utf-8")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        TINY.read_text(encoding="utf-8") + '\n[[corpus.sources]]\npath = "text"\nlicense = "x"\n', encoding="utf-8"
    )
    prints = []
    for folder, name in ((tmp_path, "r.toml"), (tmp_path.parent, recipe)):
        monkeypatch.chdir(folder)
        prints.append({n: s.fingerprint for n, s in build_stages(load_recipe(name)).items()})
    assert prints[0] == prints[1]


def test_folders_of_an_earlier_recipe_are_not_in_the_report(finished: Path) -> None:
    from twllm.pipeline.report import collect

    loaded = load_recipe(TINY, [*SMALL, "evaluate.ablations=[]"])
    report = collect(loaded.recipe, finished, list(build_stages(loaded)))
    assert set(report["ablations"]) == {"full"} and "sft-no_cpt" not in report["stages"]


def test_a_changed_tokenizer_of_the_base_model_is_seen(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    overrides = ["tokenizer.method=keep", "pretrain.context=64", "sft.context=64", "feedback.context=64"]
    recipe = tmp_path / "r.toml"
    text = TINY.read_text(encoding="utf-8").replace('size = "tiny"', 'model = "base"')
    recipe.write_text(text, encoding="utf-8")
    before = build_stages(load_recipe(recipe, overrides))["tokenizer"].fingerprint
    (base / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    assert build_stages(load_recipe(recipe, overrides))["tokenizer"].fingerprint != before


def test_a_full_disk_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="no space left"), artifact.write_folder(tmp_path / "stage") as folder:
        (folder / "a").write_text("1")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="no space left"):
        artifact.write_json(tmp_path / "x.json", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_kill_nine_at_random_moments(finished: Path, tmp_path: Path) -> None:
    """A run killed again and again ends with the same bits as one that was left alone."""
    out, machine = tmp_path / "run", tmp_path / "machine.toml"
    machine.write_text("threads = 1\ntensorboard = false\ncheckpoint_every_s = 0.05\n")
    overrides = [part for override in [*SMALL, "sft.max_tokens=20000"] for part in ("--set", override)]
    command = [
        sys.executable,
        "-m",
        "twllm.cli",
        "run",
        str(TINY),
        "--out",
        str(out),
        "--machine",
        str(machine),
        *overrides,
    ]
    rng, kills, started = random.Random(11), 0, time.monotonic()
    while time.monotonic() - started < 240:
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                _, log = process.communicate(timeout=rng.uniform(2.5, 6) if kills < 10 else 200)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                for manifest in out.glob("*/manifest.json"):
                    json.loads(manifest.read_text(encoding="utf-8"))  # what is visible is whole
                continue
        assert process.returncode == 0, log
        break
    assert kills >= 3, "the run ended before it could be killed often enough"
    whole = tmp_path / "whole"
    run_recipe(load_recipe(TINY, [*SMALL, "sft.max_tokens=20000"]), whole, MACHINE)
    for stage in ("pretrain", "sft", "feedback", "model"):
        manifests = [artifact.read_manifest(folder / stage) for folder in (out, whole)]
        prints = [m["metrics"]["weights_fingerprint"] for m in manifests if m]
        assert len(prints) == 2 and prints[0] == prints[1], stage
    assert not list(out.glob(".*.partial-*"))


@pytest.mark.parametrize(("number", "said"), [(28, "no space left"), (122, "no space left"), (27, "file too large")])
def test_a_disk_that_takes_no_more_is_told_whoever_writes(number: int, said: str, tmp_path: Path) -> None:
    """A full disk, a quota, FAT32's 4 GB: as Python says it, and as safetensors does."""
    for error in (OSError(number, "x"), RuntimeError(f"Error while serializing: I/O error: x (os error {number})")):
        with pytest.raises(UserError, match=said), artifact.explain_os_errors(tmp_path):
            raise error
