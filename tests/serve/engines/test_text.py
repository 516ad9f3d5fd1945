"""Text pieces: whole characters, the template's leading space, stop strings across tokens."""

import pytest

from twllm.serve.engines.decoding.text import AnswerText, answer_lead
from twllm.tokens.tokenizer import ChatTokenizer

TEXT = "玉山最高🏔️，「拍謝」ㄅㄆㄇ 鹽埕 AI。"


def pieces(tokenizer: ChatTokenizer, text: str, lead: str = " ", stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    answer = AnswerText(tokenizer, lead, stop)
    found = []
    for id in tokenizer.encode(text):
        found.append(answer.push(id))
        if answer.stopped:
            return found, True
    return [*found, answer.finish()], answer.stopped


def test_lead_is_what_the_template_learns_to_say_first(tiny_tokenizer: ChatTokenizer) -> None:
    assert answer_lead(tiny_tokenizer) == " "
    assert answer_lead(tiny_tokenizer.with_template("taiwan-llm-v1")) == " "
    assert answer_lead(tiny_tokenizer.with_template("chatml")) == ""


def test_no_piece_ends_inside_a_character(tiny_tokenizer: ChatTokenizer) -> None:
    found, _ = pieces(tiny_tokenizer, " " + TEXT)
    assert len(tiny_tokenizer.encode("🏔️埕")) > 3  # the characters really are split into several tokens
    assert "".join(found) == TEXT
    assert not any("\ufffd" in piece for piece in found)


@pytest.mark.parametrize(("text", "expected"), [(" 好", "好"), ("好", "好"), ("  好", " 好"), (" ", ""), ("", "")])
def test_one_leading_space_goes(tiny_tokenizer: ChatTokenizer, text: str, expected: str) -> None:
    assert "".join(pieces(tiny_tokenizer, text)[0]) == expected


def test_a_long_lead_is_waited_for(tiny_tokenizer: ChatTokenizer) -> None:
    assert "".join(pieces(tiny_tokenizer, "\n\n答：好", lead="\n\n答：")[0]) == "好"
    assert "".join(pieces(tiny_tokenizer, "\n好", lead="\n\n答：")[0]) == "\n好"


@pytest.mark.parametrize("stop", ["高🏔️，「拍", "」", "AI。", "ㄆㄇ 鹽", "玉"])
def test_stop_string_over_token_borders_is_cut(tiny_tokenizer: ChatTokenizer, stop: str) -> None:
    found, stopped = pieces(tiny_tokenizer, " " + TEXT, stop=(stop,))
    assert stopped
    assert "".join(found) == TEXT[: TEXT.index(stop)]


@pytest.mark.parametrize("stop", ["高🏔️，「拍", "」", "AI。", "ㄆㄇ 鹽", "玉"])
def test_a_stop_string_can_stay(tiny_tokenizer: ChatTokenizer, stop: str) -> None:
    """As in text-generation-inference: it is the answer's end, and nothing is held back for it."""
    answer = AnswerText(tiny_tokenizer, " ", ("雄", stop), keep_stop=True)
    plain = AnswerText(tiny_tokenizer, " ")
    found = []
    for id in tiny_tokenizer.encode(" " + TEXT):
        piece, whole = answer.push(id), plain.push(id)
        found.append(piece)
        if answer.stopped:
            break
        assert piece == whole
    assert "".join(found) == TEXT[: TEXT.index(stop) + len(stop)]
    assert answer.matched == stop
    assert answer.push(5) == answer.finish() == ""


def test_the_stop_string_that_comes_first_is_told(tiny_tokenizer: ChatTokenizer) -> None:
    answer = AnswerText(tiny_tokenizer, stop=("玉山", "最高", "山最"))
    text = "".join(answer.push(id) for id in tiny_tokenizer.encode("台灣，玉山最高"))
    assert (text, answer.matched) == ("台灣，", "玉山")


def test_what_only_looks_like_a_stop_string_comes_out(tiny_tokenizer: ChatTokenizer) -> None:
    found, stopped = pieces(tiny_tokenizer, " " + TEXT, stop=("AI。完", "高雄", ""))
    assert not stopped
    assert "".join(found) == TEXT


def test_broken_bytes_at_the_end_are_marked(tiny_tokenizer: ChatTokenizer) -> None:
    ids = tiny_tokenizer.encode("🏔")[:-1]
    answer = AnswerText(tiny_tokenizer)
    assert [answer.push(id) for id in ids] == [""] * len(ids)
    assert answer.finish() == tiny_tokenizer.decode(ids) != ""
