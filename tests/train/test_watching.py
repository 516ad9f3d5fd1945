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
from twllm.train.alarms import SpikeDetector, at_fault, document_losses
from twllm.train.config import MachineConfig, PretrainConfig
from twllm.train.data import PackedData
from twllm.train.live import View, clock, draw, facts_line, sparkline
from twllm.train.loop import Trainer
from twllm.train.objective import TokenObjective
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

    def build(
        name: str, bad: bool = False, watch: dict[str, object] | None = None, steps: int = 60, noise: bool = False
    ) -> Trainer:
        documents = pattern_documents(200)
        if bad:
            documents[150] = ("壞文件", np.random.default_rng(9).integers(60, 300, 60).tolist(), None)
        folder = tmp_path / f"shard-{bad}"
        if not folder.exists():
            write_shard(folder, documents, 300)
        config = PretrainConfig(lr=5e-3, batch_tokens=256, context=64, max_tokens=256 * steps, epochs=3, seed=5)
        shards = [TokenShard(folder)]
        if noise:
            rng = np.random.default_rng(8)
            texts = [(f"雜訊{i}", rng.integers(60, 300, 50).tolist(), None) for i in range(200)]
            write_shard(tmp_path / "noise", texts, 300)
            shards.append(TokenShard(tmp_path / "noise"))
        data = PackedData(shards, [1.0] * len(shards), 64, 5)
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


def test_a_learning_rate_that_is_too_high_blames_no_document(make: Make, tmp_path: Path) -> None:
    trainer = make("blown", steps=32)
    usual = trainer.rate
    trainer.rate = lambda step: usual(step) if step < 25 else 1.0
    trainer.run()
    alarms = read_rows(tmp_path / "blown" / "alarms.jsonl")
    assert alarms and alarms[0]["step"] > 26 and 2 * alarms[0]["odd"] > alarms[0]["of"]
    assert "learning rate" in at_fault(alarms[0])
    assert len({json.dumps(alarm) for alarm in alarms}) == len(alarms)  # each is written once


def test_scores() -> None:
    detector = SpikeDetector(8.0)
    detector.remember([9.0] * 19, [(0, 3.0, 5)] * 63)
    assert detector.score([100.0]) == 0 and not detector.odd([(1, 100.0, 5)])  # not enough is known
    rng = np.random.default_rng(1)
    falling = SpikeDetector(8.0)
    for step in range(400):  # a loss that falls fast and swings by a tenth never jumps
        usual = 2 + 6 * np.exp(-step / 40)
        losses = [usual * (1 + 0.1 * rng.standard_normal()) for _ in range(2)]
        documents = [(n, usual * (1 + 0.1 * rng.standard_normal()), 30) for n in range(8)]
        assert falling.score(losses) < 8 and not falling.odd(documents)
        falling.remember(losses, documents)
    assert falling.score([2.0, 9.0]) > 8 > falling.score([0.1, 0.2])
    assert falling.odd([(1, 9.0, 30), (2, 2.1, 30), (3, 11.0, 5)]) == [(3, 11.0, 5), (1, 9.0, 30)]
    for _ in range(20):  # a few bad ones do not hide the next
        falling.remember([2.0], [(n, 2.0, 30) for n in range(7)] + [(8, 9.0, 30)])
        assert falling.odd([(1, 9.0, 30)])


def test_losses_of_documents_are_those_of_a_pass_of_their_own(make: Make, tiny_checkpoint: Path) -> None:
    trainer, plain = make("documents", steps=1), load(tiny_checkpoint)
    assert isinstance(trainer.objective, TokenObjective) and trainer.objective.told == []
    batch = trainer.data.batch(trainer.data.rows(0, 3))
    trainer.model.train()
    trainer.loss(batch)
    found = document_losses([batch], trainer.objective.told)
    assert len(found) == len(batch.pieces) >= 3
    for (document, loss, count), (row, start, length) in zip(found, batch.pieces, strict=True):
        ids, labels = (x[row : row + 1, start : start + length] for x in (batch.ids, batch.labels))
        with torch.no_grad():
            logits = plain(ids).logits
        own = torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="none", ignore_index=-100)
        assert count == int((labels >= 0).sum()) and document in batch.documents
        assert loss == pytest.approx(float(own.sum()) / count, rel=1e-4)


