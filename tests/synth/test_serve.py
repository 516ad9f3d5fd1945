"""Self-play against our own server: the real app, with scripted answers and with a real (tiny, random) model."""

import shutil
from pathlib import Path

from tests.serve.conftest import ScriptedEngine, running
from tests.synth.conftest import endpoint, everything, read
from tests.synth.planted import LONG, good_pairs
from twllm.serve.engines.torch.engine import TorchEngine
from twllm.synth.config import SelfplayConfig, make
from twllm.synth.prompts import load_prompts
from twllm.synth.run import Session, make_rows
from twllm.synth.selfplay import Selfplay
from twllm.tokens.tokenizer import ChatTokenizer


def test_selfplay_on_the_real_app(tiny_tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    count = {"user": 0, "assistant": 0}

    def script(prompt: str) -> str:
        role = "user" if "你扮演" in prompt else "assistant"
        count[role] += 1
        return good_pairs()[count[role]][role == "assistant"] + ("" if role == "user" else LONG[count[role] % 4])

    engine = ScriptedEngine(tiny_tokenizer, script)
    engine.context = None
    settings = make(SelfplayConfig, {"num_dialogues": 6, "max_turns": 2})
    with running(engine, tmp_path / "ratings.db") as url:
        session = Session(tmp_path / "out", endpoint(url, model="玉山-tiny", concurrency=3))
        manifest = make_rows(Selfplay(settings, load_prompts(), "玉山-tiny"), session)
    assert manifest["counts"] == {"kept": 6, "dropped": 0, "unfinished": 0}
    assert count == {"user": 12, "assistant": 12}
    assert manifest["models"] == ["玉山-tiny"]
    assert {sampling.temperature for sampling in engine.seen} == {1.0, 0.7}
    assert len({sampling.seed for sampling in engine.seen}) == 24


def test_selfplay_on_a_random_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Babble is dropped, row by row and with a reason; the replay needs no server."""
    prompts = tmp_path / "prompts.toml"
    prompts.write_text(
        '[selfplay]\nuser = "{persona}問{topic}"\nassistant = "回答"\nopening = "問"\n', encoding="utf-8"
    )
    settings = make(SelfplayConfig, {"num_dialogues": 5, "max_tokens_user": 12, "max_tokens_assistant": 12})
    task = Selfplay(settings, load_prompts(prompts), "tiny")
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    with running(TorchEngine(checkpoint, threads=1), tmp_path / "ratings.db") as url:
        session = Session(tmp_path / "out", endpoint(url, model="tiny", timeout_s=60.0))
        manifest = make_rows(task, session)
    dropped = read(tmp_path / "out" / "dropped.jsonl")
    assert manifest["counts"] == {"kept": 0, "dropped": 5, "unfinished": 0}
    assert {row["reason"] for row in dropped} <= {
        "half_answer",
        "garbled",
        "language",
        "loop",
        "empty",
        "rubbish",
        "cut_off",
    }
    assert manifest["tokens"]["out"] > 0
    before = everything(tmp_path / "out")
    make_rows(task, session)
    assert everything(tmp_path / "out") == before
