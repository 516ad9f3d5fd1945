"""The checker: spans and verdicts on texts written for the test; precision and recall on real text where it is at hand."""

import gzip
import json
from pathlib import Path

import pytest

from twllm import data
from twllm.corpus.check import check_text, half_width, leak_rate
from twllm.corpus.wording import find_words, foreign_variants, lexicon

TAIWAN = (
    "昨天在捷運上看到有人用筆電剪影片，軟體跑得很順，網路也快。",
    "請攜帶身分證與健保卡，到區公所三樓的櫃檯辦理登記。",
    "阿嬤說：「食飽未？」我回她：「歹勢，還沒。」然後一起去買便當。",
    "臺灣的颱風多半在七月到九月來，停班停課要看縣市政府公告。",
    "這題我不會ㄟ，你可以再講一次嗎？拜託啦～",
    "他把數據整理好，設定檔案路徑，再用資料庫查詢；程序正義也很重要。",
    "電視頻道很多，目的士農工商都有，那兒童節你要去哪裡？",
    "好，謝謝！",
)  # fmt: skip


@pytest.mark.parametrize("text", TAIWAN)
def test_native_text_is_clean(text: str) -> None:
    found = check_text(text)
    assert (found.verdict, found.leak_rate, found.punctuation) == ("zh-TW", 0, ())
    assert found.score >= 0.8


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("这个软件的质量很好，用户都很满意。", "zh-CN"),
        ("站在后面的干部", "zh-CN"),  # no character that only Simplified has, but words that only Simplified writes so
        ("這個軟件的用戶界面很好，視頻的質量也不錯，打印機已經連上網絡。", "zh-CN"),
        ("我在的士上面食雪糕，然後去屋苑的巴士站等小巴。", "zh-HK"),
        ("佢哋話唔使咁早返嚟，食咗飯先啦。", "yue"),
        ("我今仔日欲去市場買菜，毋過雨落甚大，恁欲佮我去無？", "nan"),
        ("Guá sī Tâi-uân-lâng, tsit-má beh khì tsia̍h-pn̄g.", "nan"),
        ("𠊎係客家人，毋知佢這下在哪位。", "other"),
        ("これは日本語の文章です。漢字も使います。", "other"),
        ("The quick brown fox jumps over the lazy dog.", "other"),
        ("台灣的朋友都說這個很好，但是他们说这个不行，还没完。", "mixed"),
        ("這個視頻很好看。", "mixed"),
        ("", "other"),
        ("12345 ?!", "other"),
    ],
)
def test_verdicts(text: str, verdict: str) -> None:
    found = check_text(text)
    assert found.verdict == verdict, found.reasons
    assert found.score <= 0.5
    assert verdict not in ("zh-CN", "mixed") or found.leak_rate > 0


def test_spans_point_at_the_text_and_suggest_taiwans_form() -> None:
    text = "这个视频很好看,你的軟件呢？頭髮説。"
    found = check_text(text)
    for kind in ("simplified", "vocabulary", "punctuation", "variants"):
        for span in getattr(found, kind):
            assert text[span.start : span.start + len(span.text)] == span.text
    assert [(span.text, span.suggest) for span in found.simplified] == [("这个视频", "這個視頻")]
    assert [(span.text, span.suggest) for span in found.vocabulary] == [("视频", "影片"), ("軟件", "軟體")]
    assert [(span.text, span.suggest) for span in found.punctuation] == [(",", "，")]
    assert [(span.text, span.suggest) for span in found.variants] == [("説", "說")]
    assert found.leak_rate == pytest.approx(6 / found.n_han)  # a character counts once, however many spans hold it


def test_suggestions_follow_the_context() -> None:
    spans = check_text("他的头发发现了，理发师在后边。").simplified
    assert "".join(span.suggest for span in spans) == "頭髮發現髮師邊"


def test_a_word_that_is_talked_about_does_not_count() -> None:
    assert not foreign("大陸說「視頻」，香港說『短片』，臺灣說「短影音」。")
    assert not foreign("和「軟件、視頻、打印機」不同")
    assert foreign("「我用軟件做的。」") == ["軟件"]


def foreign(text: str) -> list[str]:
    return [hit.text for hit in find_words(text) if hit.region != "taiwan"]


def test_words_keep_to_word_boundaries() -> None:
    for text in ("電視頻道", "專戶內存款", "加路蘭看海", "豆魚蛋肉", "幽默認真", "這些人數組成如下", "確實時間不夠"):
        assert not foreign(text), text


