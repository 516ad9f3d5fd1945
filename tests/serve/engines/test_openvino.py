"""The OpenVINO runner against transformers, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.serve.engines.checkpoints import SHAPES, checkpoint, score_difference, worst_difference
from twllm.errors import UserError
from twllm.model.weights import Weights, to_bf16
from twllm.serve.engines import open_engine
from twllm.serve.engines.batching.runner import Work
from twllm.serve.engines.interface import Sampling

pytest.importorskip("openvino")
from twllm.serve.engines.cpu.openvino import OpenVinoRunner


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """fp32; more tokens than a block, beginnings shared in the middle of a block and written to by both."""
    model = checkpoint(name, tmp_path)
    runner = OpenVinoRunner(tmp_path, precision="fp32", slots=5, threads=1)
    assert worst_difference(runner, model) < 1e-4
    assert score_difference(runner, model, (1, 2, 40)) < 1e-4
    assert sum(runner._blocks._users) == sum(len(table) for table in runner._tables)  # nothing leaked
    for slot in range(5):
        runner.trim(slot, 0)
    assert not any(runner._blocks._users)
    runner.close()


@pytest.mark.parametrize(("precision", "dtype", "tolerance"), [
    ("bf16", torch.bfloat16, 0.3), ("bf16", torch.float32, 0.3), ("bf16", torch.float16, 0.3), ("int8", torch.float32, 0.5),
    ("fp32", torch.bfloat16, 1e-4), ("fp32", torch.float16, 1e-4),
])  # fmt: skip
def test_other_precisions(precision: str, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    """Weights of each kind, computed in each; the tolerance is in standard deviations of the logits."""
    model = checkpoint("llama", tmp_path, dtype)
    runner = OpenVinoRunner(tmp_path, precision=precision, slots=4, threads=1)  # type: ignore[arg-type]
    assert 0 < worst_difference(runner, model, steps=12) < tolerance


def test_scoring_more_ids_than_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twllm.serve.engines.cpu.openvino.SCORED_ROWS", 16)
    model = checkpoint("llama", tmp_path)
    runner = OpenVinoRunner(tmp_path, precision="fp32", slots=1, threads=1)
    assert score_difference(runner, model, (16, 17, 128)) < 1e-4


def test_little_memory_is_capacity_for_fewer_tokens(tmp_path: Path) -> None:
    """Three blocks for two slots: the scheduler may use two of them, and the third is what the slots waste at their ends."""
    checkpoint("llama", tmp_path)
    block = 2 * 2 * 2 * 32 * 8 * 4  # layers, keys and values, heads, tokens, width, bytes
    runner = OpenVinoRunner(tmp_path, precision="fp32", slots=2, threads=1, kv_bytes=4 * block)
    assert (runner.capacity, runner.context) == (64, 128)
    with pytest.raises(UserError, match="too little"):
        OpenVinoRunner(tmp_path, precision="fp32", slots=2, threads=1, kv_bytes=block - 1)


def test_a_step_that_fails_leaves_the_slots_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoint("llama", tmp_path)
    runner = OpenVinoRunner(tmp_path, precision="fp32", slots=2, threads=1)
    runner.step([Work(0, list(range(40)), False)])
    real = runner._request

    class Failing:
        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def infer(self) -> None:
            raise RuntimeError("no")

    monkeypatch.setattr(runner, "_request", Failing())
    with pytest.raises(RuntimeError):
        runner.step([Work(0, list(range(40, 80)), True)])
    monkeypatch.setattr(runner, "_request", real)
    runner.trim(0, 40)
    (logits,) = runner.step([Work(0, [40], True)])
    with torch.inference_mode():
        expected = model(input_ids=torch.arange(41)[None]).logits[0, -1]
    assert logits is not None
    assert float((torch.from_numpy(logits.copy()) - expected).abs().max()) < 1e-3


@pytest.mark.parametrize(("change", "said"), [
    ({"model_type": "gemma"}, "gemma"), ({"model_type": "mistral", "sliding_window": 8}, "sliding_window 8"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "yarn"), ({"mlp_bias": True}, "mlp_bias"),
])  # fmt: skip
def test_other_models_are_refused_by_name(change: dict[str, object], said: str, tmp_path: Path) -> None:
    checkpoint("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=said):
        OpenVinoRunner(tmp_path)


def test_weights_are_read_as_they_are(tmp_path: Path) -> None:
    """Against safetensors' own reader; broken and cut files are told from good ones."""
    checkpoint("qwen2", tmp_path, torch.bfloat16)
    (file,) = tmp_path.glob("*.safetensors")
    reference, found = load_file(file), Weights(tmp_path)
    assert set(reference) == set(found)
    for name, tensor in reference.items():
        assert np.array_equal(found.f32(name), tensor.float().numpy())
    found.release()
    assert np.array_equal(found.f32("lm_head.weight"), reference["lm_head.weight"].float().numpy())
    numbers = torch.randn(1000) * torch.logspace(-30, 30, 1000)
    numbers[:4] = torch.tensor([float("nan"), float("inf"), -0.0, 1 + 2**-8])  # the last is halfway
    bits = torch.from_numpy(to_bf16(numbers.numpy()).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(bits.nan_to_num(7), numbers.bfloat16().nan_to_num(7))
    save_file({"a": torch.zeros(3, dtype=torch.int64)}, file)
    with pytest.raises(UserError, match="I64"):
        Weights(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError):
        Weights(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match="no safetensors"):
        Weights(tmp_path)


def test_the_engine_answers_chats(tiny_checkpoint: Path) -> None:
    """By name, with options, through the scheduler; preemption where there is little memory."""
    block = 2 * 2 * 2 * 32 * 8 * 4
    options = {"precision": "fp32", "slots": 4, "kv_bytes": 10 * block}
    engine = open_engine("openvino", tiny_checkpoint, threads=1, options=options)
    chats = [[{"role": "user", "content": text}] for text in ("台灣", "玉山多高？", "hello", "ㄅㄆㄇ")]
    prompts = [engine.tokenizer.encode_chat(chat, add_generation_prompt=True).ids for chat in chats]
    alone = [[e.id for e in engine.generate(ids, Sampling(max_tokens=60, ignore_eos=True))] for ids in prompts]
    streams = [engine.generate(ids, Sampling(max_tokens=60, ignore_eos=True)) for ids in prompts]
    assert [[e.id for e in stream] for stream in streams] == alone
    engine.close()
    assert not engine.alive()


def test_an_unknown_option_is_named(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match="no such option"):
        open_engine("openvino", tiny_checkpoint, options={"slot": 3})
