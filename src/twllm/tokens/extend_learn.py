"""New Traditional-Chinese pieces for an existing tokenizer, learned by continuing its own BPE on a corpus.

The corpus is cut by the base tokenizer first, and merges are learned on what that leaves (continued BPE training, arXiv
2512.03989): a piece is reachable because it was learned from the very sequences that the extended tokenizer will see. Pieces
consist of Han characters, or of Bopomofo, or of Chinese and full-width punctuation, and of nothing else, so text in other scripts
keeps its ids. A character that the base writes in bytes is completed before it is joined with others, so that pieces are whole characters.

Characters and joined pieces compete for the places by what a place saves: tokens of the corpus, counted when the piece is made.
Price: 20 M characters take about two minutes and 2 GB. Not covered: Unigram and WordPiece vocabularies (refused by name).
"""

import heapq
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from twllm.errors import UserError
from twllm.tokens.template import clean_text

HAN = "\u3005\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
BOPOMOFO = "\u3105-\u312f\u31a0-\u31bf"
MARKS = "\u3000-\u3003\u3008-\u301f\ufe30-\ufe4f\uff01-\uff65\uffe0-\uffe6"  # Chinese punctuation, full-width letters
RUN = re.compile(f"[{HAN}]+|[{BOPOMOFO}]+|[{MARKS}]+")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
FIRST_SYMBOL = 0x10000  # units are learned on as characters of their own, from here on

Unit = tuple[str, ...]  # the base's tokens of a stretch that begins and ends with a character


class Piece(NamedTuple):
    """An addition in the model's alphabet; a sentencepiece character has no parts, a piece that the base has only gets a merge."""

    text: str
    parts: tuple[str, str] | None


@dataclass(frozen=True)
class Base:
    """What learning needs to know of a BPE tokenizer."""

    backend: Tokenizer
    vocab: dict[str, int]
    byte_level: bool

    def letters(self, text: str) -> str:
        """Text in the model's alphabet."""
        return (
            pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(text)[0][0] if self.byte_level else text
        )

    def text(self, piece: str) -> str:
        """A piece as text."""
        return str(decoders.ByteLevel().decode([piece])) if self.byte_level else piece

    def num_bytes(self, token: str) -> int:
        """Bytes of text that a token stands for."""
        if self.byte_level or BYTE.fullmatch(token):
            return len(token) if self.byte_level else 1
        return len(token.encode())

    def words(self, text: str) -> Iterator[str]:
        """The stretches that the base never joins across, those with something to learn."""
        if not self.byte_level:
            yield from RUN.findall(text)
            return
        if self.backend.normalizer is not None:
            text = self.backend.normalizer.normalize_str(text)
        cut = self.backend.pre_tokenizer
        for _, (start, end) in cut.pre_tokenize_str(text) if cut is not None else [("", (0, len(text)))]:
            if RUN.search(word := text[start:end]):
                yield word


def read_base(backend: Tokenizer) -> Base:
    """The base of an extension.

    Raises:
        UserError: neither byte-level BPE nor sentencepiece-BPE with byte fallback.
    """
    file = json.loads(backend.to_str())
    model = file["model"]
    kind = model["type"]
    byte_level = "ByteLevel" in json.dumps(file["pre_tokenizer"])
    if kind != "BPE" or not (byte_level or model.get("byte_fallback")):
        raise UserError(
            f"只能擴充位元組級 BPE 或 sentencepiece-BPE (cannot extend): {kind}",
            "tokenizer.json",
            "換一個 Llama、Mistral、Qwen 型的分詞器",
        )
    return Base(backend, backend.get_vocab(with_added_tokens=True), byte_level)


def learn_pieces(base: Base, texts: Iterable[str], add: int, max_chars: int = 4, min_frequency: int = 2) -> list[Piece]:
    """Additions in the order in which they are to be merged, of which `add` take a place in the vocabulary.

    Raises:
        UserError: the corpus gives fewer.
    """
    runs = _runs(base, texts)
    scored = heapq.merge(
        _characters(base, runs, min_frequency),
        _merges(base, runs, add, max_chars, min_frequency),
        key=lambda found: -found[0],
    )
    pieces: list[Piece] = []
    known, left = set(base.vocab), add
    for _, piece in scored:
        if left == 0:
            break
        if piece.text not in known:
            known.add(piece.text)
            left -= 1
        elif piece.parts is None:
            continue
        pieces.append(piece)
    if left:
        raise UserError(
            "語料太小，學不出這麼多新詞元 (corpus too small)", f"--add {add}", f"降到 {add - left} 以下，或加入更多文字"
        )
    return list(dict.fromkeys(pieces))  # two characters may share their first bytes


def _runs(base: Base, texts: Iterable[str]) -> Counter[tuple[Unit, ...]]:
    """How often each run of units occurs."""
    words = Counter(word for text in texts for word in base.words(clean_text(text)))
    runs: Counter[tuple[Unit, ...]] = Counter()
    for word, count in words.items():
        for run in _cut(base, word):
            runs[run] += count
    return runs


