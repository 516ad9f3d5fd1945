"""Which evaluation texts stand in other texts: shared n-grams, counted where they stand together.

A passage (one text of an evaluation item) is found in a text when the share of its letters and digits that lie in common n-grams
standing close together there reaches the threshold: Llama 2's measure and its 80 % (arXiv 2307.09288, A.6), which a word put in
or taken out changes little. An n-gram is 13 characters (GPT-3's length, arXiv 2005.14165, appendix C), or 8 words (PaLM's,
arXiv 2204.02311, section 8) where a text has more words than CJK characters. Shorter passages must stand there whole; a
question that says too little alone (short, or a wording of many items) must be followed by its answer. n-grams of `common` and
more different passages are boilerplate and count for nothing, and so do those that are mostly Latin inside Chinese text (formulas,
product names) or mostly digits. Close together: within twice the passage's length and four n-grams, so that scraps from
all over a long text do not add up.
Not covered: paraphrase, translation (evaluate/paraphrase.py looks for the first), other words for the same (软件 for 軟體).
Speed and measured false positives: docs/decontamination.md.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from twllm.corpus.folding import (
    BOUNDARY,
    Folded,
    Units,
    character_units,
    fold,
    folded_text,
    is_cjk,
    is_digit,
    word_units,
)
from twllm.corpus.grams import GramIndex, Runs, covered, densest, longest_run, run_hashes

BATCH_CHARS = 1 << 18  # of one search
PIECE_CHARS = 1 << 18  # of a text folded and searched at a time: arrays that fit the processor's cache
PAIR_REACH = 64  # characters of the normal form within which the answer has to follow the question
MIN_ANCHOR = 4  # characters of a question that is looked for together with its answer
FLAGGING = ("question", "context", "reference", "text")  # found choices are told, but are facts as often as copies


class Passage(NamedTuple):
    """One text of an item. `answers`: right answers in words, to be looked for behind a question."""

    item: str
    part: str
    text: str
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What counts as found. Chosen, not tuned, where the module does not name a paper."""

    chars: int = 13
    words: int = 8
    threshold: float = 0.8
    common: int = 5
    min_chars: int = 7  # of a passage shorter than an n-gram; below, only question and answer together are looked for
    min_words: int = 6


class Match(NamedTuple):
    """A passage in a text: of which items and which part, the share of it, the longest common run (in letters and digits, or
    words), and `[start, stop)` of the place in the text's NFC form. `how`: share, whole or pair."""

    text: int
    passage: int
    items: tuple[str, ...]
    part: str
    share: float
    run: int
    start: int
    stop: int
    how: str


class _Alphabet(NamedTuple):
    """All passages written in one kind of units: their index, and for each indexed run its passage, place in it and length."""

    split: Callable[[Folded], Units]
    n: int
    grams: GramIndex
    passage: Any
    position: Any
    size: Any
    anchor: Any


class _Hits(NamedTuple):
    """Indexed runs found in a joined text: run number, place in units, and [start, stop) in characters."""

    run: Any
    unit: Any
    start: Any
    stop: Any


def nfc(text: str) -> str:
    """The form whose places a `Match` tells."""
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


