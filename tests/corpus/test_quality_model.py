"""The trainable classifier: learns from examples, is the same from the same seed, refuses other files, works as a step."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twllm.cli import app
from twllm.corpus.config import CorpusConfig
from twllm.corpus.document import Document, Dropped
from twllm.corpus.quality_model import QualityModel, measure
from twllm.corpus.steps import make_step
from twllm.errors import UserError

PLACES = [
    "台北",
    "新竹",
    "台中",
    "嘉義",
    "台南",
    "高雄",
    "屏東",
    "宜蘭",
    "花蓮",
    "台東",
    "澎湖",
    "基隆",
    "苗栗",
    "彰化",
    "南投",
    "雲林",
]
GOOD = [
    f"{place}市政府說明，{topic}將於下個月開始，里長會逐戶發送通知單。"
    for place in PLACES
    for topic in ("垃圾清運", "步道整修")
]
BAD = [
    f"{place}最新優惠！！點我加賴領好禮，{topic}下殺出清，手慢無～～"
    for place in PLACES
    for topic in ("按摩椅", "保健食品")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    good, bad = folder / "good.jsonl", folder / "bad.txt"
    good.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in GOOD), encoding="utf-8")
    bad.write_text("\n\n".join(BAD), encoding="utf-8")
    out = folder / "model.safetensors"
    arguments = ["corpus", "quality", "train", "--good", str(good), "--bad", str(bad), "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "AUC" in result.output, result.output
    first = out.read_bytes()
    CliRunner().invoke(app, arguments)
    assert out.read_bytes() == first
    return out


def test_learns_what_it_was_shown(model: Path) -> None:
    loaded = QualityModel.load(model)
    assert loaded.report["auc"] >= 0.98
    assert (
        loaded.score("金門縣政府說明，路燈更換將於下週開始。") > 0.5 > loaded.score("今日限定！！加賴領好禮，手慢無～")
    )
    assert model.stat().st_size < 1_100_000
    assert 0 <= loaded.score("") <= 1


def test_step_drops_low_scores(model: Path) -> None:
    config = CorpusConfig(region={"quality_model": str(model)})
    items = list(make_step("quality_model", config)([Document("1", GOOD[0]), Document("2", BAD[0])]))
    assert [item.reason if isinstance(item, Dropped) else "" for item in items] == ["", "low_quality"]
    with pytest.raises(UserError):
        make_step("quality_model", CorpusConfig())


def test_score_command(model: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text(f"{GOOD[0]}\n\n{BAD[0]}", encoding="utf-8")
    result = CliRunner().invoke(app, ["corpus", "quality", "score", str(texts), "--model", str(model)])
    first, second = (float(line.split("\t")[0]) for line in result.output.splitlines())
    assert first > second


def test_other_files_and_too_few_examples_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"\x80\x04pickle")
    with pytest.raises(UserError):
        QualityModel.load(other)
    few = tmp_path / "few.txt"
    few.write_text("只有一份", encoding="utf-8")
    arguments = ["corpus", "quality", "train", "--good", str(few), "--bad", str(few), "--out", str(tmp_path / "m")]
    assert isinstance(CliRunner().invoke(app, arguments).exception, UserError)


def test_measure_by_hand() -> None:
    told = measure([0.9, 0.4, 0.6, 0.1], [1, 1, 0, 0])
    assert told["auc"] == 0.75
    row = next(row for row in told["thresholds"] if row["threshold"] == 0.5)
    assert (row["precision"], row["recall"]) == (0.5, 0.5)
