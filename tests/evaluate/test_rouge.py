"""ROUGE of Chinese: by hand, and against sumeval where it is installed (bit for bit)."""

import importlib.util
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from twllm.errors import UserError
from twllm.evaluate import rouge as module
from twllm.evaluate.rouge import rouge, words
from twllm.evaluate.task import make_item, tasks

needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("jieba", "sumeval")), reason="no jieba or sumeval"
)
PIECES = [
    *"的在我們这那玉山ABc1 ,，。！!「」『』；;?%\n\t\u3000’“—·~@#￥&", "臺北市", "台北", "我们", "牛肉麵", "the", "2.3", "圖書館員", "跑步",
]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    for cached in (words, module._stop_words, module._tokenizer):
        cached.cache_clear()


@needs_packages
def test_words_are_simplified_jiebas() -> None:
    assert words("臺北的牛肉麵，ABC！") == (
        "臺",
        "北",
        "牛肉",
        "麵",
        "abc",
    )  # no 臺北 in the dictionary; 的 is a stop word
    assert words("我們和我们") == ("我們",)  # the stop list is Simplified
    assert words("") == words("。，\n\u3000") == ()


@needs_packages
def test_scores_by_hand() -> None:
    """Words 玉山 很 高 and 玉山 高: 很 is a stop word, so both are 玉山 高."""
    assert words("玉山很高") == words("玉山高") == ("玉山", "高")
    assert rouge("玉山很高", "玉山高") == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    # 玉山 高 against 高 玉山 雪山: two common words of 2 and 3, no common pair of 1 and 2, a common subsequence of 1
    assert words("高玉山雪山") == ("高", "玉山", "雪山")
    assert rouge("玉山高", "高玉山雪山") == {"rouge1": pytest.approx(0.8), "rouge2": 0.0, "rougeL": pytest.approx(0.4)}
    assert rouge("玉山高", "") == rouge("", "") == rouge("的", "玉山") == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


def plain_longest(a: list[str], b: list[str]) -> int:
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            rows[i + 1][j + 1] = rows[i][j] + 1 if x == y else max(rows[i][j + 1], rows[i + 1][j])
    return rows[-1][-1]


def test_longest_common_subsequence_is_the_textbooks() -> None:
    chance = random.Random(1)
    for _ in range(2000):
        a, b = ([chance.choice("abcd") for _ in range(chance.randrange(14))] for _ in range(2))
        assert module._longest_common(a, b) == plain_longest(a, b)


@needs_packages
def test_equal_to_sumeval_to_the_last_bit() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba's own
        from sumeval.metrics.rouge import RougeCalculator

        peer = RougeCalculator(stemming=True, lang="zh")
        peer.rouge_1("暖", "身")
    chance = random.Random(5)
    for _ in range(150):
        gold, said = ("".join(chance.choice(PIECES) for _ in range(chance.randrange(30))) for _ in range(2))
        if chance.random() < 0.5:
            said = gold[: len(gold) // 2] + said
        expected = {"rouge1": peer.rouge_1(gold, said), "rouge2": peer.rouge_2(gold, said)}
        assert rouge(gold, said) == {**expected, "rougeL": peer.rouge_l(gold, said)}, (gold, said)


@needs_packages
def test_mark_is_rouge_2_and_has_all_three() -> None:
    from twllm.evaluate.scorers import SCORERS

    mark = SCORERS["rouge"](make_item(tasks()["xsum"], "0", "", ["玉山很高"], context="文"), "玉山高。")
    assert (mark.value, dict(mark.scores)) == (1.0, {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0})


def test_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="jieba") as error:
        module._tokenizer()
    assert "pip install 'jieba==0.42.1'" in error.value.fix
    with pytest.raises(UserError, match="sumeval"):
        module._stop_words()


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dict.txt").write_text("玉山 3 ns\n", encoding="utf-8")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match="another version"):
        module._tokenizer()