class OverlapIndex:
    """Passages to look for. Passages of equal letters and part are one, so that a context under ten questions is no boilerplate."""

    def __init__(self, passages: Iterable[Passage], limits: Limits = Limits()) -> None:
        import numpy as np

        self.limits = limits
        self.members: list[list[Passage]] = []
        numbers: dict[tuple[str, str], int] = {}
        for passage in passages:
            if key := folded_text(passage.text):
                number = numbers.setdefault((key, passage.part), len(numbers))
                self.members += [[]] if number == len(self.members) else []
                self.members[number].append(passage)
        self.keys = [key for key, _ in numbers]
        self.reach = np.zeros(len(self.keys), np.int64)  # units of each passage that lie in n-grams that count
        self.length = np.zeros(len(self.keys), np.int64)  # in characters or words
        self.num_common = 0
        groups: dict[bool, list[int]] = {True: [], False: []}
        for number, members in enumerate(self.members):
            groups[mostly_words(members[0].text)].append(number)
        self.alphabets = [self._alphabet(numbers, words) for words, numbers in groups.items() if numbers]
        self.searchable = self.reach > 0
        for alphabet in self.alphabets:
            self.searchable[alphabet.passage] = True

    # -- building -------------------------------------------------------------------------------------------------

    def _alphabet(self, numbers: list[int], words: bool) -> _Alphabet:
        """Index the passages of these numbers: their n-grams, the short ones whole, and questions that need their answer."""
        import numpy as np

        split, n = (word_units, self.limits.words) if words else (character_units, self.limits.chars)
        texts = [self.members[number][0].text.replace(BOUNDARY, "") for number in numbers]
        units = split(fold(BOUNDARY.join([*texts, ""])))
        lengths = np.asarray([len(split(fold(text)).values) for text in texts])
        self.length[numbers] = lengths
        begin = np.zeros(len(self.keys), np.int64)  # of each passage in `units`; a boundary stands behind each
        begin[numbers] = np.cumsum(lengths + 1) - lengths - 1
        owner = np.repeat(np.asarray(numbers), lengths + 1)
        telling = ~is_digit(units.codes) if words else is_cjk(units.codes)
        told, first = np.append(0, np.cumsum(telling)), units.first
        runs, anchors = list[tuple[int, Any, bool]](), list[tuple[int, Any, bool]]()
        for size, hashes in run_hashes(units.values, n):
            whole = begin[numbers][lengths == size] if size < n else _windows(owner, n)
            if size >= (self.limits.min_words if words else self.limits.min_chars):
                low, high = first[whole], first[whole + size]
                whole = whole[2 * (told[high] - told[low]) >= high - low]
                places = whole[~self._common(hashes[whole], owner[whole])]
                self.reach += covered(owner[places], places, size, len(self.reach))
                runs.append((size, places, False))
        for number in numbers:
            if not self.reach[number] and self._pair_says_enough(number):
                anchors.append((min(int(self.length[number]), n), begin[[number]], True))
        kinds = [*runs, *anchors]
        places = np.concatenate([places for _, places, _ in kinds]) if kinds else np.zeros(0, np.int64)
        size_of = np.repeat([size for size, _, _ in kinds], [len(places) for _, places, _ in kinds])
        anchor = np.repeat([flag for _, _, flag in kinds], [len(places) for _, places, _ in kinds])
        groups = [
            Runs(size, places[size_of == size], np.flatnonzero(size_of == size)) for size in set(size_of.tolist())
        ]
        return _Alphabet(
            split, n, GramIndex(units, groups), owner[places], places - begin[owner[places]], size_of, anchor
        )

    def _common(self, hashes: Any, owner: Any) -> Any:
        """Which runs `common` and more passages have. Items that ask the very same count each; a shared context counts once."""
        import numpy as np

        _, run = np.unique(hashes, return_inverse=True)
        weight = np.asarray([1 if m[0].part == "context" else len({p.item for p in m}) for m in self.members])
        pairs = np.unique(np.stack((run, owner)), axis=1)
        counts = np.bincount(pairs[0], weights=weight[pairs[1]])
        self.num_common += int((counts >= self.limits.common).sum())
        return counts[run] >= self.limits.common

    def _pair_says_enough(self, number: int) -> bool:
        """Whether a question that says too little alone is worth looking for with its answer behind it."""
        key, part = self.keys[number], self.members[number][0].part
        longest = max((len(folded_text(a)) for passage in self.members[number] for a in passage.answers), default=0)
        return part == "question" and len(key) >= MIN_ANCHOR and longest > 1 and len(key) + longest >= self.limits.chars

    # -- searching ------------------------------------------------------------------------------------------------

    def find(self, texts: Sequence[str], floor: Any = None, seen: Sequence[Any] = ()) -> list[Match]:
        """The passages in each text, by text, then passage; of a text's several places the densest.

        `floor` (one number a passage; None: the threshold): a match of a smaller share is not told. `seen` (from
        `new_seen`): runs found anywhere are marked there.
        """
        import numpy as np

        floor = np.full(len(self.keys), self.limits.threshold) if floor is None else np.asarray(floor)
        plain = [nfc(text).replace(BOUNDARY, " ") for text in texts]
        begins = np.cumsum([0, *(len(text) + 1 for text in plain)])[:-1]
        joined = BOUNDARY.join(plain)
        matches: list[Match] = []
        for number, alphabet in enumerate(self.alphabets):
            hits = _search(joined, alphabet)
            if not len(hits.run):
                continue
            anchored = alphabet.anchor[hits.run]
            if seen:
                seen[number][hits.run[~anchored]] = True
            where = np.searchsorted(begins, hits.start, "right") - 1
            for at in np.flatnonzero(anchored).tolist():
                text = int(where[at])
                matches += self._pairs(
                    plain[text], text, int(hits.start[at] - begins[text]), alphabet.passage[hits.run[at]]
                )
            shared = _Hits(*(column[~anchored] for column in hits))
            matches += self._shares(alphabet, shared, where[~anchored], begins, floor)
        return sorted(set(matches))

    def new_seen(self) -> list[Any]:
        """Marks for `find`: one for each indexed run."""
        import numpy as np

        return [np.zeros(len(alphabet.passage), bool) for alphabet in self.alphabets]

    def share_anywhere(self, seen: Sequence[Any]) -> Any:
        """For each passage the share of it that was found in all texts together."""
        import numpy as np

        found = np.zeros(len(self.keys))
        for alphabet, marks in zip(self.alphabets, seen, strict=True):
            found += covered(alphabet.passage[marks], alphabet.position[marks], alphabet.size[marks], len(found))
        return found / np.maximum(self.reach, 1)

    def _shares(self, alphabet: _Alphabet, hits: _Hits, where: Any, begins: Any, floor: Any) -> Iterator[Match]:
        """Matches by share, of the groups (text, passage) that hold enough n-grams to reach the floor at all."""
        import numpy as np

        passage, position = alphabet.passage[hits.run], alphabet.position[hits.run]
        order = np.lexsort((hits.unit, position, passage, where))
        where, passage, position = where[order], passage[order], position[order]
        if not len(order):
            return
        new_group = np.append(True, (np.diff(where) != 0) | (np.diff(passage) != 0))
        first = np.flatnonzero(new_group)
        distinct = np.add.reduceat(new_group | np.append(True, np.diff(position) != 0), first, dtype=np.int64)
        stops = np.append(first[1:], len(order))
        most = np.minimum(distinct * alphabet.n / self.reach[passage[first]], 1)
        enough = most >= floor[passage[first]]
        for begin, stop in zip(first[enough].tolist(), stops[enough].tolist(), strict=True):
            chosen = order[begin:stop]
            number, text = int(passage[begin]), int(where[begin])
            units = int(self.length[number])
            _, low, high = densest(hits.unit[chosen], position[begin:stop], 2 * units + 4 * alphabet.n)
            inside = chosen[(hits.unit[chosen] >= low) & (hits.unit[chosen] <= high)]
            found = hits.run[inside]
            share = float(covered(np.zeros(len(found), np.int64), alphabet.position[found], alphabet.size[found], 1)[0])
            share /= int(self.reach[number])
            if share < floor[number]:
                continue
            run = longest_run(hits.unit[inside], alphabet.position[hits.run[inside]])
            start, end = int(hits.start[inside].min()), int(hits.stop[inside].max())
            whole = units < alphabet.n
            offset = int(begins[text])
            yield Match(
                text, number, self._items(number), self.members[number][0].part, share,
                units if whole else run + alphabet.n - 1, start - offset, end - offset, "whole" if whole else "share",
            )  # fmt: skip

    def _pairs(self, text: str, number: int, start: int, passage: int) -> Iterator[Match]:
        """The match of a question that stands whole at `start` with an answer soon behind it."""
        key, members = self.keys[passage], self.members[passage]
        reach = len(key) + PAIR_REACH + max(len(a) for p in members for a in p.answers)
        folded = fold(text[start : start + 4 * reach])
        said = folded.codes[:reach].astype("<u4").tobytes().decode("utf-32-le")
        if not said.startswith(key):
            return
        items, end = [], 0
        for item, _, _, answers in members:
            for answer in filter(lambda a: len(a) > 1, map(folded_text, answers)):
                at = said.find(answer, len(key), len(key) + PAIR_REACH + len(answer))
                if at >= 0 and len(key) + len(answer) >= self.limits.chars:
                    items.append(item)
                    end = max(end, at + len(answer))
                    break
        if items:
            stop = start + int(folded.at[end - 1]) + 1
            yield Match(number, int(passage), tuple(dict.fromkeys(items)), "question", 1.0, end, start, stop, "pair")

    def _items(self, passage: int) -> tuple[str, ...]:
        return tuple(dict.fromkeys(member.item for member in self.members[passage]))


