"""The forgetting report: the numbers are the model's own losses, measured once before and once after, with a verdict."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SENTENCES
from tests.train.test_methods import LORA, SMALL, phase_on
from twllm.errors import UserError
from twllm.model.build import load
from twllm.tokens.shards import TokenShard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.config import PretrainConfig
from twllm.train.forgetting import markdown, told


def bits_per_char(folder: Path, text: str, tokenizer: ChatTokenizer) -> float:
    """By transformers' own loss, the whole text in one row."""
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]])
    with torch.no_grad():
        loss = load(folder)(input_ids=ids, labels=ids).loss
    return float(loss) * (ids.shape[1] - 1) / math.log(2) / len(text)


@pytest.mark.parametrize("lora", [None, LORA])
def test_before_and_after_are_the_models_own_losses(
    tiny_checkpoint: Path, tiny_tokenizer: ChatTokenizer, shard: TokenShard, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    (tmp_path / "a.txt").write_text(SENTENCES[0])
    (tmp_path / "b.txt").write_text(SENTENCES[3])
    texts = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    config = PretrainConfig.model_validate({**SMALL, "context": 128, "lora": lora, "forgetting": {"texts": texts}})
    metrics = phase_on(tmp_path / "run", tiny_checkpoint, shard, tiny_tokenizer, config)
    out = tmp_path / "run" / "out"
    for row, text in zip(metrics["forgetting"]["rows"], (SENTENCES[0], SENTENCES[3]), strict=True):
        assert row["before"] == pytest.approx(bits_per_char(tiny_checkpoint, text, tiny_tokenizer), rel=1e-4)
        assert row["after"] == pytest.approx(bits_per_char(out, text, tiny_tokenizer), rel=1e-4)
        rise = row["after"] / row["before"] - 1
        assert row["verdict"] == ("forgotten" if rise > 0.03 else "better" if rise < 0 else "kept") and rise
    assert json.loads((out / "forgetting.json").read_text()) == metrics["forgetting"]
    assert told(metrics["forgetting"]) in (out / "forgetting.md").read_text()
    assert (out / "forgetting.png").stat().st_size > 5000 and "a.txt" in (out / "forgetting.md").read_text()


def test_the_verdict_is_told() -> None:
    from twllm.train.forgetting import Row

    rows = [Row("en", 10, 1.0, 1.2, "forgotten"), Row("zh", 10, 1.0, 0.9, "better")]
    text = markdown(rows, 0.03)
    assert "+20.0%" in text and "忘了 (forgotten)：en" in text
    assert "nothing forgotten" in markdown(rows[1:], 0.03)


def test_a_text_that_is_not_there_is_named_before_training(
    tiny_checkpoint: Path, tiny_tokenizer: ChatTokenizer, shard: TokenShard, tmp_path: Path
) -> None:
    config = PretrainConfig.model_validate({**SMALL, "forgetting": {"texts": ["missing.txt"]}})
    with pytest.raises(UserError, match=r"missing\.txt"):
        phase_on(tmp_path, tiny_checkpoint, shard, tiny_tokenizer, config)
    assert not (tmp_path / "work" / "metrics.jsonl").exists()
