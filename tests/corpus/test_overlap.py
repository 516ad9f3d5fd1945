"""What is found and what is not, planted: copies in disguise, halves, answers, boilerplate, near misses, collisions."""

import random
import unicodedata

import numpy as np
import pytest

from twllm.corpus import folding, overlap
from twllm.corpus.folding import BOUNDARY, fold, fold_char, folded_text, is_cjk, word_units
from twllm.corpus.grams import densest, longest_run
from twllm.corpus.overlap import Limits, Match, OverlapIndex, Passage, mostly_words

QUESTION = "依照這座橋的管理辦法，重型機車在颱風警報發布之後，多久以內必須離開橋面？"
SIMPLIFIED = "依照这座桥的管理办法，重型机车在台风警报发布之后，多久以内必须离开桥面？"
BEFORE = "廟口的老闆說今天的蚵仔煎賣完了，要吃的人明天請早。"
AFTER = "隔壁的書店倒是開著，店貓躺在漫畫上睡午覺，客人都繞著牠走。"


def find(text: str, *passages: Passage, limits: Limits = Limits()) -> list[Match]:
    return OverlapIndex(passages or [Passage("題/1", "question", QUESTION, ("三十分鐘",))], limits).find([text])


def shares(text: str, *passages: Passage, limits: Limits = Limits()) -> list[float]:
    """The share told for each passage (0: no n-gram in common), whatever the threshold."""
    index = OverlapIndex(passages or [Passage("題/1", "question", QUESTION)], limits)
    found = {m.passage: m.share for m in index.find([text], np.full(len(index.keys), 1e-9))}
    return [found.get(number, 0.0) for number in range(len(index.keys))]


@pytest.mark.parametrize(
    "copy",
    [
        QUESTION,
        QUESTION.replace("，", "、\n").replace("？", "?!"),
        "  ".join(QUESTION),
        f"【{QUESTION}】".replace("颱風", "台風"),
        SIMPLIFIED,
        unicodedata.normalize("NFKD", QUESTION),
        QUESTION.replace("重型機車", "重型機車（含電動）"),
    ],
    ids=["exact", "punctuation", "spaces", "variant", "simplified", "NFKD", "a word put in"],
)
def test_a_copy_in_disguise_is_found_where_it_stands(copy: str) -> None:
    (match,) = find(BEFORE + copy + AFTER)
    place = unicodedata.normalize("NFC", BEFORE + copy + AFTER)[match.start : match.stop]
    assert folded_text(place).replace(folded_text("含電動"), "") == folded_text(QUESTION)
    assert (match.items, match.part, match.how) == (("題/1",), "question", "share")


def test_width_and_case_hide_nothing() -> None:
    passage = Passage("題/1", "question", "台電第 3 座 LNG 接收站的儲槽容量，總共是多少 m² 或公秉？")
    assert [m.share for m in find("臺電第３座ｌｎｇ接收站的儲槽容量總共是多少㎡或公秉", passage)] == [1.0]


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        (QUESTION[: len(QUESTION) // 2], 0.4, 0.6),
        (QUESTION.replace("重型機車", "腳踏車").replace("颱風警報", "地震速報").replace("橋面", "隧道"), 0.0, 0.4),
        ("答案是三十分鐘，各位要記得。", 0.0, 0.0),
        (BEFORE, 0.0, 0.0),
        ("這座橋的管理辦法規定：颱風警報發布之後，機車三十分鐘以內必須離開。", 0.0, 0.0),
    ],
    ids=["half of it", "near miss", "only the answer", "nothing", "the fact in other words"],
)
def test_what_is_no_copy_is_not_flagged_but_its_share_is_told(text: str, low: float, high: float) -> None:
    assert find(BEFORE + text + AFTER) == []
    (share,) = shares(BEFORE + text + AFTER)
    assert low <= share <= high


def test_half_is_found_at_a_threshold_below_it() -> None:
    half = QUESTION[:24]  # 22 of 33 letters
    (share,) = shares(half)
    assert find(half, limits=Limits(threshold=share))[0].share == share
    assert find(half, limits=Limits(threshold=share + 1e-6)) == []


