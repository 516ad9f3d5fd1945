"""Other extractors on pages: run by extract_quality.py in an environment that has them; JSON in, JSON out.

    PYTHON benchmarks/extract_peers.py PAGES.json OUT.json [repeat]

PAGES.json is {name: html}. Every extractor is asked for plain text with tables and comments (as a corpus would); jusText has no Chinese stop list and
counts words, so it gets none and its length limits a third as high (a Han character says what three letters do).
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path


def peers() -> dict[str, Callable[[str], str]]:
    """Name → page to text, of what is installed."""
    found: dict[str, Callable[[str], str]] = {}
    try:
        from trafilatura import extract

        found["trafilatura"] = lambda page: extract(page, include_comments=True, include_tables=True) or ""
        found["trafilatura fast"] = lambda page: extract(page, fast=True) or ""
        found["trafilatura recall"] = lambda page: extract(page, favor_recall=True) or ""
        found["trafilatura precision"] = lambda page: extract(page, favor_precision=True) or ""
    except ImportError:
        pass
    try:
        from resiliparse.extract.html2text import extract_plain_text

        found["resiliparse"] = lambda page: extract_plain_text(page, main_content=True)
        found["resiliparse comments"] = lambda page: extract_plain_text(page, main_content=True, comments=True)
        found["resiliparse all"] = lambda page: extract_plain_text(page)
    except ImportError:
        pass
    try:
        from lxml.html import fromstring
        from readability import Document

        found["readability-lxml"] = lambda page: fromstring(Document(page).summary()).text_content()
    except ImportError:
        pass
    try:
        import justext

        limits = {"length_low": 23, "length_high": 66, "stopwords_low": 0.0, "stopwords_high": 0.0}
        found["jusText"] = lambda page: "\n".join(
            part.text for part in justext.justext(page, frozenset(), **limits) if not part.is_boilerplate
        )
    except ImportError:
        pass
    try:
        from boilerpy3.extractors import ArticleExtractor

        found["boilerpy3"] = ArticleExtractor(raise_on_failure=False).get_content
    except ImportError:
        pass
    try:
        from inscriptis import get_text

        found["inscriptis (all)"] = get_text
    except ImportError:
        pass
    return found


def main() -> None:
    pages = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    repeat = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    out = {}
    for name, extract in peers().items():
        for page in list(pages.values())[:2]:
            extract(page)
        texts, best = {}, float("inf")
        for _ in range(repeat):
            start = time.process_time()
            for key, page in pages.items():
                try:
                    texts[key] = extract(page) or ""
                except Exception as error:  # counted as an empty answer
                    texts[key] = ""
                    print(name, key, repr(error)[:200], file=sys.stderr)
            best = min(best, time.process_time() - start)
        out[name] = {"texts": texts, "seconds": best}
    Path(sys.argv[2]).write_text(json.dumps(out, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
