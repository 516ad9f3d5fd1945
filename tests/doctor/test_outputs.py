"""What `twllm export` writes is healthy, and each thing that people break in it is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twllm.cli import app
from twllm.doctor.adapter import check_adapter
from twllm.doctor.findings import Finding, has_fault
from twllm.doctor.folder import check_folder
from twllm.doctor.gguf import check_gguf
from twllm.doctor.modelfile import check_modelfile
from twllm.export.build import Export, export

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def exported(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hf, gguf and ollama of the demo."""
    out = tmp_path_factory.mktemp("exported") / "out"
    asked = Export(formats=("hf", "gguf", "ollama"), name="demo", license="internal", scores=False)
    export(str(demo), out, asked)
    return out


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def kinds(findings: list[Finding]) -> set[str]:
    return {finding.kind for finding in findings if finding.level == "fault"}


def test_all_of_it_is_healthy(exported: Path, demo: Path) -> None:
    for findings in (
        check_folder(exported, deep=True),
        check_gguf(exported / "gguf" / "demo-f16.gguf", demo),
        check_modelfile(exported / "ollama" / "Modelfile", demo),
    ):
        assert [f for f in findings if f.level in ("fault", "warning")] == []
    for target in ("ollama", "gguf", "ollama/Modelfile"):
        result = CliRunner().invoke(app, ["doctor", str(exported / target), "--reference", str(demo), "--json"])
        assert result.exit_code == 0 and json.loads(result.stdout)["healthy"], result.stdout


def replaced(old: str, new: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new), encoding="utf-8")

    return change


BROKEN = {
    "another template": (replaced("ASSISTANT:", "ASSISTANT: "), "template"),
    "no template": (replaced("TEMPLATE ", "# TEMPLATE "), "template"),
    "no default system text": (replaced("SYSTEM ", "# SYSTEM "), "template"),
    "sampling": (replaced("PARAMETER temperature 0", "PARAMETER temperature 0.8"), "sampling"),
    "penalty left to Ollama": (replaced("PARAMETER repeat_penalty", "# PARAMETER repeat_penalty"), "sampling"),
    "file moved": (replaced("../gguf/", "./"), "weights"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_modelfile(name: str, copy: Path, demo: Path) -> None:
    change, kind = BROKEN[name]
    change(copy / "ollama" / "Modelfile")
    assert kinds(check_modelfile(copy / "ollama" / "Modelfile", demo)) == {kind}


def test_a_modelfile_without_stops_and_context(copy: Path, demo: Path) -> None:
    file = copy / "ollama" / "Modelfile"
    replaced("PARAMETER stop", "# PARAMETER stop")(file)
    replaced("PARAMETER num_ctx", "# PARAMETER num_ctx")(file)
    warned = {f.kind for f in check_modelfile(file, demo) if f.level == "warning"}
    assert {"end_token", "context"} <= warned


def test_a_gguf_file_whose_template_was_changed(copy: Path, demo: Path) -> None:
    """No reference is needed: the file says which template is the trained one."""
    file = copy / "gguf" / "demo-f16.gguf"
    data = file.read_bytes()
    assert data.count(b"USER: ") == 1
    file.write_bytes(data.replace(b"USER: ", b"User: "))
    assert "template" in kinds(check_gguf(file))


def adapter(folder: Path, base: str, rows: int = 64, **config: object) -> Path:
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": base, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 64), f"{name}.lora_B.weight": torch.ones(rows, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_adapters(demo: Path, tmp_path: Path) -> None:
    assert not has_fault(check_folder(adapter(tmp_path / "good", str(demo))))
    assert kinds(check_folder(adapter(tmp_path / "lone", "owner/base"))) == {"weights"}
    assert kinds(check_folder(adapter(tmp_path / "wrong", str(demo), rows=48))) == {"weights"}
    assert kinds(check_folder(adapter(tmp_path / "dora", str(demo), use_dora=True))) == {"weights"}
    assert kinds(check_adapter(tmp_path / "lone", demo)) == set()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_quantised_folder(demo: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    export(str(demo), tmp_path / "out", Export(formats=("int8",), license="internal", scores=False))
    findings = check_folder(tmp_path / "out", deep=True)
    assert not has_fault(findings) and any("torchao" in f.seen for f in findings if f.kind == "precision")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "bitsandbytes"
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    missing = [f for f in check_folder(tmp_path / "out") if f.kind == "machine"]
    assert [f.level for f in missing] == ["warning"] and "bitsandbytes" in missing[0].fix
