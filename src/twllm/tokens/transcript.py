"""Transcripts of two people (`### name:` before each turn) → conversations in which one asks and the other answers.

Who is who: of each speaker, the share of turns that ask (a question mark, 請問, 嗎, 呢 …) and the median length of a turn. The
user is the one who asks more; who speaks first does not matter. Where neither asks clearly more, there is no
interviewer and the document is left out; so is one in which the asker's turns are the longer ones by far.

A third speaker is taken out if all of their turns stand in the first or last OPENING turns (they open or close). Turns that
only signal listening (對、嗯、是 …) and stage directions （笑） go, and the neighbour's turns around them become one; after a
question 「對。」 is an answer and stays. Glosses in Latin letters （civic tech） stay: they are content.

A conversation starts at a question that can be understood alone and ends before the next topic (a heading, 「下一題」, a long
question that shares few words with what was said) or where `window_chars` is reached. Left out and counted: see REASONS in
docs/conversations.md, which also has the numbers measured. Speakers' names are in the metadata, never in the messages.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from twllm.corpus.rows import BrokenRow
from twllm.tokens.config import DatasetConfig
from twllm.tokens.conversation import Tally
from twllm.tokens.rows import Rows, file_rows

SPEAKER = re.compile(r"^###\s*(.+?)\s*[:：]\s*$", re.MULTILINE)
# fmt: off
SECTION = re.compile(r"(?:結論|小結|人員|紀錄|背景|說明|附件|議程|回覆|補充意見|[名單]單)$")  # a heading, not a speaker
OPENING = 3           # turns at either end in which a third speaker may speak; chosen, not tuned
MIN_TURNS = 3         # of each speaker, about
MIN_ASKING, MIN_ASKING_SHARE = 1.5, 0.5  # the asker's share of asking turns: over the other's, and itself; interviews have
                      # 0.45 to 1.0, working meetings 0.1 to 0.5 (60 documents looked at, docs/conversations.md)
MAX_ASKER_LENGTH = 2  # the asker's median turn, over the other's
MIN_QUESTION, MIN_FIRST_ANSWER, MIN_ANSWER = 15, 20, 40  # characters: first question, first answer, mean answer; chosen by eye
MAX_QUESTION, MAX_SHORT = 200, 1 / 3  # characters of the first question (longer: a host's speech); share of answers under 20
BROKEN_OFF = re.compile(r"(?:…|⋯|\.\.\.)[。」]?\s*$")
QUESTION_END = 60     # the question is asked in the last so many characters of a conversation's first turn
MIN_HAN_SHARE = 0.5
NEW_TOPIC_CHARS, MIN_OVERLAP = 25, 0.12  # a longer question sharing less of its bigrams starts a topic; chosen by eye
BACKCHANNEL = re.compile(
    r"(?:對+|嗯+|是+|好+|喔+|哦+|噢|啊+|哈+|嘿|欸|哇|OK|ok|Ok|Yes|yes|Sure|沒錯|沒有錯|對啊|是啊|好啊|是的|對的|好的|當然|那當然|瞭解|了解|理解|明白|確實|確實是|真的"
    r"|我(?:知道|理解|瞭解|了解|懂|有聽懂|明白|同意)|這(?:個)?我(?:知道|理解|瞭解|了解|同意)|沒問題|沒有問題|是這樣|原來如此|請說|請繼續|請|就是|也是|的確|太好了|很棒|很好)+(?:啊|呀|喔|的|了|囉|嘛)?"
)
STAGE = re.compile(
    r"[（(](?:[大苦微偷眾]?笑.{0,4}|眾人?笑.{0,6}|音譯.{0,6}|下同|[臺台國日法英華客]語|播放.{0,12}|.{0,6}點頭|.{0,6}搖頭|.{1,6}[貌狀]|.{0,4}休息.{0,4}|進?廣告.{0,4}"
    r"|手?指.{1,14}|拿.{1,14}|比.{0,8}手勢|手勢|展示.{0,12}|鼓掌|掌聲|沉默|停頓|聽不.{0,6}|雜音|如資料|如圖|如照片|如簡報|翻.{1,10}|音樂.{0,4}|嘆氣|驚訝.{0,4}|拍照.{0,4}|看.{1,12}|笑著.{0,6}|起身.{0,6}|離席.{0,4})[）)]"
)
WHOLE = re.compile(r"^\s*[（(][^（()）]*[）)]\s*$")
ASKS = re.compile(r"[？?]|請問|想請教|想問|請教您|[嗎呢]\s*[。！]?\s*$|(?:談談|聊聊|談一?下|聊一下|介紹一下|說明一下|分享一下|怎麼看|如何看|的看法)")
NEXT = re.compile(r"^(?:好[，。！]?|OK[，。]?|謝謝.{0,6}[，。]|那|接著|然後)*(?:第[一二三四五六七八九十\d]+[題個]|下一[題個]|下個問題|最後|另一個|另外一?[個題]|再來|接下來|再請教|換個|回到|我們來)")
LEANS = re.compile(  # what a question that needs the turns before it begins with, after words such as 「好，」「瞭解，」
    r"^(?:(?:好的?|OK|ok|對|嗯|是的?|[了瞭]解|原來如此|沒錯|謝謝.{0,4}|感謝|哈+|哇|喔)[，。！、 ]+)*(?:所以|但|可是|因為|這|那(?!麼請問)|他|她|它|而且|也|還是|還有|然後|什麼意思|為什麼？"
    r"|怎麼說|例如|比如|就是?[其，]|就其實|不過|或|跟|對|嗯|[你您](?:剛|提到|說的|的意思|看到|看[，這那])|(?:其實|我)?剛[剛才](?!我們)|只是|事實上|[您你]有在這|同樣的事|我[的現]在?的?意思|我覺得是|真的|是嗎|如此|其中|除了這)"
)
MARKUP = ((re.compile(r"<iframe\b.*?</iframe>|!\[[^\]]*\]\([^)]*\)", re.DOTALL), ""), (re.compile(r"\[([^\]]*)\]\([^)]*\)"), r"\1"),
          (re.compile(r"<br\s*/?>"), "\n"), (re.compile(r"</?[a-z][^<>]*>|[\\*]{2,}|^>\s?|^#+ .*$", re.MULTILINE), ""))
# fmt: on
PUNCTUATION = re.compile(r"[\s，。！？、；：…,.!?;:~～—\-「」『』\"'（）()]+")
HAN = re.compile(r"[\u3400-\u9fff]")


@dataclass
class Turn:
    """What one speaker says until the other does. `topic`: a heading stands before it."""

    name: str
    text: str
    topic: bool = False

    @property
    def asks(self) -> bool:
        return bool(ASKS.search(self.text))


def read_transcript(file: Path, dataset: DatasetConfig, tally: Tally) -> Rows:
    """Rows of a file whose `text` is a transcript → conversations; what is left out is counted."""
    for place, row in file_rows(file):
        if isinstance(row, BrokenRow):
            yield place, row
            continue
        if not isinstance(row.get("text"), str):
            yield place, BrokenRow("no_text", f"這一列沒有文字 (no text)；欄位：{'、'.join(row)}")
            continue
        kept = {key: row[key] for key in ("title", "source", "license", "url", "author") if row.get(key)}
        for number, found in enumerate(dialogues(row["text"], dataset.window_chars, tally, f"{file}:{place}")):
            yield place, {**kept, **found, "id": f"{row.get('id') or place}/{number}"}


def dialogues(text: str, window_chars: int, tally: Tally, where: str) -> Iterator[dict[str, Any]]:
    """Rows with messages, asker and answerer of one transcript."""
    turns, reason = two_speakers(turns_of(text))
    if not reason:
        turns = joined(turns)
        asker, reason = asker_of(turns) if len(turns) >= 2 * MIN_TURNS else ("", "too_few_turns")
    if reason:
        tally.skip(f"document_{reason}", where)
        return
    answerer = next(turn.name for turn in turns if turn.name != asker)
    for window in windows(exchanges(turns, asker, tally, where), window_chars, tally, where):
        messages = [
            {"role": role, "content": turn.text}
            for exchange in window
            for role, turn in zip(("user", "assistant"), exchange, strict=True)
        ]
        yield {"messages": messages, "asker": asker, "answerer": answerer}


def turns_of(text: str) -> list[Turn]:
    """All turns, cleaned: stage directions and markup out, sections that are no speech out, empty ones out."""
    parts = SPEAKER.split(text)
    found: list[Turn] = []
    topic = bool(re.search(r"^##? ", parts[0], re.MULTILINE))
    for name, said in zip(parts[1::2], parts[2::2], strict=True):
        topic_next = bool(re.search(r"^#+ ", said, re.MULTILINE))
        clean = cleaned(said)
        if clean and not SECTION.search(name):
            found.append(Turn(name, clean, topic))
            topic = False
        topic = topic or topic_next
    return found


def cleaned(said: str) -> str:
    """A turn's text without markup, stage directions and a paragraph that is one parenthesis."""
    for pattern, new in MARKUP:
        said = pattern.sub(new, said)
    lines = [" ".join(STAGE.sub("", line).split()) for line in said.split("\n") if not WHOLE.match(line)]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return text if PUNCTUATION.sub("", text) else ""


