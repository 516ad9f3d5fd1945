"""Scorers on hand-marked answers, and MediaTek's rule for letters against a second reading of it."""

import random
from collections.abc import Iterable, Iterator

import pytest

from twllm.evaluate.scorers import SCORERS, extract_choice, mark_choice, mark_prefix, strict_choice
from twllm.evaluate.task import make_item, tasks


@pytest.mark.parametrize("more", ["", "。出自 XYZ"])  # with more Latin letters only the expressions can find it
@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" (C) 越南", "C"),
        ("選D", "D"),
        ("選項(A)", "A"),
        ("我會選擇 B。", "B"),
        ("答案選項為 C", "C"),
        ("答案是 (B)，因為……", "B"),
        ("答案為：選項 D", "D"),
        ("答案應該是：A", "A"),
        ("答案應為A", "A"),
        ("答案可能是B", "B"),
        ("答案选择：C", "C"),
        ("答案：\n(E)", "E"),
        ("正確的選項應該是 B", "B"),
        ("正确的选项是 B", "B"),
        ("正确的項是C", "C"),
        ("正確的陳述應該是D", "D"),
        ("應選擇：A", "A"),
        ("應該是B", "B"),
        ("正確的敘述是：C", "C"),
        ("正確的說法應當是 D", "D"),
        ("最恰當的選項為A", "A"),
        ("選項 B 是正確的", "B"),
        ("選項 B 正確", "B"),
        ("我認為 (C) 應為正確", "C"),
        ("正確的敘述是A 是B", ""),  # two expressions, two letters
        ("經過計算，回答：D", "D"),
    ],
)
def test_expressions_by_hand(answer: str, letter: str, more: str) -> None:
    assert extract_choice(answer + more) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("這題是甲，也就是 E 吧", "E"),  # the only Latin letter
        ("越南。人數最多", "B"),  # the text of a choice
        ("答案是A還是B", "A"),  # only the first follows 答案是
        ("答案是A，但答案可能是B", ""),  # two different letters
        ("A 和 B 都對，答案是 B", ""),
        ("Dear 同學", "D"),  # oddity kept from the published rule
        ("我不知道", ""),
        ("我覺得 F", ""),
        ("", ""),
        (" \n", ""),
        ("答：中港澳", ""),  # a choice counts only at the beginning
        ("（B）", "B"),  # full-width brackets: the only Latin letter
    ],
)
def test_choices_by_hand(answer: str, letter: str) -> None:
    assert extract_choice(answer, ("中港澳", "越南", "印尼", "日本")) == letter


def test_choice_texts_do_not_count_where_a_task_has_none() -> None:
    assert extract_choice("越南") == ""


@pytest.mark.parametrize(
    ("answer", "value"),
    [("玉山", 1), (" 玉山主峰，標高……", 1), ("是玉山", 0), ("", 0), ("雪山", 0), ("聖稜線在雪山", 0), ("大霸 尖山", 1)],
)
def test_prefix_by_hand(answer: str, value: float) -> None:
    item = make_item(tasks()["drcd"], "0", "？", ["玉山", " 大霸 "], context="")
    assert mark_prefix(item, answer).value == value


def test_mark_choice_wants_the_reference() -> None:
    item = make_item(tasks()["ttqa"], "0", "？", ["B"], choices=["中港澳", "越南"])
    assert mark_choice(item, "答案：B")[:2] == (1.0, "B")
    assert mark_choice(item, "答案：A")[:2] == (0.0, "A")
    assert mark_choice(item, "不知道")[:2] == (0.0, "")


@pytest.mark.parametrize(
    ("answer", "prefix", "substring", "exact"),
    [
        ("玉山", 1, 1, 1),
        ("「玉山」。", 0, 1, 1),
        ("答案：玉山", 0, 1, 1),
        ("答案是玉山。\n\n說明：……", 0, 1, 1),
        ("玉山主峰", 1, 1, 0),
        ("臺灣最高的是玉山", 0, 1, 0),
        ("不是玉山", 0, 1, 0),
        ("", 0, 0, 0),
        ("  \n", 0, 0, 0),
        ("。", 0, 0, 0),
    ],
)
def test_three_rules_for_short_answers(answer: str, prefix: float, substring: float, exact: float) -> None:
    item = make_item(tasks()["drcd"], "0", "？", ["玉山", "《高山》"])
    marks = [SCORERS[name](item, answer).value for name in ("prefix_exact_match", "substring_match", "exact_match")]
    assert marks == [prefix, substring, exact]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("ｂ）", "B"),
        ("（C）印尼", "C"),
        ("答案：\n(B)", ""),  # only the first line with something in it
        ("答案是選項 D。", "D"),
        ("B\n\n2. 下一題……答案：A", "B"),
        ("越南 (C)", "B"),  # the text first, then a letter that contradicts it
        ("越南河內。", "E"),  # of two texts the longer
        ("Dear 同學", ""),
        ("AI 認為是 B", ""),
        ("a big one", ""),
        ("A 和 B 都對", ""),
        ("A、A", "A"),
        ("我不知道", ""),
        ("", ""),
    ],
)
def test_strict_choice(answer: str, letter: str) -> None:
    assert strict_choice(answer, ("中港澳", "越南", "印尼", "日本", "越南河內")) == letter


