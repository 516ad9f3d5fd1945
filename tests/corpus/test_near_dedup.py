"""Near duplicates over the whole corpus: which are found, which stays, and that nothing but the documents decides."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from twllm.corpus.build import build_folder
from twllm.corpus.config import CorpusConfig, CorpusSource
from twllm.corpus.document import Document, Dropped
from twllm.corpus.minhash import jaccard
from twllm.corpus.steps import make_step
from twllm.corpus.store import read_documents

PLACES = ["士林", "饒河", "逢甲", "六合", "花園", "羅東", "東大門", "寧夏", "瑞豐", "大東", "中華", "通化"]
FOODS = [
    "蚵仔煎",
    "大腸包小腸",
    "胡椒餅",
    "割包",
    "地瓜球",
    "魷魚羹",
    "米糕",
    "肉圓",
    "擔仔麵",
    "鹽酥雞",
    "豆花",
    "潤餅",
]
PEOPLE = ["阿明", "小美", "老陳", "阿嬤", "表哥", "同事", "鄰居", "導演", "老師", "學妹", "記者", "房東"]
ENDS = [
    "排隊的人一路排到巷口。",
    "老闆說今天的料特別新鮮。",
    "攤位前面擠滿了下班的人。",
    "味道跟小時候一模一樣。",
    "旁邊的阿伯直說值得。",
    "下雨天生意反而更好。",
]


def article(rng: random.Random, sentences: int = 12) -> str:
    """A text that shares its words, and hardly its sentences, with others."""
    return "\n".join(
        f"{rng.choice(PEOPLE)}在{rng.choice(PLACES)}夜市花了{rng.randint(30, 900)}元吃{rng.choice(FOODS)}和{rng.choice(FOODS)}，"
        f"從第{rng.randint(1, 300)}攤走到第{rng.randint(1, 300)}攤，{rng.choice(ENDS)}"
        for _ in range(sentences)
    )


def edit(rng: random.Random, text: str, kind: str) -> str:
    """A copy as the web makes them."""
    lines = text.split("\n")
    if kind == "insert":
        lines.insert(rng.randrange(len(lines)), "（記者補充：以上價格以現場公告為準。）")
    elif kind == "delete":
        del lines[rng.randrange(len(lines))]
    elif kind == "move":
        lines.append(lines.pop(0))
    elif kind == "boilerplate":
        lines = ["首頁 > 生活 > 美食", *lines, "按讚、訂閱、分享 版權所有"]
    elif kind == "width":
        return text.replace("，", ",").replace("。", " ") + "　"
    elif kind == "characters":
        return "".join(rng.choice("的了是在") if rng.random() < 0.02 else char for char in text)
    return "\n".join(lines)


KINDS = ("insert", "delete", "move", "boilerplate", "width", "characters")


def run(texts: list[str], **settings: object) -> list[Any]:
    """What the step yields for documents "0", "1", …"""
    documents = [Document(str(number), text, "測試") for number, text in enumerate(texts)]
    return list(make_step("near_dedup", CorpusConfig(**settings))(documents))


def test_precision_and_recall_against_exact_jaccard() -> None:
    rng = random.Random(7)
    originals = [article(rng) for _ in range(150)]
    copies = [edit(rng, text, KINDS[number % len(KINDS)]) for number, text in enumerate(originals)]
    dropped = {int(item.document.id) for item in run(originals + copies) if isinstance(item, Dropped)}
    exact = {number: jaccard(originals[number % 150], copies[number % 150]) for number in range(150)}
    true = {number for number, value in exact.items() if value >= 0.75}
    found = {number % 150 for number in dropped}
    assert len(true) > 100
    assert len(found & true) >= 0.97 * len(true)
    assert len(found & {n for n, value in exact.items() if value >= 0.65}) >= 0.99 * len(found)
    assert all(exact[number] > 0.6 for number in found)  # no two different articles are taken for one


def test_shifted_copies_form_one_cluster_and_the_longest_stays() -> None:
    text = article(random.Random(3), 30)
    items = run([text, text + "\n完。", text.replace("\n", "\n\n"), article(random.Random(4), 30)])
    told = {item.document.id: (item.reason, item.detail) for item in items if isinstance(item, Dropped)}
    assert set(told) == {"0", "2"}
    assert (
        told["0"][0] == "near_duplicate" and told["0"][1].startswith("cluster 0:") and told["0"][1].endswith("like 1")
    )


def test_short_texts_go_only_when_they_are_the_same() -> None:
    items = run(["好喔", "好喔", "好啊", "", "，", "。"])
    assert [item.document.id for item in items if isinstance(item, Dropped)] == ["1"]
    assert next(item.reason for item in items if isinstance(item, Dropped)) == "duplicate"


def test_the_best_score_stays_within_a_source() -> None:
    text = article(random.Random(5))
    documents = [
        Document(str(n), text, metadata={"taiwan_score": score}) for n, score in enumerate((0.2, 0.9, 0.9, "bad"))
    ]
    items = list(make_step("near_dedup", CorpusConfig())(documents))
    assert [item.id for item in items if isinstance(item, Document)] == ["1"]


@pytest.fixture
def rows() -> dict[str, list[dict[str, Any]]]:
    """Two sources with copies inside and across."""
    rng = random.Random(11)
    texts = [article(rng) for _ in range(40)]
    first = [{"id": f"n{n}", "text": text, "url": f"https://news.tw/{n}"} for n, text in enumerate(texts)]
    copies = [(n, edit(rng, text, rng.choice(KINDS[:5]))) for n, text in enumerate(texts[:25])]
    second = [{"id": f"b{n}", "text": text, "url": f"https://blog.tw/{n}"} for n, text in copies]
    return {"news": first, "blog": [*second, {"id": "alone", "text": article(rng), "url": "https://blog.tw/alone"}]}


def config_of(folder: Path, rows: dict[str, list[dict[str, Any]]], **settings: Any) -> CorpusConfig:
    """A build of these rows, ten to a file."""
    for name, every in rows.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(0, len(every), 10):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in every[number : number + 10])
            (folder / name / f"{number:03}.jsonl").write_text(lines, encoding="utf-8")
    sources = tuple(CorpusSource(path=str(folder / name), license="CC0-1.0") for name in rows)
    steps = ("normalize", "near_dedup")
    return CorpusConfig(sources=sources, steps=steps, **({"part_mb": 1e-6, "max_held_out": 0} | settings))


def digests(folder: Path) -> dict[str, str]:
    """Of all files that tell neither time nor place."""
    names = ("documents.jsonl.zst", "clusters.jsonl")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def test_the_first_source_stays_and_neither_parts_nor_workers_matter(
    rows: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    config = config_of(tmp_path / "in", rows)
    facts = build_folder(config, tmp_path / "one")
    assert facts and facts["near_dedup"]["clusters"] >= 23
    kept = {document.id.split("/")[-1] for document in read_documents(tmp_path / "one")}
    assert {f"n{n}" for n in range(40)} <= kept and "alone" in kept and len(kept) <= 43
    build_folder(config, tmp_path / "two", workers=2)
    build_folder(config.model_copy(update={"part_mb": 64.0}), tmp_path / "whole")
    assert digests(tmp_path / "one") == digests(tmp_path / "two") == digests(tmp_path / "whole")
    clusters = [
        json.loads(line) for line in (tmp_path / "one" / "clusters.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["cluster"] for row in clusters] == list(range(len(clusters)))
    assert all(row["size"] == 1 + len(row["members"]) for row in clusters)
    assert all(row["members"][0]["url"].startswith("https://blog.tw/") for row in clusters)
    assert all(0.7 <= member["similarity"] <= 1 for row in clusters for member in row["members"])


def test_take_down_gives_the_build_that_never_had_it(rows: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    (tmp_path / "takedown.toml").write_text('[[takedown]]\nurl = "https://news.tw/3"\n', encoding="utf-8")
    build_folder(config_of(tmp_path / "in", rows, takedown=str(tmp_path / "takedown.toml")), tmp_path / "without")
    never = {"news": [row for row in rows["news"] if row["id"] != "n3"], "blog": rows["blog"]}
    build_folder(config_of(tmp_path / "never", never), tmp_path / "never-had")
    assert digests(tmp_path / "without") == digests(tmp_path / "never-had")
    kept = {document.id.split("/")[-1] for document in read_documents(tmp_path / "without")}
    assert "n3" not in kept and "b3" in kept  # the copy takes its place
