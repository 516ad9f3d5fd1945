"""The whole path of a web corpus in one build: evaluation texts, region, boilerplate and near duplicates out."""

import hashlib
import json
import random
from pathlib import Path

from tests.corpus.test_near_dedup import article, edit
from twllm.corpus.build import build_folder
from twllm.corpus.config import CorpusConfig, CorpusSource
from twllm.corpus.store import read_documents

STEPS = ("normalize", "decontaminate", "region", "boilerplate", "dedup_paragraphs", "near_dedup")
QUESTION = "下列哪一座夜市位於基隆市仁愛區，而且以黃色燈籠與廟口小吃聞名全國？"
FOOTER = "本站內容未經授權不得轉載"


def test_full_path_in_one_and_in_two_processes(tmp_path: Path) -> None:
    rng = random.Random(31)
    texts = [article(rng, 6) for _ in range(45)]
    rows = [{"id": str(n), "text": f"{text}\n{FOOTER}", "url": f"https://a.tw/{n}"} for n, text in enumerate(texts)]
    rows += [{"id": f"c{n}", "text": edit(rng, texts[n], "boilerplate"), "url": f"https://b.tw/{n}"} for n in range(9)]
    rows += [
        {"id": "item", "text": f"{article(rng, 3)}\n{QUESTION}\n答案是廟口夜市。", "url": "https://c.tw/1"},
        {"id": "cn", "text": "这个视频的质量很好，请用新版的软件打开，然后点击链接下载。" * 3, "url": "https://c.tw/2"},
    ]
    (tmp_path / "in").mkdir()
    for start in range(0, len(rows), 20):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[start : start + 20])
        (tmp_path / "in" / f"{start:03}.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "items.jsonl").write_text(
        json.dumps({"question": QUESTION}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    config = CorpusConfig(
        sources=(CorpusSource(path=str(tmp_path / "in"), license="CC0-1.0", name="web"),),
        steps=STEPS,
        decontaminate_against=(str(tmp_path / "items.jsonl"),),
        part_mb=1e-6,
        max_held_out=0,
    )
    facts = build_folder(config, tmp_path / "one")
    build_folder(config, tmp_path / "two", workers=2)
    assert facts
    dropped = facts["dropped"]
    assert dropped["evaluation_question"] == 1 and dropped["near_duplicate"] == 9
    kept = {document.id.removeprefix("web/"): document.text for document in read_documents(tmp_path / "one")}
    assert set(kept) == {str(n) for n in range(45)}
    assert not any(FOOTER in text for text in kept.values())
    files = [
        hashlib.sha256((tmp_path / name / "documents.jsonl.zst").read_bytes()).hexdigest() for name in ("one", "two")
    ]
    assert files[0] == files[1]