def test_scraps_from_all_over_a_long_text_do_not_add_up() -> None:
    filler = "。".join([BEFORE, AFTER] * 8)
    scraps = [QUESTION[at : at + 16] for at in range(0, len(QUESTION) - 12, 3)]
    assert shares(filler.join(scraps))[0] < 0.5
    assert shares("、".join([QUESTION[:20], QUESTION[20:]]))[0] == 1.0


def test_boilerplate_does_not_flag() -> None:
    frame = "下列關於{}的敘述，依現行法令之規定及主管機關歷來的函釋，何者正確而無需另行舉證？"
    asked = ["湯圓", "肉粽", "麻糬", "油飯", "潤餅"]
    passages = [Passage(f"題/{n}", "question", frame.format(word)) for n, word in enumerate(asked)]
    text = BEFORE + frame.format("碗粿") + AFTER
    assert find(text, *passages) == []
    assert len(find(text, *passages[:4])) == 4  # four items: not common yet
    (match,) = find(BEFORE + frame.format("肉粽") + AFTER, *passages)
    assert match.items == ("題/1",)


def test_the_very_same_question_in_many_items_needs_its_answer() -> None:
    asked = "下列哪一種食物最常在廟口的夜市裡吃到？"
    answers = ["蚵仔煎", "大腸包小腸", "花生捲冰淇淋", "藥燉排骨", "地瓜球"]
    passages = [Passage(f"題/{n}", "question", asked, (answer,)) for n, answer in enumerate(answers)]
    assert find(asked + AFTER, *passages) == []
    (match,) = find(f"{BEFORE}{asked}\n答：當然是藥燉排骨。", *passages)
    assert (match.items, match.how) == (("題/3",), "pair")


def test_a_context_under_many_questions_is_no_boilerplate() -> None:
    passages = [Passage(f"題/{n}", "context", QUESTION + AFTER) for n in range(9)]
    (match,) = find(BEFORE + QUESTION + AFTER, *passages)
    assert match.items == tuple(f"題/{n}" for n in range(9))


def test_short_passages_must_stand_there_whole() -> None:
    short = Passage("題/1", "question", "「拍謝」是什麼意思？")
    assert [m.how for m in find("請問拍謝是什麼意思", short)] == ["whole"]
    assert find("拍謝是什麼意", short) == []
    too_short = OverlapIndex([Passage("題/2", "question", "首都？", ("台北",))])
    assert not too_short.searchable.any()
    assert too_short.find(["首都？台北。"]) == []


def test_a_short_question_is_found_with_its_answer_only() -> None:
    passage = Passage("題/1", "question", "誰寫了這首？", ("住在鹿港的那位郵差",))
    assert find("誰寫了這首？我也不知道。", passage) == []
    (match,) = find("誰寫了這首？ 是住在鹿港的那位郵差。", passage)
    assert match.how == "pair"
    assert find("誰寫了這首" + AFTER * 3 + "住在鹿港的那位郵差", passage) == []


def test_latin_text_is_compared_by_words() -> None:
    asked = "Which of the two harbours did the mail boat from Keelung reach first that winter?"
    passage = Passage("題/1", "question", asked)
    assert mostly_words(asked)
    assert [m.share for m in find(f"... {asked.upper()} ...", passage)] == [1.0]
    assert find("Which of the two harbours did the mail boat like best, and reach first that winter?", passage) == []
    joined = asked.replace("mail boat", "mailboat")  # a word is a word
    assert find(joined, passage) == []


def test_formulas_and_tables_of_numbers_say_nothing() -> None:
    numbers = Passage("題/1", "question", "7 9 10 11 12 13 14 15 16 17 18 19 20")
    mixed = Passage("題/2", "question", "化簡下列各式的值並寫出過程：a2b3c4d5e6f7g8h9i0j1k2l3m4n5")
    index = OverlapIndex([numbers, mixed])
    assert index.searchable.tolist() == [False, True]
    assert index.find(["7 9 10 11 12 13 14 15 16 17 18 19 20", "a2b3c4d5e6f7g8h9i0j1k2l3m4n5"]) == []


