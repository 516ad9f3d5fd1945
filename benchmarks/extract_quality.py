"""Main text of web pages: precision, recall and pages/s of extractors side by side, on pages with known text and on real HTML.

    python benchmarks/extract_quality.py [--peers PYTHON] [--data ../shared/data/prose] [--kinds] [--show NAME]

The pages are extract_pages.py's: half of them ("tune") were looked at while ours was written; "test" shares their layouts (see there). Text is compared as 4-grams of letters and
digits (no white space, punctuation or markup), counted: precision = those of the output that the gold has, recall = those of the gold that the output has;
what may be there or not (author, date, readers' comments under an article) counts neither way; means over pages. "floors" = posts of threads that stand apart, each
with its author. "rows" = table rows whose cells come out on one line. "empty" = characters given for a page without main text. Real HTML: the gazettes in DATA hold
tables and paragraphs; each document is a page's body between a menu and a footer that we write, its own text is the gold.
The last line is `RESULT {json}`.
"""

import argparse
import gzip
import html
import json
import re
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import fmean

from extract_pages import BOARDS, Page, links, nav, pages

N = 4


def grams(text: str) -> Counter[str]:
    """4-grams of letters and digits."""
    letters = "".join(re.findall(r"[^\W_]", text))
    return Counter(letters[at : at + N] for at in range(max(0, len(letters) - N + 1)))


def score(page: Page, text: str) -> tuple[float, float]:
    """(precision, recall)."""
    gold, found = grams("\n".join(page.gold)), grams(text)
    right = (gold & found).total()
    allowed = found - gold
    for part in page.also:
        allowed -= grams(part)
    return right / max(1, right + allowed.total()), right / max(1, gold.total())


def floors(page: Page, text: str) -> list[bool]:
    """Of each post, whether it begins a line (or follows its author's name) and the name stands before it or, as pages of questions have it, after it."""
    places, at = list[int](), 0
    for _, post in page.posts:
        at = text.find(post.split("\n")[0][:12], at + 1 if places else 0)
        if at < 0:
            return [False] * len(page.posts)
        places.append(at)
    found = []
    for number, (author, post) in enumerate(page.posts):
        before = text[places[number - 1] if number else 0 : places[number]]
        last = post.split("\n")[-1][-12:]
        end = places[number + 1] if number + 1 < len(places) else len(text)
        after = text[text.find(last, places[number]) : end]
        line = before.rpartition("\n")[2]
        found.append(
            (number == 0 or "\n" in before) and (not line or author in line) and (author in before or author in after)
        )
    return found


def rows(page: Page, text: str) -> list[bool]:
    """Of each table row of the gold (cells joined by a space), whether one line has its cells in order, apart from each other."""
    tables = [[re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in re.findall(r"<tr>(.*?)</tr>", page.html, re.DOTALL)]  # fmt: skip
    asked = [cells for cells in tables if len(cells) > 1 and " ".join(map(html.unescape, cells)) in page.gold]
    lines = text.splitlines()
    return [
        any(re.search(r"[\s|]+".join(map(re.escape, map(html.unescape, cells))), line) for line in lines)
        for cells in asked
    ]


def real_pages(folder: Path, count: int) -> list[Page]:
    """Gazette documents with tables as web pages."""
    found = []
    import random

    rng = random.Random(3)
    with gzip.open(folder / "ly-gazette-raw.jsonl.gz", "rt", encoding="utf-8") as stream:
        for line in stream:
            text = json.loads(line)["text"]
            for start in [match.start() for match in re.finditer("<table", text)][:40:8]:
                piece = text[max(0, start - 2000) : start + 6000]
                piece = piece[piece.find("\n\n") : piece.rfind("</table>") + 8] if "</table>" in piece else ""
                if piece.count("<table") != piece.count("</table>") or len(piece) < 800:
                    continue
                body = "".join(
                    part if part.lstrip().startswith("<") else f"<p>{part.strip()}</p>\n"
                    for part in re.split(r"\n\n+", piece)
                )
                gold = html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"</(p|tr|td|th)>", "\n", body)))
                page = f'<!DOCTYPE html><html><head><meta charset="utf-8"><title>公報</title></head><body><div class="top"><ul>{nav()}</ul></div><div class="w"><div class="l"><ul>{links(rng, 12)}</ul></div><div class="r">{body}</div></div><div class="b"><a href="/">回首頁</a> 地址：中正區 {BOARDS[0]}</div></body></html>'
                found.append(Page(f"real/{len(found)}", "real", "real", page, (gold,)))
                if len(found) == count:
                    return found
    return found


