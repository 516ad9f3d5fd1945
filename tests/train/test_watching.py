"""What stands beside the loop: alarms name the planted document, samples disturb nothing, views and trackers show the run."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from twllm.cli import app
from twllm.errors import UserError
from twllm.model.build import load, weights_fingerprint
from twllm.tokens.shards import TokenShard, write_shard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.alarms import SpikeDetector, guilty, robust_z
from twllm.train.config import MachineConfig, PretrainConfig
from twllm.train.data import PackedData
from twllm.train.live import View, clock, draw, facts_line, sparkline
from twllm.train.loop import Trainer
from twllm.train.observer import Observer, keep_logs, model_flops_per_token
from twllm.train.plots import plot_training
from twllm.train.rows import read_rows
from twllm.train.trackers import Trackers, open_trackers
from twllm.train.watch import Watcher
from twllm.train.watch_config import WatchConfig

MACHINE = MachineConfig(threads=1, precision="fp32", tensorboard=False, device="cpu", compile="off")
Make = Callable[..., Trainer]


def pattern_documents(count: int) -> list[tuple[str, list[int], None]]:
    """Texts that are soon learned: counting up from a random place."""
    rng = np.random.default_rng(3)
    return [(f"文件{i}", [(s + k) % 40 + 20 for k in range(int(rng.integers(20, 60)))], None) for i, s in enumerate(rng.integers(0, 40, count))]  # fmt: skip


@pytest.fixture
def make(tiny_checkpoint: Path, tmp_path: Path) -> Make:
    """A trainer with an observer on learnable documents; `bad` puts noise in as the last one."""

    def build(name: str, bad: bool = False, watch: dict[str, object] | None = None, steps: int = 60) -> Trainer:
        documents = pattern_documents(200)
        if bad:
            documents[150] = ("壞文件", np.random.default_rng(9).integers(60, 300, 60).tolist(), None)
        folder = tmp_path / f"shard-{bad}"
        if not folder.exists():
            write_shard(folder, documents, 300)
        config = PretrainConfig(lr=5e-3, batch_tokens=256, context=64, max_tokens=256 * steps, epochs=3, seed=5)
        data = PackedData([TokenShard(folder)], [1.0], 64, 5)
        trainer = Trainer("pretrain", load(tiny_checkpoint), data, config, MACHINE, tmp_path / name)
        tokenizer = ChatTokenizer.load(tiny_checkpoint)
        settings = WatchConfig.model_validate(watch or {})
        trainer.observer = Observer(trainer, tokenizer, settings, chat=False, alarms=True, peak_tflops=0.01)
        return trainer

    return build


def test_planted_document_is_named_and_a_clean_run_is_quiet(make: Make, tmp_path: Path) -> None:
    make("clean").run()
    assert read_rows(tmp_path / "clean" / "alarms.jsonl") == []
    make("bad", bad=True).run()
    alarms = read_rows(tmp_path / "bad" / "alarms.jsonl")
    assert alarms and all(alarm["documents"][0]["document"] == "壞文件" for alarm in alarms)
    first = alarms[0]
    assert first["documents"][0]["shard"] == "shard-True" and first["documents"][0]["loss"] > first["usual"] + 1
    assert [d["document"] for d in first["documents"]] == ["壞文件"]


def test_watching_leaves_the_weights_alone(make: Make, tmp_path: Path) -> None:
    plain = make("plain", bad=True, watch={"alarms": False}, steps=30)
    plain.run()
    watched = make("watched", bad=True, watch={"prompts": ["台灣"], "sample_every": 7, "sample_tokens": 5}, steps=30)
    watched.run()
    assert weights_fingerprint(plain.model.state_dict()) == weights_fingerprint(watched.model.state_dict())
    samples = read_rows(tmp_path / "watched" / "samples.jsonl")
    assert [row["step"] for row in samples] == [7, 14, 21, 28] and all(row["prompt"] == "台灣" for row in samples)
    assert read_rows(tmp_path / "watched" / "metrics.jsonl")[-1]["mfu"] > 0


def test_samples_are_what_the_model_would_say(make: Make, tiny_checkpoint: Path) -> None:
    trainer = make("said", watch={"prompts": ["台灣是", "a"], "sample_every": 1, "sample_tokens": 6})
    assert trainer.observer and trainer.observer.sampler
    said = trainer.observer.sampler.answers(trainer.model, trainer.machine)
    model, tokenizer = load(tiny_checkpoint), ChatTokenizer.load(tiny_checkpoint)
    for prompt, answer in zip(("台灣是", "a"), said, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt, bos=True)])
        for _ in range(6):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
        new = ids[0, -6:].tolist()
        ended = new.index(tokenizer.eos_id) if tokenizer.eos_id in new else len(new)
        assert answer == tokenizer.decode(new[:ended])


def test_resume_cuts_what_was_lost(make: Make, tmp_path: Path) -> None:
    trainer = make("resumed", watch={"prompts": ["台灣"], "sample_every": 1, "sample_tokens": 1})
    (tmp_path / "resumed").mkdir()
    for name in ("samples.jsonl", "alarms.jsonl"):
        (tmp_path / "resumed" / name).write_text('{"step": 3}\n{"step": 9}\n{"st', encoding="utf-8")
    (tmp_path / "resumed" / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, "loss": 2.0, "grad_norm": 1.0}) + "\n" for s in range(12))
    )
    assert trainer.observer and trainer.observer.detector
    trainer.observer.begin(5)
    assert [row["step"] for row in read_rows(tmp_path / "resumed" / "samples.jsonl")] == [3]
    assert [row["step"] for row in read_rows(tmp_path / "resumed" / "alarms.jsonl")] == [3]
    assert list(trainer.observer.detector.losses) == [2.0] * 5


def test_scores() -> None:
    detector = SpikeDetector(8.0)
    detector.remember([9.0] * 19, 1.0)
    assert detector.score([100.0], 1.0) == (0.0, 0.0)  # not enough is known
    rng = np.random.default_rng(1)
    falling = SpikeDetector(8.0)
    for step in range(400):  # a loss that falls fast and swings by a tenth never jumps
        losses = [(2 + 6 * np.exp(-step / 40)) * (1 + 0.1 * rng.standard_normal()) for _ in range(2)]
        norm = float(np.exp(0.4 * rng.standard_normal()))
        assert not falling.jumps(falling.score(losses, norm))
        falling.remember(losses, norm)
    assert falling.jumps(falling.score([2.0, 9.0], 1.0)) and not falling.jumps(falling.score([0.1, 0.2], 1e-9))
    assert robust_z(3.0, [3.0, 3.0]) == 0
    assert guilty([(1, 9.0, 30), (2, 3.0, 30)], [3.0, 3.1, 2.9, 3.0]) == [(1, 9.0, 30)]


def test_view_in_a_terminal_and_from_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    work = tmp_path / "run" / ".work" / "sft-0123456789abcdef"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Watcher(work, "sft", 0, 40, False, flops_per_token=1e6, peak_flops=1e12) as watcher:
        for step in range(1, 21):
            watcher.log(step, 64, loss=9.0 / step, grad_norm=1.0, lr=1e-3)
        watcher.alarm(20, "第 20 步：壞文件")
        watcher.sample(20, ["台灣？"], ["很好"])
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(draw(watcher.view))
    text = console.export_text()
    for part in ("20 / 40", "loss 0.45", "█", "壞文件", "台灣？ → 很好", "tok/s", "GiB", "MFU"):
        assert part in text
    (work / "samples.jsonl").write_text('{"step": 20, "prompt": "台灣？", "answer": "很好"}\n', encoding="utf-8")
    picture = tmp_path / "t.png"
    result = CliRunner().invoke(app, ["train", "watch", str(tmp_path / "run"), "--plot", str(picture)])
    assert result.exit_code == 0 and "20 / 40" in result.output and "很好" in result.output
    assert picture.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="nothing trained"):
        CliRunner().invoke(
            app, ["train", "watch", str(tmp_path / "run"), "--phase", "feedback"], catch_exceptions=False
        )


def test_plain_lines_without_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("twllm.train.watch.PLAIN_EVERY_S", 0.0)
    with Watcher(tmp_path, "sft", 0, 2, False) as watcher:
        watcher.log(1, 64, loss=2.0, lr=1e-3, held_out_loss=2.5)
    assert "sft 1/2  loss 2.0000  held out 2.5000  lr 1.00e-03" in capsys.readouterr().err
    assert clock(None) == "—" and clock(3723) == "1:02:03" and sparkline([]) == "" and facts_line({}) == ""
    assert View("x", 10).eta_s() is None


def test_logs_are_kept_beside_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "out").mkdir()
    rows = [{"step": s, "tokens": 8, "loss": 3.0 / s, "lr": 0.1, "grad_norm": 1.0, "tokens_per_s": 9.0} for s in (1, 2)]
    (tmp_path / "work" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "work" / "alarms.jsonl").write_text('{"step": 2, "documents": []}\n')
    keep_logs(tmp_path / "work", tmp_path / "out", "sft")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "metrics.jsonl",
        "alarms.jsonl",
        "loss.png",
        "training.png",
    }
    plot_training([], [], tmp_path / "empty.png", "nothing yet")


def test_settings_that_would_do_nothing_are_refused() -> None:
    for wrong in ({"prompts": ["a"]}, {"sample_every": 3}, {"sample_tokens": 3}, {"alarms": False, "alarm_z": 3.0}):
        with pytest.raises(ValueError, match=r"together|ignored"):
            WatchConfig.model_validate(wrong)


def test_flops_are_those_of_the_plan(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint)
    body = sum(
        p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n
    )
    head = model.get_output_embeddings().weight.numel()
    attention = 6 * model.config.num_hidden_layers * model.config.hidden_size * 64
    assert model_flops_per_token(model, 64) == 6 * (body + head) + attention


# -- trackers -----------------------------------------------------------------------------------------------------


def test_missing_tracker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for config in ({"wandb_project": "x"}, {"mlflow_experiment": "x"}):
        with pytest.raises(UserError, match="not installed"):
            open_trackers(tmp_path, "sft", 0, False, WatchConfig.model_validate(config))


def test_broken_tracker_does_not_stop_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def log(self, values: object, step: int) -> None:
            raise ConnectionError("no route")

    trackers = Trackers([Broken()])  # type: ignore[list-item]
    trackers.log({"loss": 1.0}, 1)
    trackers.log({"loss": 1.0}, 2)
    trackers.close()
    assert capsys.readouterr().err.count("no route") == 1


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with Watcher(tmp_path, "sft", 0, 2, True) as watcher:
        watcher.log(1, 64, loss=2.0)
        watcher.sample(1, ["台灣？"], ["很好"])
    assert any((tmp_path / "tensorboard").iterdir())


@pytest.mark.filterwarnings("ignore")  # of the client, not ours
def test_wandb_offline_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = WatchConfig(wandb_project="twllm")
    ids = []
    for step in (0, 1):
        trackers = open_trackers(tmp_path, "sft", step, False, config)
        trackers.log({"loss": 2.0}, step + 1)
        trackers.text("samples", "台灣？\n→ <很好>", step + 1)
        trackers.close()
        ids.append((tmp_path / "wandb.id").read_text())
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert ids[0] == ids[1] and runs and all(ids[0] in run.name for run in runs)


@pytest.mark.filterwarnings("ignore")
def test_mlflow_file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for step in (0, 1):
        trackers = open_trackers(tmp_path, "sft", step, False, WatchConfig(mlflow_experiment="twllm"))
        trackers.log({"loss": 2.0 - step}, step + 1)
        trackers.text("samples", "台灣？", step + 1)
        trackers.close()
    files = list((tmp_path / "mlruns").rglob("metrics/loss"))
    assert len(files) == 1 and len(files[0].read_text().splitlines()) == 2
