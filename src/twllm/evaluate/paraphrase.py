"""Does a training conversation ask a benchmark question in other words? For questions whose facts may be known and whose
asking may not.

A training exchange is a suspect when its question is near the benchmark's (cosine of character 2-grams weighted by rarity,
so that 「哪裡」 and 「是什麼」 weigh little and names weigh much) and its reply holds the right answer. Two numbers a
question: the nearest exchange whose reply holds the answer, and the nearest at all. Calibrated on `taiwan_facts`, where
ten wordings ask the same thing: tests/evaluate/test_paraphrase.py says what share of true paraphrases is found at
`SUSPECT`. Not covered: paraphrase without shared characters (「玉山」 asked as 「東北亞第一高峰」 both ways).
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from twllm.corpus.similar import normalise, wording_key
from twllm.evaluate.keywords import Question, is_correct

SUSPECT = (
    0.2  # cosine from which a person should look: finds 97 % of the wordings of `taiwan_facts` (the test counts them)
)
WEIGHTS = dict[str, float]


@dataclass(frozen=True)
class Exchange:
    """A question and its reply in the training data."""

    question: str
    reply: str


@dataclass(frozen=True)
class Paraphrase:
    """The nearest training exchange that gives the answer away ('' : none does)."""

    question_id: str
    similarity: float
    question: str
    reply: str

    @property
    def suspect(self) -> bool:
        """Whether a person should look."""
        return self.similarity >= SUSPECT


def bigrams(text: str) -> list[str]:
    """Runs of two characters of the normal form."""
    key = wording_key(text)
    return [key[at : at + 2] for at in range(max(1, len(key) - 1))]


class ParaphraseSearch:
    """The training exchanges, ready to be searched."""

    def __init__(self, exchanges: Iterable[Exchange]) -> None:
        self.exchanges = list(exchanges)
        grams = [bigrams(exchange.question) for exchange in self.exchanges]
        counts = Counter(gram for text in grams for gram in set(text))
        self._rarity = {gram: math.log((1 + len(grams)) / (1 + count)) for gram, count in counts.items()}
        self._unseen = math.log(1 + len(grams))
        self._vectors = [self._vector(text) for text in grams]
        self._holders: dict[str, list[int]] = {}
        for number, vector in enumerate(self._vectors):
            for gram in vector:
                self._holders.setdefault(gram, []).append(number)
        self._replies = [normalise(exchange.reply) for exchange in self.exchanges]

    def _vector(self, grams: Sequence[str]) -> WEIGHTS:
        weights = {gram: self._rarity.get(gram, self._unseen) for gram in set(grams)}
        length = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
        return {gram: weight / length for gram, weight in weights.items()}

    def nearest(self, question: Question) -> Paraphrase:
        """The most similar exchange whose reply is a right answer to the question.

        A four-choice question's right answer is the text of the right choice.
        """
        accept = (question.choices["ABCDE".index(question.accept[0])],) if question.choices else question.accept
        vector = self._vector(bigrams(question.question))
        scores: Counter[int] = Counter()
        for gram, weight in vector.items():
            for number in self._holders.get(gram, ()):
                scores[number] += weight * self._vectors[number][gram]  # type: ignore[assignment]
        for number, score in scores.most_common():
            if is_correct(self._replies[number], accept):
                found = self.exchanges[number]
                return Paraphrase(question.id, round(score, 4), found.question, found.reply)
        return Paraphrase(question.id, 0.0, "", "")


def exchanges_of(rows: Iterable[dict[str, object]]) -> Iterable[Exchange]:
    """The exchanges of training rows: conversations turn by turn, facts wording by wording, paragraphs by their title."""
    for row in rows:
        messages = row.get("messages") or []
        assert isinstance(messages, list)
        for asked, said in zip(messages[::2], messages[1::2], strict=False):
            yield Exchange(str(asked["content"]), str(said["content"]))
        questions = row.get("questions") or []
        assert isinstance(questions, list)
        for question in questions:
            yield Exchange(str(question), str(row["answer"]))
