"""Take-down: what must not be in the corpus, in one TOML file that a person keeps.

    [[takedown]]
    url = "https://example.tw/post/1"     # or: host = "example.tw", prefix = "https://example.tw/members/", id = "web/…", sha256 = "…"
    date = 2025-03-01
    reason = "author's request"

A covered document is passed over before anything else sees it: it is in no count, no sample, no near-duplicate cluster (another
of the cluster takes its place), so the build is the one that never had it, byte for byte. A URL covers itself whatever its
scheme, `www.`, port, fragment and trailing slash; a host covers what is under it. `sha256` is of the text without white space
(`text_sha256`). Not covered: the same text under another URL: name it by its hash or its ids too.
"""

import hashlib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from twllm.corpus.document import Document
from twllm.errors import UserError, did_you_mean, require_file

KEYS = ("url", "host", "prefix", "id", "sha256")
TOLD = ("date", "reason", "contact")


def text_sha256(text: str) -> str:
    """The hash that an entry names a text by: of its cleaned UTF-8 without white space."""
    from twllm.corpus.steps.normalize import clean

    return hashlib.sha256("".join(clean(text).split()).encode("utf-8", "surrogatepass")).hexdigest()


def plain_url(url: str) -> str:
    """A URL without what does not tell two pages apart.

    >>> plain_url("HTTPS://www.Example.tw:443/%E5%A4%9C/?p=1#top")
    'example.tw/夜?p=1'
    """
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        host = (parts.hostname or "").removeprefix("www.")
    except ValueError:
        return url
    path = unquote(parts.path).rstrip("/")
    return f"{host}{path}" + (f"?{parts.query}" if parts.query else "")


def host_of(url: str) -> str:
    """The host of a URL, in lower case; empty where there is none."""
    try:
        return urlsplit(url if "://" in url else f"//{url}").hostname or ""
    except ValueError:
        return ""


@dataclass(frozen=True)
class Takedown:
    """What is covered."""

    urls: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    ids: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()
    entries: tuple[dict[str, Any], ...] = field(default=(), compare=False)

    def covers(self, document: Document) -> bool:
        """Whether this document must not be in the corpus."""
        if document.id in self.ids:
            return True
        if document.url and (self.urls or self.hosts or self.prefixes):
            url = plain_url(document.url)
            if url in self.urls or (self.prefixes and f"{url}/".startswith(self.prefixes)):
                return True
            if self.hosts and not self.hosts.isdisjoint(parents(host_of(document.url))):
                return True
        return bool(self.hashes) and text_sha256(document.text) in self.hashes


def parents(host: str) -> Iterator[str]:
    """A host and all that it is under: `a.b.tw` → `a.b.tw`, `b.tw`, `tw`."""
    while host:
        yield host
        host = host.partition(".")[2]


def read_takedown(file: Path | str | None) -> Takedown:
    """The entries of a file; of None, nothing.

    Raises:
        UserError: no such file, broken TOML, an entry that names nothing or too much.
    """
    if file is None:
        return Takedown()
    path = require_file(file, "找不到下架名單 (no such take-down file)")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"不是正確的 TOML (broken TOML): {error}", path, "修正這一行") from error
    if set(tree) - {"takedown"}:
        raise UserError(
            "不認得的鍵 (unknown key)", f"{path}: {min(set(tree) - {'takedown'})}", "每一條寫成 [[takedown]]"
        )
    found: dict[str, list[str]] = {key: [] for key in KEYS}
    for number, entry in enumerate(tree.get("takedown", []), 1):
        where = f"{path}: [[takedown]] {number}"
        if unknown := sorted(set(entry) - {*KEYS, *TOLD}):
            raise UserError(f"不認得的鍵 {unknown[0]} (unknown key)", where, did_you_mean(unknown[0], (*KEYS, *TOLD)))
        named = [key for key in KEYS if key in entry]
        if len(named) != 1 or not isinstance(entry[named[0]], str) or not entry[named[0]].strip("/. "):
            raise UserError(
                "一條要指出一樣東西 (one of url, host, prefix, id, sha256)", where, '例如 url = "https://…"'
            )
        found[named[0]].append(entry[named[0]])
    return Takedown(
        urls=frozenset(map(plain_url, found["url"])),
        hosts=frozenset(host.lower().strip("./").removeprefix("*.").removeprefix("www.") for host in found["host"]),
        prefixes=tuple(sorted(plain_url(name) + "/" * name.endswith("/") for name in found["prefix"])),
        ids=frozenset(found["id"]),
        hashes=frozenset(value.lower() for value in found["sha256"]),
        entries=tuple(tree.get("takedown", [])),
    )
