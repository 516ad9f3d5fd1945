"""The template contract: refused or warned about, also where only the model files were copied."""

import logging
import shutil
from pathlib import Path

import pytest

from twllm.model.build import load, save
from twllm.tokens.contract import TemplateMismatch, default_system, require_trained_template, trained_fingerprint
from twllm.tokens.tokenizer import ChatTokenizer


@pytest.fixture
def trained(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "trained"
    folder.mkdir()
    save(load(tiny_checkpoint), ChatTokenizer.load(tiny_checkpoint), folder)
    return folder


def test_the_model_files_carry_the_fingerprint(trained: Path) -> None:
    assert not (trained / "manifest.json").exists()
    assert trained_fingerprint(trained) == ChatTokenizer.load(trained).template_fingerprint


def test_it_survives_loading_and_saving_with_transformers(trained: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(trained).save_pretrained(tmp_path / "again")
    assert trained_fingerprint(tmp_path / "again") == trained_fingerprint(trained)


def test_another_template_is_refused_or_warned_about(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = ChatTokenizer.load(trained).with_template("taiwan-llm-v1")
    with pytest.raises(TemplateMismatch, match="template mismatch"):
        require_trained_template(trained, other)
    with caplog.at_level(logging.WARNING):
        require_trained_template(trained, other, allow_mismatch=True)
    assert "template mismatch" in caplog.text


def test_a_folder_that_does_not_say_is_accepted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    assert trained_fingerprint(folder) is None
    require_trained_template(folder, ChatTokenizer.load(folder).with_template("taiwan-llm-v1"))


def test_default_system_text_is_found_by_rendering(tiny_tokenizer: ChatTokenizer) -> None:
    assert default_system(tiny_tokenizer).startswith("你是人工智慧助理")
    assert default_system(tiny_tokenizer.with_template("taiwan-llm-v1")).startswith("A chat between")
    assert default_system(tiny_tokenizer.with_template("chatml")) == ""