def test_lexicon_comes_from_opencc_and_spares_what_taiwan_writes() -> None:
    words = lexicon()
    assert words["滑鼠"][0] == "taiwan"
    assert words["鼠標"] == ("mainland", "滑鼠")
    assert words["的士"][0] == "hongkong"
    for word in ("文件", "程序", "支持", "設備", "項目", "數據"):
        assert words.get(word, ("", ""))[0] != "mainland", word
    assert len([word for word, (region, _) in words.items() if region == "mainland"]) > 500
    assert foreign_variants()["裏"] == "裡"
    assert "臺" not in foreign_variants()


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("好,真的!走吧?", [",", "!", "?"]),
        ("他說:好", [":"]),
        ("價格是 3.5 元、f(x, y)、https://a.tw/b,c 和 10:30", []),
        ("`a,b` 與\n```\n甲,乙\n```", []),
        ("等一下...好", ["..."]),
        ("中文(附註)在這", ["(", ")"]),
    ],
)
def test_half_width_punctuation(text: str, marks: list[str]) -> None:
    assert [span.text for span in half_width(text)] == marks


def test_leak_rate_over_texts() -> None:
    assert leak_rate([]) == 0
    assert leak_rate(["English", "臺灣"]) == 0
    assert leak_rate(["这", "臺灣的"]) == pytest.approx(1 / 4)


def test_own_data_is_written_as_taiwan_writes() -> None:
    """What the assistant says and what the paragraphs say; a text that also has Taiwan's word explains the difference, and
    users may paste other wording to have it changed."""
    found = []
    for folder in ("knowledge", "taiwan_facts", "taiwan_instruction"):
        for file in sorted((data.ROOT / folder).glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                if row["topic"] in ("語言用語/兩岸差異", "改寫/用語"):
                    continue
                texts = [row.get("text", ""), row.get("answer", "")]
                texts += [message["content"] for message in row.get("messages", ()) if message["role"] == "assistant"]
                found += [(row["id"], span.text) for text in texts for span in _leaks(text)]
    assert found == []


def _leaks(text: str) -> list[object]:
    check = check_text(text)
    return [span for span in (*check.simplified, *check.vocabulary, *check.variants) if span.suggest not in text]


# -- real text ----------------------------------------------------------------------------------------------------


def jsonl(file: Path, limit: int) -> list[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"][:20_000] for _, line in zip(range(limit), lines, strict=False)]


def sentences(folder: Path) -> list[str]:
    lines = (line for file in sorted(folder.glob("*.conllu")) for line in file.read_text(encoding="utf-8").splitlines())
    return [line.removeprefix("# text =").strip() for line in lines if line.startswith("# text =")]


@pytest.mark.shared_data
def test_native_sources_score_near_zero(shared_data: Path) -> None:
    for name, most in (("audreyt-transcript", 3e-4), ("moj-law", 2e-4)):
        checks = [check_text(text) for text in jsonl(shared_data / "prose" / f"{name}.jsonl.gz", 300)]
        assert sum(check.leak_rate * check.n_han for check in checks) / sum(check.n_han for check in checks) < most, (
            name
        )
        assert sum(check.verdict == "zh-TW" for check in checks) > 0.985 * len(checks), name
    gsd = [check_text(text) for text in sentences(shared_data / "filter/ud/UD_Chinese-GSD")]
    assert sum(check.verdict == "zh-TW" for check in gsd) >= 0.97 * len(
        gsd
    )  # a part of it is Wikipedia by mainland authors


@pytest.mark.shared_data
def test_foreign_sources_are_caught(shared_data: Path) -> None:
    simplified = [check_text(text).verdict for text in sentences(shared_data / "filter/ud/UD_Chinese-GSDSimp")]
    assert sum(verdict == "zh-CN" for verdict in simplified) >= 0.995 * len(simplified)
    cantonese = [check_text(text).verdict for text in sentences(shared_data / "filter/ud/UD_Cantonese-HK")]
    assert sum(verdict == "yue" for verdict in cantonese) >= 0.8 * len(cantonese)  # the rest: 「一百。」, 「走啦！」
    pages = sorted((shared_data / "filter/react-docs/zh-hans/content").rglob("*.md"))
    verdicts = [check_text(page.read_text(encoding="utf-8")).verdict for page in pages]
    assert "zh-TW" not in verdicts