def two_speakers(turns: list[Turn]) -> tuple[list[Turn], str]:
    """(the turns of two speakers, ""), or ([], why there are no two)."""
    names = {turn.name for turn in turns}
    if len(names) == 3:
        ends = (*turns[:OPENING], *turns[-OPENING:])
        for name in sorted(names):
            if sum(turn.name == name for turn in turns) == sum(turn.name == name for turn in ends):
                turns = [turn for turn in turns if turn.name != name]
                break
        names = {turn.name for turn in turns}
    if len(names) != 2:
        return [], "many_speakers" if len(names) > 2 else "one_speaker" if names else "no_turns"
    return turns, ""


def is_backchannel(text: str) -> bool:
    """Whether a turn only says that one listens.

    >>> is_backchannel("對，對，沒錯。"), is_backchannel("對，因為有兩個原因。")
    (True, False)
    """
    return len(text) <= 20 and "？" not in text and bool(BACKCHANNEL.fullmatch(PUNCTUATION.sub("", text)))


def joined(turns: list[Turn]) -> list[Turn]:
    """Turns that alternate: backchannels out (but not after a question), neighbours of one speaker into one."""
    found: list[Turn] = []
    for turn in turns:
        last = found[-1] if found else None
        answers = last is not None and last.name != turn.name and bool(re.search(r"[？?]\s*$|[嗎呢]。?$", last.text))
        if last is not None and last.name == turn.name:
            last.text += "\n\n" + turn.text
            last.topic = last.topic or turn.topic
        elif answers or not is_backchannel(turn.text):
            found.append(Turn(turn.name, turn.text, turn.topic))
    return found