def _cut(base: Base, word: str) -> Iterator[tuple[Unit, ...]]:
    """The runs of one word: its tokens grouped to whole characters, and these by script."""
    tokens = [token.value for token in base.backend.model.tokenize(base.letters(word))]
    ends, found, unit = _ends(word), list[Unit](), Unit()
    at = begin = char = 0
    script: str | None = None
    for token in tokens:
        unit = (*unit, token)
        at += base.num_bytes(token)
        if at not in ends:
            continue
        text, begin, unit, whole = word[char : ends[at]], at, Unit(), unit
        char = ends[at]
        kind = _script(text)
        if found and kind != script:
            yield tuple(found)
            found = []
        if kind:
            found.append(whole)
        script = kind
    if found and begin == at:
        yield tuple(found)


def _ends(word: str) -> dict[int, int]:
    """Number of bytes → number of characters, at the end of each character."""
    ends, at = {}, 0
    for i, char in enumerate(word, 1):
        at += len(char.encode())
        ends[at] = i
    return ends


def _script(text: str) -> str | None:
    """Which of the scripts the whole text is written in."""
    for name, chars in (("han", HAN), ("bopomofo", BOPOMOFO), ("marks", MARKS)):
        if re.fullmatch(f"[{chars}]+", text):
            return name
    return None


def _characters(base: Base, runs: Counter[tuple[Unit, ...]], min_frequency: int) -> Iterator[tuple[float, Piece]]:
    """(tokens a place saves, piece) of units of several tokens, the best first."""
    units: Counter[Unit] = Counter()
    for run, count in runs.items():
        for unit in run:
            if len(unit) > 1:
                units[unit] += count
    if base.byte_level:
        for unit, count in units.most_common():
            whole = unit[0]
            for token in unit[1:]:
                if count >= min_frequency:
                    yield float(count), Piece(whole + token, (whole, token))
                whole += token
        return
    gains = [(float(count * (len(unit) - 1)), unit) for unit, count in units.items() if count >= min_frequency]
    for gain, unit in sorted(gains, key=lambda found: -found[0]):
        yield gain, Piece(_joined(base, unit), None)


def _joined(base: Base, unit: Unit) -> str:
    """A unit as one piece."""
    if base.byte_level or len(unit) == 1:
        return "".join(unit)
    return bytes(int(token[3:5], 16) for token in unit).decode() if BYTE.fullmatch(unit[0]) else "".join(unit)


def _merges(
    base: Base, runs: Counter[tuple[Unit, ...]], add: int, max_chars: int, min_frequency: int
) -> Iterator[tuple[float, Piece]]:
    """(tokens a place saves, piece) of what joins units, in the order learned."""
    symbols: dict[Unit, str] = {}
    for run in runs:
        for unit in run:
            symbols.setdefault(unit, chr(FIRST_SYMBOL + len(symbols)))
    words = {"".join(symbols[unit] for unit in run): count for run, count in runs.items()}
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=len(symbols) + add,
        min_frequency=min_frequency,
        max_token_length=max_chars + 1,  # the library stops one below
        show_progress=False,
        initial_alphabet=sorted(symbols.values()),
    )
    learner.train_from_iterator((word for word, count in words.items() for _ in range(count)), trainer)
    pieces = {symbol: _joined(base, unit) for unit, symbol in symbols.items()}

    def spell(text: str) -> str:
        return "".join(pieces[symbol] for symbol in text)

    merges = [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
    counts = _times_made(learner, words, merges)
    dropped: set[str] = set()  # too long, and what is made of them
    lowest = float("inf")
    for left, right in merges:
        whole = left + right
        if dropped & {left, right} or len(base.text(spell(whole))) > max_chars:
            dropped.add(whole)
            continue
        lowest = min(lowest, counts[whole])  # a later merge never comes before an earlier one
        yield lowest, Piece(spell(whole), (spell(left), spell(right)))


def _times_made(learner: Tokenizer, words: dict[str, int], merges: list[tuple[str, str]]) -> Counter[str]:
    """How often each joined piece is made: as often as it is left over, and as the pieces made of it are made."""
    made: Counter[str] = Counter()
    names = {id: token for token, id in learner.get_vocab().items()}
    texts = list(words)
    for start in range(0, len(texts), 100_000):
        part = texts[start : start + 100_000]
        for word, encoding in zip(part, learner.encode_batch_fast(part), strict=True):
            for id in encoding.ids:
                made[names[id]] += words[word]
    for left, right in reversed(merges):
        made[left] += made[left + right]
        made[right] += made[left + right]
    return made


def parse_merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Merges of a tokenizer.json, which writes them in two ways."""
    found = []
    for pair in model["merges"]:
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        found.append((left, right))
    return found
