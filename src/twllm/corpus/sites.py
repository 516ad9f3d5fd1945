"""Website-level review: which hosts a corpus comes from, with samples; a person marks keep or drop, the build obeys.

`review(files, out, page)` writes a TOML file with one table a host, the largest first, and a page to read the samples
comfortably. Marks that a person made are kept when it runs again, also of hosts that are gone. The host is the URL's, in lower case,
without port and `www.`. Samples are chosen by hash of URL and text, so a second run shows the same ones. Memory: about 2 kB a
host and its samples. The paper reviewed the sites of its crawl in the same way. Not covered: documents without a URL (counted as host "").
"""

import hashlib
import heapq
import html
import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twllm.artifact import write_bytes
from twllm.errors import UserError, require_file

MARKS = ("keep", "drop", "")
SAMPLE_CHARS = 600


def host_of(url: str) -> str:
    """The host of a URL.

    >>> host_of("https://WWW.Example.com.tw:8080/a")
    'example.com.tw'
    """
    try:
        host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
    except ValueError:
        return ""
    return host.removeprefix("www.").rstrip(".")


@dataclass
class Site:
    """What is known of a host."""

    host: str
    documents: int = 0
    chars: int = 0
    kept: int = 0
    score: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    regions: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[str, str, str, str]] = field(default_factory=list)  # (-hash, url, text, reason)