def asker_of(turns: list[Turn]) -> tuple[str, str]:
    """(the name of who asks, ""), or ("", why nobody is)."""
    names = sorted({turn.name for turn in turns})
    if len(names) != 2:
        return "", "one_speaker"
    share, length = {}, {}
    for name in names:
        own = [turn for turn in turns if turn.name == name]
        share[name] = (sum(turn.asks for turn in own) + 0.5) / (len(own) + 1)
        length[name] = median(len(turn.text) for turn in own)
    asker, other = sorted(names, key=lambda name: -share[name])
    longer = length[asker] / length[other]
    if share[asker] / share[other] < MIN_ASKING or share[asker] < MIN_ASKING_SHARE:
        return "", "no_interviewer"
    return (asker, "") if longer <= MAX_ASKER_LENGTH else ("", "asker_talks_more")


def exchanges(turns: list[Turn], asker: str, tally: Tally, where: str) -> list[tuple[Turn, Turn]]:
    """(question, answer) pairs from the asker's first turn on."""
    first = next(i for i, turn in enumerate(turns) if turn.name == asker)
    if first:
        tally.skip("before_first_question", where, first)
    rest = turns[first:]
    if len(rest) % 2:
        tally.skip("closing_words", where)
    return list(zip(rest[::2], rest[1::2], strict=False))