def test_nothing_is_found_across_two_texts() -> None:
    index = OverlapIndex(
        [Passage("題/1", "question", QUESTION), Passage("題/2", "question", "one two three four five six")]
    )
    assert index.find([QUESTION[:18], QUESTION[18:], "one two three", "four five six"]) == []
    assert index.find([f"one two three{BOUNDARY}four five six"]) != []  # that sign inside a text is white space


def test_a_text_longer_than_a_piece_is_searched_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "Which of the two harbours did the mail boat from Keelung reach first that winter?"
    index = OverlapIndex([Passage("題/1", "question", QUESTION), Passage("題/2", "question", asked)])
    text = BEFORE + QUESTION + AFTER + asked + BEFORE + SIMPLIFIED
    whole = index.find([text, AFTER, QUESTION])
    assert {(m.text, m.passage) for m in whole} == {(0, 0), (0, 1), (2, 0)}
    for size in range(90, 140):
        monkeypatch.setattr(overlap, "PIECE_CHARS", size)
        assert [(m.text, m.passage, m.share) for m in index.find([text, AFTER, QUESTION])] == [
            (m.text, m.passage, m.share) for m in whole
        ]


def test_a_hash_collision_is_no_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every character hashes alike, so all runs of one length collide: still only letter for letter counts."""
    monkeypatch.setattr(folding, "mix", lambda codes: np.zeros(len(codes), np.uint64))
    copy, other = QUESTION[:13], QUESTION[:12] + "乙"
    index = OverlapIndex([Passage("題/1", "text", copy)])
    assert [m.share for m in index.find([BEFORE + copy + AFTER])] == [1.0]
    assert index.find([BEFORE + other + AFTER]) == []


def test_every_window_that_stands_there_is_found_and_no_other() -> None:
    """Against a search by plain strings, on texts of few characters, so that there is much to find."""
    random.seed(5)
    for _ in range(30):
        passages = [
            Passage(f"題/{n}", "text", "".join(random.choices("甲乙丙", k=random.randint(13, 16)))) for n in range(6)
        ]
        text = "".join(random.choices("甲乙丙", k=4000)) + passages[0].text
        index = OverlapIndex(passages, Limits(common=99))
        found = {m.passage: m.share for m in index.find([text], np.full(len(index.keys), 1e-9))}
        for number, key in enumerate(index.keys):
            there = [at for at in range(len(key) - 12) if key[at : at + 13] in folded_text(text)]
            letters = {at + i for at in there for i in range(13)}
            assert (number in found) == bool(there)
            assert found.get(number, 0) <= len(letters) / len(key) + 1e-9  # equal, if they stand close together
        assert found[0] == 1.0


def test_the_fold_is_that_of_single_characters() -> None:
    text = "Ｎ．Ｔ．Ｕ.① ㎡ ½ ﬁne Straße 臺灣颱風 発 々〇 ㄅㄆˊ 한글 カ゛"
    expected = "".join(fold_char(char) for char in unicodedata.normalize("NFC", text))
    assert folded_text(text) == expected
    folded = fold(text)
    assert len(folded.codes) == len(folded.at)
    assert (np.diff(folded.at) >= 0).all()
    assert is_cjk(fold("臺ㄅかab1").codes).tolist() == [True, True, True, False, False, False]
    words = word_units(fold("It's 3.14，對 OK!"))
    spelled = ["".join(map(chr, words.codes[a:b])) for a, b in zip(words.first[:-1], words.first[1:], strict=True)]
    assert spelled == ["it", "s", "3", "14", "ok"]


def test_densest_stretch_and_longest_run() -> None:
    units, positions = np.array([0, 1, 50, 51, 52, 90]), np.array([0, 1, 5, 6, 7, 0])
    assert densest(units, positions, 10) == (3, 50, 52)
    assert densest(units, positions, 100) == (5, 0, 90)
    assert longest_run(units, positions) == 3
