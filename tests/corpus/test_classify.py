"""The default pipeline on texts and on files: labels, every drop reason, mixed pages, broken lines, going on after an interruption."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twllm.cli import app
from twllm.corpus import block_file
from twllm.corpus import classify_file as module
from twllm.corpus.classify import Limits, classify
from twllm.corpus.classify_file import classify_file
from twllm.errors import UserError

GOOD = "這支影片的畫質很好，請用新版的軟體播放。"
MAINLAND = "這個視頻的質量很好，請用新版的軟件播放。"
DROPPED = {
    "too_short": "。",
    "garbled": "這一頁壞掉了\ufffd\ufffd\ufffd\ufffd看不出來",
    "language_ja": "今日は天気がいいので、友達と公園へ行きました。",
    "language_en": "The night market is open until midnight, and it is the best of the city.",
    "language_yue": "佢哋尋日去咗旺角買嘢，我就喺屋企瞓覺。",
    "language_nan": "阮兜的囡仔今仔日毋是欲去學校，伊講欲佮同學去看電影。",
    "simplified": "这个软件的界面很好用，建议大家下载最新版本。",
    "mixed_script": "這個软件的界面很好用，建議大家下载最新版本来試試看。",
    "region_CN": MAINLAND,
    "region_HK": "他乘港鐵由沙田到中環返工，放工後再轉小巴回屋苑。",
    "gambling": "娛樂城推薦，百家樂、老虎機、捕魚機，首儲送體驗金，出金快速！",
}


@pytest.mark.parametrize("reason", DROPPED)
def test_dropped(reason: str) -> None:
    label = classify(DROPPED[reason])
    assert (label.keep, label.reason) == (False, reason)


def test_min_score_is_a_setting() -> None:
    text = "今天的會議在下午三點開始。"
    assert classify(text).keep
    assert classify(text, limits=Limits(0.95)).reason == "region_unsure"


def test_mixed_page_keeps_its_good_paragraphs() -> None:
    good = "台北市的捷運今天因為颱風停駛，市政府請民眾改搭公車。里長也提醒大家關好門窗。"
    foreign = "这个软件的界面很好用，建议大家下载最新版本。"
    cantonese = "佢哋尋日去咗旺角買嘢，我就喺屋企瞓覺。"
    label = classify(f"{good}\n{foreign}\n{cantonese}\nconst taipei = 1;\n{good}")
    assert (label.keep, label.cut, label.text) == (True, 2, f"{good}\nconst taipei = 1;\n{good}")
    assert "cut 2 of 5" in label.reasons[0]
    assert not classify(f"{good}\n" + f"{foreign}\n" * 6).keep  # most of it is foreign
    assert classify(f"{good}\n阮兜的囡仔今仔日毋是欲去學校，伊講欲佮同學去看電影。\n{good}\n{good}").cut == 0


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_file_keeps_fields_and_names_broken_lines(tmp_path: Path) -> None:
    lines = [
        json.dumps({"id": 7, "text": GOOD, "more": [1, None]}),
        "{broken",
        json.dumps({"id": 8}),
        json.dumps({"text": MAINLAND}),
    ]
    file, out = write(tmp_path / "in.jsonl", lines), tmp_path / "new" / "out.jsonl"
    result = CliRunner().invoke(app, ["corpus", "classify", str(file), "--out", str(out), "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert "2 份文件，留下 1" in result.output and "第 2、3 列" in result.output
    first, second = rows(out)
    assert first["more"] == [1, None] and first["id"] == 7
    expected = {"keep": True, "reason": "", "lang": "zh", "script": "Hant", "region": "TW"}
    assert {key: first[key] for key in expected} == expected
    assert isinstance(first["score"], float) and second["reason"] == "region_CN"
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.jsonl"]


def test_interrupted_and_resumed_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_file, "BLOCK_BYTES", 2000)
    lines = [
        json.dumps({"id": n, "text": (GOOD, MAINLAND)[n % 2] * (n % 5 + 1)}, ensure_ascii=False) for n in range(60)
    ]
    file = write(tmp_path / "in.jsonl", lines)
    whole = classify_file(file, tmp_path / "whole.jsonl", workers=1)
    label, calls = module._label_block, 0

    def stop(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return label(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_label_block", stop)
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        classify_file(file, out, workers=1)
    assert not out.exists()
    with (tmp_path / ".out.jsonl.partial").open("ab") as stream:
        stream.write(b'{"torn')  # what kill -9 in the middle of a write leaves
    before, calls = calls, 10
    counts = classify_file(file, out, workers=1)
    blocks = len(list(block_file.blocks(file)))
    assert calls - 10 == blocks - (before - 1)  # the finished blocks were not done again
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert (counts.documents, counts.kept, counts.reasons) == (whole.documents, whole.kept, whole.reasons)


def test_two_processes_give_the_same(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", [json.dumps({"text": GOOD}), json.dumps({"text": MAINLAND})])
    classify_file(file, tmp_path / "1.jsonl", workers=1)
    classify_file(file, tmp_path / "2.jsonl", workers=2)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()


def test_output_over_the_input_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", [json.dumps({"text": GOOD})])
    with pytest.raises(UserError):
        classify_file(file, file, workers=1)


def test_region_step_cuts_notes_and_drops() -> None:
    from twllm.corpus.config import CorpusConfig
    from twllm.corpus.document import Document, Dropped, Noted
    from twllm.corpus.steps import make_step

    good = "台北市的捷運今天因為颱風停駛，市政府請民眾改搭公車。里長也提醒大家關好門窗。"
    mixed = f"{good}\n这个软件的界面很好用，建议大家下载最新版本。\n{good}"
    documents = [Document("1", mixed), Document("2", MAINLAND), Document("3", good)]
    noted, cut, dropped, kept = list(make_step("region", CorpusConfig())(documents))
    assert isinstance(noted, Noted) and noted.document.text.startswith("这个软件")
    assert isinstance(cut, Document) and cut.text == f"{good}\n{good}" and cut.metadata["lang"] == "zh"
    assert isinstance(dropped, Dropped) and dropped.reason == "region_CN"
    assert isinstance(kept, Document) and kept.history == ("region",)
    strict = make_step("region", CorpusConfig(region={"cut": False}))(documents[:1])
    assert [item.reason for item in strict if isinstance(item, Dropped)] == ["mixed_page"]


def test_language_step(reasons: object) -> None:
    assert reasons("language", GOOD, DROPPED["language_yue"]) == ["", "language_yue"]  # type: ignore[operator]
    assert reasons("language", DROPPED["language_yue"], region={"languages": ("yue",)}) == [""]  # type: ignore[operator]


def test_classify_with_the_limits_of_documents_decides_as_the_build_does(tmp_path: Path) -> None:
    from twllm.corpus.config import CorpusConfig
    from twllm.corpus.document import Document, Noted
    from twllm.corpus.steps import make_step

    good = "台北市的捷運今天因為颱風停駛，市政府請民眾改搭公車。里長也提醒大家關好門窗。"
    other = "夜市的攤販說今年的芒果比去年甜，老闆娘請大家多買幾斤回家。"
    texts = [
        *DROPPED.values(),
        GOOD,
        good,
        "太短",
        "沒有句點的一行字沒有句點的一行字沒有句點的一行字",
        f"{good}\n这个软件的界面很好用，建议大家下载最新版本。\n{other}",
    ]
    file = write(tmp_path / "in.jsonl", [json.dumps({"text": text}) for text in texts])
    classify_file(file, tmp_path / "out.jsonl", workers=1, documents=True)
    labels = [json.loads(line)["reason"] for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    config = CorpusConfig()
    built = []
    for text in texts:
        documents, reason = [Document("1", text)], ""
        for name in ("normalize", "region", "quality"):
            found = [item for item in make_step(name, config)(documents) if not isinstance(item, Noted)]
            if not isinstance(found[0], Document):
                reason = found[0].reason
                break
            documents = found  # type: ignore[assignment]
        built.append(reason)
    assert labels == built
    assert "no_sentence_end" in labels and "too_short" in labels and labels.count("") == 3


def test_languages_and_page_rules_are_settings_of_the_region_step() -> None:
    from twllm.corpus.config import CorpusConfig
    from twllm.corpus.document import Document
    from twllm.corpus.steps import make_step

    taigi, spam = DROPPED["language_nan"], DROPPED["gambling"]
    config = CorpusConfig(region={"languages": ("zh", "nan"), "page_rules": False})
    kept = list(make_step("region", config)([Document("1", taigi), Document("2", spam)]))
    assert [item.text for item in kept if isinstance(item, Document)] == [taigi, spam]


def test_characters_spoken_about_are_not_used() -> None:
    told = "教育部以「裡」為正字，「裏」為異體；「羣」「峯」也是異體字。相似的還有爲與為，香港常用著與着。"
    assert classify(told).region == "TW"
    assert classify("他在家裏喫飯，爲了省錢，沒有去餐廳，着實讓人佩服。").region != "TW"