def mostly_words(text: str) -> bool:
    """Whether a text is compared by words: it has more words of Latin and the like than CJK characters.

    >>> mostly_words("What is the capital of Taiwan?"), mostly_words("CPU 與 GPU 的差別")
    (True, False)
    """
    folded = fold(text)
    return bool(len(word_units(folded).values) > is_cjk(folded.codes).sum())


def _windows(owner: Any, n: int) -> Any:
    """Places of the windows of n units that lie within one passage (the unit behind each passage is its boundary)."""
    import numpy as np

    if len(owner) <= n:
        return np.zeros(0, np.int64)
    return np.flatnonzero(owner[:-n] == owner[n:])  # n + 1 units of one owner: n of the passage and what follows


def _search(joined: str, alphabet: _Alphabet) -> _Hits:
    """All indexed runs in a text, piece by piece; a run in the overlap of two pieces is found twice, at the same place."""
    import numpy as np

    found: list[_Hits] = []
    begin = base = end = 0
    while end < len(joined):
        end = min(len(joined), end + PIECE_CHARS)
        units = alphabet.split(fold(joined[begin:end]))
        hits = alphabet.grams.find(units)
        stop = units.stop[hits.unit + hits.length - 1] + begin
        keep = (stop < end) | (end == len(joined)) | (alphabet.split is character_units)  # a word may be cut by the end
        start = units.start[hits.unit] + begin
        found.append(_Hits(*(column[keep] for column in (hits.owner, hits.unit + base, start, stop))))
        back = units.start[-alphabet.n :][
            :1
        ]  # the next piece begins with the last n units of this one, if they are near
        again = max(end - PIECE_CHARS, begin + int(back[0]) if len(back) else end)
        base += int(np.searchsorted(units.start, again - begin))
        begin = again
    return (
        _Hits(*(np.concatenate(columns) for columns in zip(*found, strict=True)))
        if found
        else _Hits(*[np.zeros(0, np.int64)] * 4)
    )


class HasText(Protocol):
    """Anything with a text: a document, a training text."""

    @property
    def text(self) -> str: ...


T = TypeVar("T", bound=HasText)


def batches(texts: Iterable[T]) -> Iterator[list[T]]:
    """Texts of about BATCH_CHARS together, for one search."""
    batch, size = list[T](), 0
    for text in texts:
        batch.append(text)
        size += len(text.text) + 1
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