def test_hard_data_beside_easy_data_are_no_alarm_and_have_their_own_loss(make: Make, tmp_path: Path) -> None:
    make("mixed", noise=True, steps=45).run()
    rows = read_rows(tmp_path / "mixed" / "metrics.jsonl")
    for row in rows:
        parts = [row[name] for name in ("loss_shard-False", "loss_noise") if name in row]
        assert min(parts) - 1e-4 <= row["loss"] <= max(parts) + 1e-4
    last = [
        (row["loss_shard-False"], row["loss_noise"])
        for row in rows[-20:]
        if len(row.keys() & {"loss_shard-False", "loss_noise"}) == 2
    ]
    assert last and all(easy + 1 < hard for easy, hard in last)
    named = [d["shard"] for alarm in read_rows(tmp_path / "mixed" / "alarms.jsonl") for d in alarm["documents"]]
    assert named == []
    plot_training(rows, [], tmp_path / "mixed.png", "mixed")


@pytest.mark.parametrize("width", [40, 100, 160])
def test_view_fits_its_terminal(width: int) -> None:
    from rich.cells import cell_len
    from rich.console import Console

    view = View("sft", 23_456)
    for step in range(1, 400):
        row = {"step": step, "tokens": 4096, "loss": 9 / step, "lr": 1e-3, "grad_norm": 1.5, "tokens_per_s": 98_765.0}
        view.rows.append(row | {"memory_gib": 12.34, "mfu": 0.5} | ({"held_out_loss": 2.0} if step % 50 == 0 else {}))
    view.alarms = ["第 57 步損失 9.12，平常 0.14（z 51）：001 的 \x1b[2J壞文件\x07"]
    view.samples = [
        {"step": 350, "prompt": "台灣\u202e的首都\r\n在哪裡？" * 20, "answer": "\x1b]0;x\x07臺北\ud800。" * 90}
    ]
    for state in ("", "完成 done", "沒有在跑 (not running)，上次 0:03:04 前"):
        view.state = state
        console = Console(width=width, record=True, file=io.StringIO(), force_terminal=True, color_system=None)
        console.print(draw(view, width))
        lines = console.export_text().splitlines()
        assert max(cell_len(line) for line in lines) <= width and sum("█" in line for line in lines) == 1
        assert "沒有在跑" in "".join(lines) or not state.startswith("沒有")
        text = "".join(line.strip("│ ") for line in lines)
        assert not {"\x1b", "\x07", "\r", "\u202e", "\ud800"} & set(text) and "␛[2J壞文件" in text and "…" in text
        assert "剩 ETA 0:1" in text or state


def test_state_of_a_phase(tmp_path: Path) -> None:
    from twllm.artifact import lock, write_json

    alone = tmp_path / ".out.work-0123"
    of_run = tmp_path / "run" / ".work" / "sft-0123"
    for folder in (alone, of_run):
        with Watcher(folder, "sft", 0, 9, False) as watcher:
            watcher.log(3, 64, loss=2.0)
    result = CliRunner().invoke(app, ["train", "watch", str(tmp_path / "out")])
    assert "3 / 9" in result.output and "沒有在跑" in result.output
    with lock(tmp_path / "out", tmp_path / ".out.lock"), lock(tmp_path / "run"):
        for run in ("out", "run"):
            output = CliRunner().invoke(app, ["train", "watch", str(tmp_path / run)]).output
            assert "3 / 9" in output and "ETA" in output and "沒有在跑" not in output
    write_json(alone / "manifest.json", {"stage": "sft"})
    alone.rename(tmp_path / "out")
    assert "done" in CliRunner().invoke(app, ["train", "watch", str(tmp_path / "out")]).output


def test_watch_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from twllm.artifact import write_json
    from twllm.train import watch_commands

    out = tmp_path / "out"
    with Watcher(out, "sft", 0, 9, False) as watcher:
        watcher.log(3, 64, loss=2.0)
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            write_json(out / "manifest.json", {"stage": "sft"})
        assert len(naps) < 5

    monkeypatch.setattr(watch_commands.time, "sleep", nap)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal
    monkeypatch.setenv("TERM", "xterm")
    result = CliRunner().invoke(app, ["train", "watch", str(out)], catch_exceptions=False)
    assert result.exit_code == 0 and len(naps) == 3 and "not running" in result.output and "done" in result.output

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    (out / "manifest.json").unlink()
    monkeypatch.setattr(watch_commands.time, "sleep", interrupt)
    assert CliRunner().invoke(app, ["train", "watch", str(out)], catch_exceptions=False).exit_code == 0


def test_documents_that_did_not_move_the_loss_are_counted_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Watcher(tmp_path, "sft", 0, 40, False) as watcher:
        for step in (3, 9):
            watcher.alarm(step, f"第 {step} 步：難的文件", loud=False)
        watcher.alarm(10, "第 10 步損失 9.00")
        before = capsys.readouterr().err
    assert "損失 9.00" in before and "難的文件" not in before and len(watcher.view.alarms) == 3
    assert "2 步" in capsys.readouterr().err


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