def read_marks(path: Path) -> dict[str, str]:
    """Host → "keep" or "drop" as a person marked it; unmarked hosts are left out.

    Raises:
        UserError: the file is missing or broken, or a mark is neither.
    """
    try:
        table = tomllib.loads(require_file(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"TOML 有錯 (broken TOML): {error}", path, "修正這一行") from error
    marks = {}
    for host, site in table.get("sites", {}).items():
        mark = site.get("mark", "") if isinstance(site, dict) else site
        if mark not in MARKS:
            raise UserError(
                f"mark 只能是 keep 或 drop，不是「{mark}」(unknown mark)", f"{path}: {host}", 'mark = "keep"'
            )
        if mark:
            marks[host] = mark
    return marks


def mark_of(url: str, marks: dict[str, str]) -> tuple[str, str]:
    """(mark, host it was made for): the host's own, or that of the nearest domain above it.

    >>> mark_of("https://blog.example.tw/1", {"example.tw": "drop"})
    ('drop', 'example.tw')
    """
    host = host_of(url)
    while host:
        if host in marks:
            return marks[host], host
        host = host.partition(".")[2]
    return "", ""


def collect(rows: Iterable[dict[str, Any]], samples: int, text_key: str = "text") -> dict[str, Site]:
    """Host → what its documents say; rows that `twllm corpus classify` labelled are not looked at again."""
    from twllm.corpus.classify import classify

    sites: dict[str, Site] = {}
    for row in rows:
        text, url = row.get(text_key), str(row.get("url") or "")
        if not isinstance(text, str):
            continue
        if "keep" in row and "score" in row and "region" in row:
            keep, reason, region, score = bool(row["keep"]), row.get("reason") or "", row["region"], float(row["score"])
        else:
            label = classify(text, url)
            keep, reason, region, score = label.keep, label.reason, label.region, label.score
        site = sites.setdefault(host_of(url), Site(host_of(url)))
        site.documents += 1
        site.chars += len(text)
        site.kept += keep
        site.score += score
        site.regions[region or "-"] += 1
        if reason:
            site.reasons[reason] += 1
        digest = hashlib.blake2b(f"{url}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        sample = (digest, url, text[:SAMPLE_CHARS], reason)
        if samples and len(site.samples) < samples:
            heapq.heappush(site.samples, sample)
        elif samples:
            heapq.heappushpop(site.samples, sample)
    return sites


def review(
    files: list[Path], out: Path, page: Path, samples: int = 5, min_documents: int = 1, text_key: str = "text"
) -> list[Site]:
    """Write the TOML file and the page; the sites, the largest first."""
    marks = read_marks(out) if out.exists() else {}
    sites = collect(_rows(files), samples, text_key)
    table = sorted((s for s in sites.values() if s.documents >= min_documents), key=lambda s: (-s.chars, s.host))
    total = sum(site.chars for site in sites.values()) or 1
    write_bytes(out, _toml(table, marks, total).encode())
    write_bytes(page, _page(table, marks, total).encode("utf-8", "replace"))
    return table


def _rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    from twllm.corpus.rows import jsonl_rows, parquet_rows

    for given in files:
        folder = require_file(given).is_dir()
        inner = sorted(
            path for path in given.rglob("*") if path.is_file() and {".jsonl", ".parquet"} & set(path.suffixes)
        )
        if folder and not inner:
            raise UserError("資料夾裡沒有 .jsonl 或 .parquet (no documents)", given, "指出 corpus build 的輸出資料夾")
        for file in inner if folder else [given]:
            for _, row in parquet_rows(file) if ".parquet" in file.suffixes else jsonl_rows(file):
                if isinstance(row, dict):
                    yield row


def _toml(table: list[Site], marks: dict[str, str], total: int) -> str:
    lines = [
        '# 每個網站把 mark 改成 "keep" 或 "drop"；沒標的由 [corpus] unreviewed_sites 決定。重跑 twllm corpus sites 會留住標記。',
        '# Set mark to "keep" or "drop"; a mark of example.tw also holds for what is under it.',
        "",
    ]
    for site in table:
        n = site.documents
        lines += [
            f"[sites.{json.dumps(site.host, ensure_ascii=False)}]", f'mark = "{marks.get(site.host, "")}"',
            f"documents = {n}", f"chars = {site.chars}", f"share = {site.chars / total:.6f}", f"kept = {site.kept / n:.4f}",
            f"score = {site.score / n:.4f}", f"regions = {_inline(site.regions)}", f"reasons = {_inline(site.reasons)}", "",
        ]  # fmt: skip
    gone = sorted(set(marks) - {site.host for site in table})
    for host in gone:
        lines += [f"[sites.{json.dumps(host, ensure_ascii=False)}]", f'mark = "{marks[host]}"', "documents = 0", ""]
    return "\n".join(lines)


def _inline(counts: Counter[str]) -> str:
    return "{ " + ", ".join(f"{json.dumps(key)} = {times}" for key, times in counts.most_common(6)) + " }"


def _page(table: list[Site], marks: dict[str, str], total: int) -> str:
    blocks = []
    for rank, site in enumerate(table, 1):
        told = "、".join(f"{key} {times}" for key, times in site.reasons.most_common(6))
        shown = "".join(
            f"<blockquote><small>{html.escape(url)} {html.escape(reason)}</small><p>{html.escape(text)}</p></blockquote>"
            for _, url, text, reason in sorted(site.samples)
        )
        blocks.append(
            f"<details{' open' if rank <= 3 else ''}><summary><b>{rank}. {html.escape(site.host) or '（沒有網址）'}</b> "
            f"{marks.get(site.host, '')} {site.documents:,} 份　{site.chars:,} 字（{site.chars / total:.2%}）　"
            f"留下 {site.kept / site.documents:.0%}　分數 {site.score / site.documents:.2f}　{html.escape(told)}</summary>{shown}</details>"
        )
    style = (
        "body{max-width:52rem;margin:2rem auto;padding:0 1rem;font:1rem/1.7 system-ui,sans-serif}"
        "summary{cursor:pointer;padding:.3rem 0}blockquote{border-left:3px solid #999;margin:.6rem 0;padding-left:1rem}"
        "p{white-space:pre-wrap;margin:.2rem 0}small{opacity:.7;overflow-wrap:anywhere}:root{color-scheme:light dark}"
    )
    return (
        '<!doctype html><html lang="zh-Hant-TW"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>網站審查 (sites)</title><style>{style}</style><h1>網站審查</h1>{''.join(blocks)}</html>\n"
    )