def windows(pairs: list[tuple[Turn, Turn]], limit: int, tally: Tally, where: str) -> Iterator[list[tuple[Turn, Turn]]]:
    """Runs of exchanges about one topic, each starting at a question that stands alone, of at most `limit` characters."""
    window: list[tuple[Turn, Turn]] = []
    before = ""
    for question, answer in pairs:
        size = len(question.text) + len(answer.text)
        full = sum(len(turn.text) for pair in window for turn in pair) + size > limit
        if window and (full or starts_topic(question, before)):
            yield from _worth(window, tally, where)
            window = []
        before = question.text + answer.text
        if interrupted(question, answer):
            tally.skip("interrupted", where)
            yield from _worth(window, tally, where)
            window = []
        elif size > limit:
            tally.skip("too_long", where)
        elif window or stands_alone(question):
            window.append((question, answer))
        else:
            tally.skip("leans_on_earlier" if question.asks else "no_question", where)
    yield from _worth(window, tally, where)


def starts_topic(question: Turn, before: str) -> bool:
    """A heading, words such as 「下一題」, or a long question about other things than what was just said."""
    if question.topic or NEXT.match(question.text):
        return question.asks
    if len(question.text) < NEW_TOPIC_CHARS or not stands_alone(question):
        return False
    own = bigrams(question.text)
    return bool(own) and len(own & bigrams(before)) / len(own) < MIN_OVERLAP


def bigrams(text: str) -> set[str]:
    """Pairs of neighbouring Han characters."""
    return {text[i : i + 2] for i in range(len(text) - 1) if HAN.match(text[i]) and HAN.match(text[i + 1])}


def stands_alone(question: Turn) -> bool:
    """Whether a turn asks something that one understands without what was said before."""
    asks_last = ASKS.search(question.text[-QUESTION_END:])
    return bool(asks_last) and MIN_QUESTION <= len(question.text) <= MAX_QUESTION and not LEANS.match(question.text)


def interrupted(question: Turn, answer: Turn) -> bool:
    """Whether one breaks off what the other says."""
    return bool(BROKEN_OFF.search(question.text) or BROKEN_OFF.search(answer.text)) or answer.text[:1] in "…⋯"


def _worth(window: list[tuple[Turn, Turn]], tally: Tally, where: str) -> Iterator[list[tuple[Turn, Turn]]]:
    """The window without thanks at its end, if enough is left of it."""
    while window and (ends_open(window[-1]) or (len(window) > 1 and is_thanks(window[-1]))):
        tally.skip("closing_words" if is_thanks(window[-1]) else "open_question", where)
        window = window[:-1]
    if not window:
        return
    text = "".join(turn.text for pair in window for turn in pair)
    answers = [len(answer.text) for _, answer in window]
    short = sum(length < MIN_FIRST_ANSWER for length in answers)
    if answers[0] < MIN_FIRST_ANSWER or sum(answers) < MIN_ANSWER * len(answers):
        tally.skip("too_short", where)
    elif short > MAX_SHORT * len(answers):
        tally.skip("chatter", where)
    elif len(HAN.findall(text)) < MIN_HAN_SHARE * len(PUNCTUATION.sub("", text)):
        tally.skip("few_han", where)
    else:
        yield window


def ends_open(pair: tuple[Turn, Turn]) -> bool:
    """Whether the answer is a question back."""
    return bool(re.search(r"[？?]\s*$", pair[1].text)) and len(pair[1].text) < MIN_ANSWER


def is_thanks(pair: tuple[Turn, Turn]) -> bool:
    """Whether nothing is asked and little is said."""
    return not pair[0].asks and len(pair[1].text) < MIN_ANSWER
