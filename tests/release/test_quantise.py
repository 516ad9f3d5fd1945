"""Quantised folders: written by their libraries, opened again by transformers, and what it cost is measured."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from twllm.errors import UserError
from twllm.export.losses import PlainModel, measure_folder
from twllm.model.build import save
from twllm.release.quantise import calibration, group_size, quantise
from twllm.tokens.tokenizer import ChatTokenizer

GPTQ = os.environ.get("TWLLM_GPTQ_PYTHON", "")  # a Python that has gptqmodel, optimum and twllm


@pytest.fixture(scope="module")
def wide(tiny_tokenizer: ChatTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose widths fit every method."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tiny_tokenizer.vocab_size, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("wide")
    save(LlamaForCausalLM(config), tiny_tokenizer, folder)
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_int8_is_close_small_and_opens(wide: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    assert quantise(wide, tmp_path, "int8")["library"] == "torchao"
    before, after = PlainModel(wide), PlainModel(tmp_path)
    ids = torch.tensor([before.tokenizer.encode("台灣的首都是臺北。", bos=True)])
    with torch.inference_mode():
        one, other = before.model(input_ids=ids).logits, after.model(input_ids=ids).logits
    assert 0 < float((one - other).abs().max()) < 0.1 * float(one.std())
    assert (
        json.loads((tmp_path / "config.json").read_text())["twllm"]
        == json.loads((wide / "config.json").read_text())["twllm"]
    )
    assert (tmp_path / "model.safetensors").stat().st_size < 0.6 * (wide / "model.safetensors").stat().st_size
    with pytest.raises(UserError, match="quantised already"):
        quantise(tmp_path, tmp_path, "int8")


def test_what_it_cost_is_measured(wide: Path, tmp_path: Path) -> None:
    found = measure_folder(wide, tmp_path, 3)
    assert found["n"] == 3 and found["culture"] == 0.0 and 5 < found["bits"] < 40  # random weights know nothing


def test_calibration_is_taiwan_text_in_the_models_template(tiny_tokenizer: ChatTokenizer) -> None:
    rows = [
        ids for _, ids in zip(range(40), calibration(tiny_tokenizer, {"max_position_embeddings": 300}), strict=False)
    ]
    texts = [tiny_tokenizer.backend.decode(ids, skip_special_tokens=False) for ids in rows]
    assert all(len(ids) <= 300 for ids in rows) and any("USER:" in text for text in texts)
    assert len({text[:20] for text in texts}) > 20


def test_groups() -> None:
    config: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    assert group_size(config, "gptq") == 128
    config = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 2}
    assert group_size(config, "gptq") == 32
    with pytest.raises(UserError, match="倍數"):
        group_size(config, "awq")
    with pytest.raises(UserError, match="no group fits"):
        group_size(config | {"intermediate_size": 350}, "gptq")


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_missing_library_is_named(method: str, wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gptqmodel", None)
    with pytest.raises(UserError, match="GPTQModel"):
        quantise(wide, tmp_path, method)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_four_bits_by_gptqmodel(method: str, wide: Path, tmp_path: Path) -> None:
    if not GPTQ:
        pytest.skip("set TWLLM_GPTQ_PYTHON to a Python with gptqmodel")
    out = tmp_path / "out"
    out.mkdir()
    code = (
        "import sys; from pathlib import Path; from twllm.release.quantise import quantise\n"
        "from twllm.export.losses import measure_folder\n"
        "w, o, t, m = sys.argv[1:]; print('FACTS', quantise(Path(w), Path(o), m, 16))\n"
        "a, b = measure_folder(Path(w), Path(t), 0), measure_folder(Path(o), Path(t), 0)\n"
        "assert abs(a['bits'] - b['bits']) < 1.0, (a, b); print('OPENED')"
    )
    run = subprocess.run(
        [GPTQ, "-c", code, str(wide), str(out), str(tmp_path), method], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0 and "OPENED" in run.stdout, run.stdout[-2000:] + run.stderr[-2000:]
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == method and config["quantization_config"]["bits"] == 4
    assert config["twllm"]["template_fingerprint"]