def test_a_letter_without_a_choice_is_no_answer() -> None:
    assert strict_choice("E", ("甲", "乙", "丙", "丁")) == ""
    assert strict_choice("E") == "E"


def test_first_character_takes_nothing_else() -> None:
    item = make_item(tasks()["ttqa@twllm"], "0", "？", ["B"], choices=["甲", "乙"])
    marks = [SCORERS["first_character"](item, answer).value for answer in ("B) 乙", "b", " B", "(B", "乙", "")]
    assert marks == [1, 0, 0, 0, 0, 0]
    item = make_item(tasks()["imdb@twllm"], "0", "", ["1"])
    assert [SCORERS["first_character"](item, answer).value for answer in (" 1)", "(1)", "正面", "")] == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("answer", "published", "strict"),
    [
        ("正面", 1, 1),
        ("正面”", 1, 1),
        ("\n 正面的評論", 1, 1),
        ("負面", 0, 0),
        ("|面", 0, 0),  # MediaTek's own code stops here: 「|」 is in its character class
        ("「正面」", 0, 1),
        ("這則評論是正面的。", 0, 1),
        ("不是正面", 0, 0),
        ("正面或負面", 1, 0),
        ("", 0, 0),
    ],
)
def test_sentiment(answer: str, published: float, strict: float) -> None:
    item = make_item(tasks()["imdb"], "0", "", ["正面"])
    assert SCORERS["mediatek_sentiment"](item, answer).value == published
    assert SCORERS["strict_sentiment"](item, answer).value == strict


# -- MediaTek's rule a second time: letter by letter, by what stands before and after it, without expressions -----------

PICK, ITEM, COLON, SHOULD, MAY = "選|选", "項|项擇择", "：|:", "應|应", "該|该"


def behind(texts: Iterable[str], *parts: tuple[str, str]) -> set[str]:
    """What is left of the texts when the parts are taken off their ends, the last part first, in every way.

    A part is (how, what): `one` of the characters, `any` number of them, `maybe` one, the `text` itself, `blanks`.
    """
    left = set(texts)
    for how, what in reversed(parts):
        if how == "blanks":
            left = {text.rstrip() for text in left}
        elif how == "text":
            left = {text.removesuffix(what) for text in left if text.endswith(what)}
        else:
            shorter = {text[:-1] for text in left if text and text[-1] in what}
            if how == "any":
                more = shorter
                while more := {text[:-1] for text in more if text and text[-1] in what} - shorter:
                    shorter |= more
            left = shorter if how == "one" else left | shorter
    return left


def read_letters(text: str) -> Iterator[str]:
    for at, char in enumerate(text):
        if char not in "ABCDEabcde":
            continue
        before, after = text[:at], text[at + 1 :]
        opened = {before, before.removesuffix("(")}
        near = {part.rstrip() for part in opened}
        alone = not before.strip() or (before.strip() == "(" and before.endswith("(") and after.startswith(")"))
        picked = "" in behind(opened, ("one", PICK)) | behind(opened, ("one", PICK), ("one", ITEM))
        led = any(behind(near, *rule) for rule in RULES)
        answered = any(behind(near, ("text", "答案"), *be, ("maybe", COLON), *TAIL) for be in BETWEEN)
        right = correct_after(after, ("", *"應該|应该"), "是|為为")
        item = behind(near, ("one", PICK), ("one", ITEM), ("blanks", ""), *COLON_END)
        if alone or picked or led or answered or right or (item and correct_after(after, ("", "是"), "")):
            yield char
    yield from read_correct(text)


