"""The llama.cpp runner against transformers; skipped where llama-cpp-python is not installed (it has to be compiled)."""

from pathlib import Path

import pytest
import torch

from tests.serve.engines.checkpoints import SHAPES, checkpoint, score_difference, worst_difference
from twllm.errors import UserError
from twllm.serve.engines import open_engine
from twllm.serve.engines.interface import Sampling

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")
from twllm.release.gguf import write_gguf
from twllm.serve.engines.cpu.llamacpp import LlamaCppRunner, cache_folder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """fp32 with fp32 keys and values; this also proves the GGUF writer's names, reorderings and position settings."""
    model = checkpoint(name, tmp_path)
    runner = LlamaCppRunner(tmp_path, precision="fp32", slots=5, threads=1)
    assert worst_difference(runner, model) < 1e-4
    assert score_difference(runner, model, (1, 2, 40)) < 1e-4
    runner.close()
    runner.close()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.15), ("bf16", 0.3), ("q8_0", 0.6)])
def test_other_precisions(precision: str, tolerance: float, tmp_path: Path) -> None:
    model = checkpoint("llama", tmp_path)
    runner = LlamaCppRunner(tmp_path, precision=precision, slots=4, threads=1)  # type: ignore[arg-type]
    assert 0 < worst_difference(runner, model, steps=12) < tolerance
    runner.close()


def test_a_converted_model_is_used_again_and_a_changed_one_converted_again(tmp_path: Path) -> None:
    checkpoint("llama", tmp_path / "a")
    LlamaCppRunner(tmp_path / "a", precision="fp32", slots=1, threads=1).close()
    before = {file: file.stat().st_mtime_ns for file in (cache_folder() / "gguf").glob("*.gguf")}
    LlamaCppRunner(tmp_path / "a", precision="fp32", slots=1, threads=1).close()
    assert {file: file.stat().st_mtime_ns for file in (cache_folder() / "gguf").glob("*.gguf")} == before
    (tmp_path / "a" / "generation_config.json").write_text("{}")
    LlamaCppRunner(tmp_path / "a", precision="fp32", slots=1, threads=1).close()
    assert len(list((cache_folder() / "gguf").glob("*.gguf"))) == len(before) + 1
    assert not [file for file in (cache_folder() / "gguf").iterdir() if file.name.startswith(".")]


def test_the_engine_takes_a_gguf_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = write_gguf(tiny_checkpoint, tmp_path / "tiny.gguf", "f32")
    engine = open_engine("llamacpp", tiny_checkpoint, threads=1, options={"precision": "fp32", "gguf": file})
    reference = open_engine("torch", tiny_checkpoint, threads=1, options={"precision": "fp32"})
    prompt = engine.tokenizer.encode_chat([{"role": "user", "content": "玉山多高？"}], add_generation_prompt=True).ids
    found, expected = (list(e.generate(prompt, Sampling(max_tokens=32))) for e in (engine, reference))
    assert [e.id for e in found] == [e.id for e in expected]
    engine.close()
    reference.close()


def test_what_cannot_be_loaded(tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF nothing")
    with pytest.raises(UserError, match="cannot load"):
        LlamaCppRunner(broken)
    checkpoint("llama", tmp_path / "a")
    with pytest.raises(UserError, match="too little"):
        LlamaCppRunner(tmp_path / "a", kv_bytes=100)
