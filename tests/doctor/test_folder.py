"""A checkpoint folder with one thing wrong at a time."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from twllm.cli import app
from twllm.doctor.findings import Finding, has_fault
from twllm.doctor.folder import check_folder
from twllm.errors import UserError
from twllm.tokens.template import load_template


def edit(folder: Path, name: str, **changes: Any) -> None:
    file = folder / name
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    config = {key: value for key, value in {**config, **changes}.items() if value is not ...}
    file.write_text(json.dumps(config), encoding="utf-8")


def cut(folder: Path, name: str, keep: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def double_bos(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text("{{- bos_token -}}" + file.read_text(encoding="utf-8"), encoding="utf-8")
    edit(folder, "config.json", twllm=...)


def adapter(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    edit(folder, "adapter_config.json", base_model_name_or_path="owner/base")


Change = Callable[[Path], None]
FAULTS: dict[str, tuple[Change, str]] = {
    "other template": (
        lambda f: (f / "chat_template.jinja").write_text(load_template("taiwan-llm-v1"), encoding="utf-8") and None, "template"),
    "two templates": (lambda f: edit(f, "tokenizer_config.json", chat_template="{{ messages }}"), "template"),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "template"),
    "double BOS": (double_bos, "bos"),
    "end token not in generation config": (lambda f: edit(f, "generation_config.json", eos_token_id=7), "end_token"),
    "vocabulary larger than the embedding": (lambda f: edit(f, "config.json", vocab_size=300), "tokenizer"),
    "truncated weights": (lambda f: cut(f, "model.safetensors", 5000), "weights"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "weights"),
    "pickle only": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin") and None, "weights"),
    "index names a file that is not there": (
        lambda f: edit(f, "model.safetensors.index.json", weight_map={"x": "model-00002.safetensors"}), "weights"),
    "broken tokenizer": (lambda f: cut(f, "tokenizer.json", 100), "tokenizer"),
    "broken config": (lambda f: cut(f, "config.json", 10), "weights"),
    "short answers": (lambda f: edit(f, "generation_config.json", max_new_tokens=20), "max_tokens"),
    "tokenizer cuts prompts": (lambda f: edit(f, "tokenizer_config.json", model_max_length=128), "context"),
    "quantised": (lambda f: edit(f, "config.json", quantization_config={"quant_method": "awq"}), "precision"),
    "adapter": (adapter, "weights"),
}  # fmt: skip


def found(folder: Path) -> set[str]:
    return {finding.kind for finding in check_folder(folder) if finding.level in ("fault", "warning")}


@pytest.fixture
def copy(demo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo, tmp_path / "copy"))


def test_a_good_folder_is_healthy(copy: Path) -> None:
    findings = check_folder(copy, deep=True)
    assert found(copy) == set() and not has_fault(findings)
    assert any("訓練時相同" in finding.seen for finding in findings)


@pytest.mark.parametrize("name", FAULTS)
def test_names_what_is_wrong(name: str, copy: Path) -> None:
    change, kind = FAULTS[name]
    change(copy)
    kinds = found(copy)
    assert kind in kinds and len(kinds) <= 2, kinds


def test_reads_the_numbers_when_asked(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, copy / "model.safetensors")
    assert not has_fault(check_folder(copy))
    bad = [f for f in check_folder(copy, deep=True) if f.level == "fault"]
    assert [f.kind for f in bad] == ["weights"] and "model.norm.weight" in bad[0].seen


def test_command_exits_with_one_and_writes_json(copy: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["doctor", str(copy)]).exit_code == 0
    edit(copy, "config.json", vocab_size=300)
    result = runner.invoke(app, ["doctor", str(copy), "--json"])
    body = json.loads(result.stdout)
    assert result.exit_code == 1 and body["healthy"] is False and body["findings"][0]["level"] == "fault"
    assert set(body["findings"][0]) == set(Finding.__dataclass_fields__)


def test_no_such_folder() -> None:
    with pytest.raises(UserError, match="no such model folder"):
        check_folder(Path("nowhere"))


def test_this_machine(tmp_path: Path) -> None:
    from twllm.doctor.environment import check_machine

    findings = check_machine(tmp_path)
    assert any("torch" in finding.seen for finding in findings) and not has_fault(findings)
