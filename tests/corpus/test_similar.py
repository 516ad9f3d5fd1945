"""Exact Jaccard similarity: against the definition, with and without a threshold."""

import random

from twllm.corpus.similar import SimilarTexts, similarity, trigrams, wording_key

WORDS = "臺灣的山很高玉山雪山合歡山阿里山日出雲海火車森林步道小吃夜市蚵仔煎珍珠奶茶豆花滷肉飯"


def texts() -> list[str]:
    chance = random.Random(0)
    made = ["".join(chance.choice(WORDS) for _ in range(chance.randint(1, 40))) for _ in range(150)]
    for text in made[:100]:
        changed = list(text)
        for _ in range(chance.randint(0, 6)):
            changed[chance.randrange(len(changed))] = chance.choice(WORDS)
        made.append("".join(changed))
    chance.shuffle(made)
    return made


def test_most_similar_is_the_maximum_of_all_pairs() -> None:
    given = texts()
    plain, index = [trigrams(wording_key(text)) for text in given], SimilarTexts()
    num_found = 0
    for number, text in enumerate(given):
        scores = [
            (len(plain[number] & other) / len(plain[number] | other), at) for at, other in enumerate(plain[:number])
        ]
        best = max((score for score in scores if score[0] > 0), default=(0.0, -1))
        assert index.most_similar(text) == best
        for limit in (0.3, 0.5, 0.7, 1.0):
            assert index.most_similar(text, limit) == (best if best[0] >= limit else (0.0, -1))
        num_found += best[0] >= 0.7
        assert index.add(text) == number
    assert num_found > 20
    assert len(index) == len(given)


def test_similarity_of_two_texts() -> None:
    assert similarity("臺灣 最高的山！", "台灣最高的山") == 1.0
    assert similarity("甲乙丙丁", "甲乙丙戊") == 1 / 3
    assert similarity("", "") == similarity("。", "！") == 0.0