def ours(pages_: list[Page], repeat: int) -> dict[str, dict[str, object]]:
    """What this project's readers give."""
    from twllm.corpus.html import read_html

    out: dict[str, dict[str, object]] = {}
    readers = {"twllm": read_html}
    for name, read in readers.items():
        best, texts = float("inf"), {}
        for _ in range(repeat):
            start = time.process_time()
            texts = {page.name: read(page.html)[1] for page in pages_}
            best = min(best, time.process_time() - start)
        out[name] = {"texts": texts, "seconds": best}
    return out


def table(pages_: list[Page], found: dict[str, dict[str, object]]) -> dict[str, dict[str, float]]:
    """The numbers of each extractor."""
    full = [page for page in pages_ if page.gold]
    size = sum(len(page.html.encode()) for page in pages_)
    out = {}
    for name, one in found.items():
        texts: dict[str, str] = one["texts"]  # type: ignore[assignment]
        scores = {page.name: score(page, texts[page.name]) for page in full}
        row: dict[str, float] = {}
        for split in ("tune", "test", "real"):
            of = [scores[page.name] for page in full if page.split == split]
            if of:
                p, r = fmean(a for a, _ in of), fmean(b for _, b in of)
                row |= {
                    f"p_{split}": p,
                    f"r_{split}": r,
                    f"f1_{split}": fmean(2 * a * b / max(1e-9, a + b) for a, b in of),
                }
        row["floors"] = fmean([good for page in full for good in floors(page, texts[page.name])] or [0])
        row["rows"] = fmean(
            [good for page in full if page.split != "real" for good in rows(page, texts[page.name])] or [0]
        )
        row["empty"] = fmean(len("".join(texts[page.name].split())) for page in pages_ if not page.gold)
        row["pages_s"] = len(pages_) / float(one["seconds"])  # type: ignore[arg-type]
        row["mb_s"] = size / 1e6 / float(one["seconds"])  # type: ignore[arg-type]
        out[name] = {key: round(value, 4) for key, value in row.items()}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="python of an environment with the other extractors")
    parser.add_argument("--data", type=Path, help="folder with ly-gazette-raw.jsonl.gz")
    parser.add_argument("--kinds", action="store_true", help="F1 by kind of page")
    parser.add_argument("--show", default="", help="print ours for pages whose name has this")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    every = list(pages()) + (real_pages(options.data, 60) if options.data else [])
    found = ours(every, options.repeat)
    if options.peers:
        with tempfile.TemporaryDirectory() as folder:
            given, back = Path(folder, "in.json"), Path(folder, "out.json")
            given.write_text(json.dumps({page.name: page.html for page in every}, ensure_ascii=False), encoding="utf-8")
            subprocess.run(
                [options.peers, Path(__file__).with_name("extract_peers.py"), given, back, str(options.repeat)],
                check=True,
            )
            found |= json.loads(back.read_text(encoding="utf-8"))
    rows_ = table(every, found)
    keys = [key for key in ("p_tune", "r_tune", "f1_tune", "p_test", "r_test", "f1_test", "p_real", "r_real", "f1_real", "floors", "rows", "empty", "pages_s", "mb_s") if any(key in row for row in rows_.values())]  # fmt: skip
    print(
        f"{len(every)} pages ({sum(page.split == 'tune' for page in every)} tune, {sum(page.split == 'test' for page in every)} test, {sum(page.split == 'real' for page in every)} real)"
    )
    print(f"{'':24}" + "".join(f"{key:>9}" for key in keys))
    for name, row in rows_.items():
        print(
            f"{name:24}"
            + "".join(
                f"{row[key]:9.0f}"
                if key in ("empty", "pages_s")
                else f"{row[key]:9.1f}"
                if key == "mb_s"
                else f"{100 * row[key]:9.1f}"
                for key in keys
            )
        )
    if options.kinds:
        kinds = sorted({page.kind for page in every if page.gold})
        print(f"\nF1{'':22}" + "".join(f"{kind:>11}" for kind in kinds))
        for name, one in found.items():
            cells = [
                fmean(
                    (2 * p * r / max(1e-9, p + r))
                    for p, r in (
                        score(page, one["texts"][page.name]) for page in every if page.kind == kind and page.gold
                    )
                )
                for kind in kinds
            ]  # type: ignore[index]
            print(f"{name:24}" + "".join(f"{100 * cell:11.1f}" for cell in cells))
    for page in every:
        if options.show and options.show in page.name:
            print(
                "=" * 20,
                page.name,
                [round(100 * value, 1) for value in score(page, found["twllm"]["texts"][page.name])]
                if page.gold
                else "",
            )  # type: ignore[index]
            print(found["twllm"]["texts"][page.name])  # type: ignore[index]
    print("RESULT " + json.dumps(rows_, ensure_ascii=False))


if __name__ == "__main__":
    main()