def read_correct(text: str) -> Iterator[str]:
    """正確, at most eight characters of the line, 是, a letter: the farthest 是 counts, and the next 正確 is looked for behind it."""
    start = 0
    while (start := text.find("正確", start)) >= 0:
        gap, start = start + 2, start + 2
        for size in range(8, -1, -1):
            between, rest = text[gap : gap + size], text[gap + size :]
            if len(between) < size or "\n" in between or not rest.startswith("是"):
                continue
            if letters := [letter for word in ("", *"選項|选项擇择") for letter in after_is(rest[1:], word)]:
                yield letters[0]
                start = gap + size
                break


def after_is(rest: str, word: str) -> Iterator[str]:
    """The letter after 是, one character of 選項 or none, a colon or none, blanks and a bracket."""
    if not rest.startswith(word):
        return
    rest = rest[len(word) :]
    for tail in {rest, rest[1:] if rest[:1] in ("：", "|", ":") else rest}:
        letter = tail.lstrip().removeprefix("(")[:1]
        if letter and letter in "ABCDEabcde":
            yield letter


def correct_after(after: str, words: tuple[str, ...], be: str) -> bool:
    """Whether 「)」, blanks, one of the words, one of `be` and 正確 follow (`be` '': the words stand alone)."""
    rest = after.removeprefix(")").lstrip()
    for word in words:
        if rest.startswith(word):
            tail = rest[len(word) :]
            tails = [tail[1:]] if be and tail[:1] and tail[0] in be else [] if be else [tail]
            if any(end[:1] == "正" and end[1:2] in ("確", "|", "确") for end in tails):
                return True
    return False


TAIL = (("blanks", ""), ("maybe", PICK), ("maybe", ITEM), ("blanks", ""))
BETWEEN: tuple[tuple[tuple[str, str], ...], ...] = (
    (),
    (("text", "是"),),
    (("one", "為|为"),),
    (("one", SHOULD), ("one", "為|为")),
    (("one", SHOULD), ("one", MAY), ("text", "是")),
    (("text", "可能是"),),
    (("one", PICK), ("one", "擇|择")),
)
COLON_END = (("maybe", COLON), ("blanks", ""))
RULES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("one", PICK), ("one", "擇|择")),
    (("text", "答案"), ("one", PICK), ("one", ITEM), ("one", "為|为")),
    (("text", "正"), ("one", "確|确"), ("text", "的"), ("one", "選|选一"), ("one", "項|项"), ("any", "應|应該该"), ("text", "是")),
    (("text", "正"), ("one", "確|确"), ("text", "的"), ("one", "項|项"), ("text", "是")),
    (("text", "正"), ("one", "確|确"), ("maybe", "的"), ("one", "陳|陈"), ("text", "述"), ("one", SHOULD), ("any", MAY), ("text", "是")),
    (("one", SHOULD), ("any", MAY), ("one", PICK), ("one", "擇|择"), *COLON_END),
    (("one", "應該|应该"), ("text", "是"), *COLON_END),
    (("text", "正確的敘述是"), *COLON_END),
    (("text", "最恰當的選項為"), *COLON_END),
    (("text", "回答"), ("blanks", ""), ("one", COLON), ("blanks", "")),
)  # fmt: skip
FRAGMENTS = [
    *"ABCDEabcdeFz()|選选項项擇择為为應应該该是确確的一陳述：:\n 正", "答案", "正確", "选擇", "選項", "應該", "正確的敘述是",
    "最恰當的選項為", "回答", "可能是", "越南", "(A)", "答案應該是", "答案选择", "正確的陳述應該是", "正确的一項是",
]  # fmt: skip


def second_reading(answer: str, choices: tuple[str, ...]) -> str:
    if not answer.strip():
        return ""
    found = {letter.upper() for letter in read_letters(answer)}
    if len(found) == 1:
        return found.pop()
    latin = [char for char in answer if char.isascii() and char.isalpha()]
    if len(latin) == 1 and latin[0].upper() in "ABCDE":
        return latin[0].upper()
    return next(("ABCDE"[i] for i, text in enumerate(choices) if answer.strip().startswith(text)), "")


def test_two_readings_of_the_letter_rule_agree() -> None:
    chance = random.Random(7)
    choices = ("中港澳", "越南", "印尼", "日本")
    found = 0
    for _ in range(15_000):
        answer = "".join(chance.choice(FRAGMENTS) for _ in range(chance.randrange(11)))
        expected = second_reading(answer, choices)
        assert extract_choice(answer, choices) == expected, answer
        found += bool(expected)
    assert found > 5_000
