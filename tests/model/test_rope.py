"""Longer positions: transformers computes what each method's paper says, config.json round-trips, and dynamic angles forget."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from twllm.errors import UserError
from twllm.model.build import load
from twllm.model.rope import context_limit, extend, extend_folder, forget_lengths, scaled
from twllm.model.rope_config import RopeConfig
from twllm.serve.engines.vllm import linear_limit
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.phase import start_model

E = 8  # head width of the tiny checkpoint
PLAIN = [10_000.0 ** (-i / E) for i in range(0, E, 2)]
LONG = torch.randint(2, 300, (1, 700), generator=torch.Generator().manual_seed(0))
KINDS = ["linear", "dynamic", "yarn", "theta"]


def rope(type: str, factor: float = 4.0, **more: Any) -> RopeConfig:
    return RopeConfig.model_validate({"type": type, "factor": factor, **more})


@pytest.mark.parametrize("type", KINDS)
def test_in_memory_and_from_the_folder_are_one_model(tiny_checkpoint: Path, tmp_path: Path, type: str) -> None:
    model = load(tiny_checkpoint)
    extend(model, rope(type))
    extend_folder(tiny_checkpoint, rope(type), tmp_path)
    other = load(tmp_path)
    assert context_limit(model.config) == context_limit(other.config) == 1024
    assert linear_limit(tmp_path) == (1024 if type == "linear" else None)
    assert other.config.max_position_embeddings == (256 if type == "dynamic" else 1024)
    with torch.no_grad():
        torch.testing.assert_close(model(LONG).logits, other(LONG).logits, rtol=0, atol=0)
        model.save_pretrained(tmp_path / "again")
        torch.testing.assert_close(load(tmp_path / "again")(LONG).logits, other(LONG).logits, rtol=0, atol=0)
    assert json.loads((tmp_path / "config.json").read_text())["rope_parameters"]["rope_type"] == (
        "default" if type == "theta" else type
    )


def test_the_angles_are_those_of_the_papers(tiny_checkpoint: Path) -> None:
    found = {}
    for type in KINDS:
        model = load(tiny_checkpoint)
        extend(model, rope(type))
        with torch.no_grad():
            model(LONG)
        found[type] = model.model.rotary_emb.inv_freq.tolist(), model.model.rotary_emb.attention_scaling
    assert found["linear"][0] == pytest.approx([angle / 4 for angle in PLAIN], rel=1e-5)
    base = 10_000 * 4 ** (E / (E - 2))
    assert found["theta"][0] == pytest.approx([base ** (-i / E) for i in range(0, E, 2)], rel=1e-5)
    base = 10_000 * (4 * 700 / 256 - 3) ** (E / (E - 2))  # NTK by the length at hand
    assert found["dynamic"][0] == pytest.approx([base ** (-i / E) for i in range(0, E, 2)], rel=1e-5)
    yarn, sharper = found["yarn"]
    assert sharper == pytest.approx(0.1 * math.log(4) + 1)
    assert yarn[0] == pytest.approx(PLAIN[0]) and yarn[-1] == pytest.approx(
        PLAIN[-1] / 4
    )  # short waves kept, long ones stretched


def test_dynamic_angles_depend_on_the_rows_alone_while_training(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint)
    extend(model, rope("dynamic"))
    with torch.no_grad():
        middle = model(LONG[:, :400]).logits
        model(LONG)
        assert not torch.equal(model(LONG[:, :400]).logits, middle)  # transformers remembers the longest
        forget_lengths(model)
        model(LONG)
        torch.testing.assert_close(model(LONG[:, :400]).logits, middle, rtol=0, atol=0)
        short = load(tiny_checkpoint)(LONG[:, :100]).logits
        torch.testing.assert_close(model(LONG[:, :100]).logits, short, rtol=0, atol=0)


def test_the_start_of_a_phase_takes_them(tiny_checkpoint: Path, tiny_tokenizer: ChatTokenizer) -> None:
    with pytest.raises(UserError, match=r"base\.rope"):
        start_model(None, str(tiny_checkpoint), None, tiny_tokenizer, 1000, 1)
    for type in KINDS:
        model = start_model(None, str(tiny_checkpoint), None, tiny_tokenizer, 1000, 1, rope=rope(type))
        assert model.config.rope_parameters["rope_theta"] >= 10_000


@pytest.mark.parametrize("type", KINDS)
def test_two_rungs_are_one_of_both_factors(tiny_checkpoint: Path, tmp_path: Path, type: str) -> None:
    for name in ("half", "rungs", "once"):
        (tmp_path / name).mkdir()
    extend_folder(tiny_checkpoint, rope(type, 2.0), tmp_path / "half")
    extend_folder(tmp_path / "half", rope(type, 4.0), tmp_path / "rungs")
    extend_folder(tiny_checkpoint, rope(type, 8.0), tmp_path / "once")
    rungs, once = load(tmp_path / "rungs"), load(tmp_path / "once")
    assert context_limit(rungs.config) == context_limit(once.config) == 2048
    with torch.no_grad():
        torch.testing.assert_close(rungs(LONG).logits, once(LONG).logits, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_extended_is_refused(tiny_checkpoint: Path) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    once = config | scaled(config, rope("linear"))
    with pytest.raises(UserError, match="already scaled"):
        scaled(once, rope("yarn"))
    with pytest.raises(UserError, match="rotary"):
        scaled({"max_position_embeddings": 256, "model_type": "gpt2"}, rope("yarn"))
    for bad in (
        {"type": "linear", "factor": 1.0},
        {"type": "yarn", "factor": 2.0, "theta": 1e6},
        {"type": "ntk", "factor": 2.0},
    ):
        with pytest.raises(ValueError):
            RopeConfig.model_validate(bad)


@pytest.mark.parametrize("type", ["linear", "theta", "yarn"])
def test_llamacpp_computes_the_same_angles(tiny_checkpoint: Path, tmp_path: Path, type: str) -> None:
    pytest.importorskip("llama_cpp")
    from twllm.release.gguf import write_gguf
    from twllm.serve.engines.batching.runner import Work
    from twllm.serve.engines.cpu.llamacpp import LlamaCppRunner

    extend_folder(tiny_checkpoint, rope(type), tmp_path)
    file = write_gguf(tmp_path, tmp_path / "m.gguf", "f32", vocabulary=False)
    ids = LONG[0].tolist()
    with torch.no_grad():
        expected = load(tmp_path)(LONG).logits[0, -1]
        plain = load(tiny_checkpoint)(LONG).logits[0, -1]
    runner = LlamaCppRunner(file, precision="fp32", slots=1, threads=1)
    try:
        (logits,) = runner.step([Work(0, ids, True)])
    finally:
        runner.close()
    assert logits is not None and float((expected - plain).abs().max()) > 0.05
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)


def test_what_gguf_and_openvino_have_no_form_for_is_refused_by_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from twllm.model.llama_shape import read_shape
    from twllm.release.gguf import write_gguf

    for type in ("yarn", "dynamic"):
        (tmp_path / type).mkdir()
        extend_folder(tiny_checkpoint, rope(type), tmp_path / type)
        with pytest.raises(UserError, match=type):
            read_shape(tmp_path / type)  # OpenVINO
    with pytest.raises(UserError, match="dynamic"):
        write_gguf(tmp_path / "dynamic", tmp_path / "m.gguf", "f32", vocabulary=False)
    file = tmp_path / "yarn" / "config.json"
    config = json.loads(file.read_text())
    config["rope_parameters"]["attention_factor"] = 1.5
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="attention_factor"):
        write_gguf(tmp_path / "yarn", tmp_path / "m.gguf", "f32", vocabulary=False)


@pytest.mark.parametrize("type", KINDS)
def test_the_torch_engine_beyond_the_old_length(tiny_checkpoint: Path, tmp_path: Path, type: str) -> None:
    """Read in pieces and answered, then another, shorter text: what transformers' own cache gives a fresh model."""
    from transformers import DynamicCache

    from twllm.serve.engines.batching.runner import Work
    from twllm.serve.engines.torch.runner import LoneRunner, open_runner

    extend_folder(tiny_checkpoint, rope(type), tmp_path)
    runner, ids = open_runner(load(tmp_path), slots=2), LONG[0].tolist()
    assert runner.context == 1024 and isinstance(runner, LoneRunner) == (type == "dynamic")

    @torch.no_grad()
    def expected(first: int, last: int) -> torch.Tensor:
        model = load(tmp_path)
        cache = DynamicCache(config=model.config)
        logits = model(LONG[:, :first], cache=cache).logits
        for at in range(first, last):
            logits = model(LONG[:, at : at + 1], cache=cache).logits
        return logits[0, -1]

    def answered(slot: int, first: int, last: int) -> torch.Tensor:
        runner.step([Work(slot, ids[:200], False)])
        (logits,) = runner.step([Work(slot, ids[200:first], True)])
        for at in range(first, last):
            (logits,) = runner.step([Work(slot, ids[at : at + 1], True)])
        assert logits is not None
        return torch.from_numpy(logits)

    for slot, (first, last) in enumerate([(690, 700), (400, 402)]):
        torch.testing.assert_close(answered(slot, first, last), expected(first, last), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert float((expected(690, 700) - load(tiny_checkpoint)(LONG).logits[0, -1]).abs().max()) > 0.05
