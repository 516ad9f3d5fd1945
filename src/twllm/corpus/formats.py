"""Readers by kind of file, and those of web pages and office documents: html, docx, epub, pdf. A file is one document.

A new kind is one suffix in files.KINDS and one line in READERS. Bombs: an archive is refused by what it says it
unpacks to, and each entry is read no further than the limit; XML with entity declarations is refused. Tables come as
one line a row, cells between bars. Not covered: footnotes and text boxes of docx, scanned or encrypted pdf,
multi-column order in pdf beyond what pypdf does.
"""

import io
import posixpath
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from xml.etree import ElementTree

from twllm.corpus import html
from twllm.corpus.document import Document, Dropped
from twllm.corpus.files import File, decode
from twllm.errors import UserError

if TYPE_CHECKING:
    from twllm.corpus.read import Reading

Reader = Callable[[File, "Reading"], Iterator[Document | Dropped]]
READERS = {
    "jsonl": "read:read_jsonl",
    "parquet": "read:read_parquet",
    "text": "read:read_text",
    "markdown": "read:read_text",
    "warc": "warc:read_warc",
    "wikipedia": "wikipedia:read_dump",
    "html": "formats:read_html_file",
    "docx": "formats:read_docx",
    "epub": "formats:read_epub",
    "pdf": "formats:read_pdf",
}
WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
DUBLIN = "{http://purl.org/dc/elements/1.1/}"
OPF = "{http://www.idpf.org/2007/opf}"
CONTAINER = "{urn:oasis:names:tc:opendocument:xmlns:container}"
MAX_ENTRIES = 20_000
MAX_PDF_PAGES = 20_000


def reader_of(kind: str) -> Reader:
    """The reader of a kind of file (files.kind_of).

    Raises:
        KeyError: there is none.
    """
    module, _, name = READERS[kind].partition(":")
    found: Reader = getattr(import_module(f"twllm.corpus.{module}"), name)
    return found


class BadDocument(Exception):
    """A docx or epub that is not what it should be."""


def read_html_file(file: File, reading: "Reading") -> Iterator[Document | Dropped]:
    """A saved page."""
    from twllm.corpus.warc import page_row

    raw = reading.whole(file)
    if isinstance(raw, Dropped):
        yield raw
        return
    row = reading.bounded(lambda: page_row(raw, ""), str(file))
    yield _document(row, reading, file)


def _document(row: "Mapping[str, Any] | Dropped | None", reading: "Reading", file: File) -> Document | Dropped:
    from twllm.corpus.warc import without_text

    if isinstance(row, Dropped):
        return row
    assert row is not None
    return reading.document(without_text(row), row["text"], reading.place(file))


def _office(
    file: File, reading: "Reading", read: Callable[["Archive"], dict[str, Any]]
) -> Iterator[Document | Dropped]:
    """One document out of an archive, or what stands for a bad one."""
    raw = reading.whole(file)
    if isinstance(raw, Dropped):
        yield raw
        return
    try:
        row = reading.bounded(lambda: read(Archive(raw, reading.max_bytes)), str(file))
    except TooMuch:
        yield reading.too_large(file)
    except (
        BadDocument,
        zipfile.BadZipFile,
        ElementTree.ParseError,
        NotImplementedError,
        RuntimeError,
        EOFError,
    ) as error:
        told = f"檔案不完整或損壞 (damaged file): {str(error)[:200]}"
        yield reading.broken("broken_file", told, str(file))
    else:
        yield _document(row, reading, file)


class TooMuch(Exception):
    """An archive unpacks to more than the limit."""


class Archive:
    """A zip file that is not trusted."""

    def __init__(self, raw: bytes, max_bytes: int) -> None:
        self.zip, self.left = zipfile.ZipFile(io.BytesIO(raw)), max_bytes
        if len(self.zip.infolist()) > MAX_ENTRIES:
            raise TooMuch

    def read(self, name: str) -> bytes:
        """The bytes of an entry.

        Raises:
            BadDocument: it is not there.
            TooMuch: all that was read together is more than the limit.
        """
        try:
            info = self.zip.getinfo(name)
        except KeyError as error:
            raise BadDocument(f"no {name} in it") from error
        if info.file_size > self.left:
            raise TooMuch
        with self.zip.open(info) as stream:
            found = stream.read(self.left + 1)
        self.left -= len(found)
        if self.left < 0:
            raise TooMuch
        return found

    def xml(self, name: str) -> ElementTree.Element:
        """The root of an XML entry.

        Raises:
            BadDocument: it declares entities.
        """
        raw = self.read(name)
        if b"<!ENTITY" in raw:
            raise BadDocument(f"{name} declares XML entities")
        return ElementTree.fromstring(raw)


def read_docx(file: File, reading: "Reading") -> Iterator[Document | Dropped]:
    """A Word document: paragraphs, tables, its title."""
    yield from _office(file, reading, docx_row)


def docx_row(archive: Archive) -> dict[str, Any]:
    """Text and title."""
    body = archive.xml("word/document.xml").find(f"{WORD}body")
    if body is None:
        raise BadDocument("no body")
    row: dict[str, Any] = {"text": "\n".join(_blocks(body))}
    if "docProps/core.xml" in archive.zip.namelist():
        title = archive.xml("docProps/core.xml").findtext(f"{DUBLIN}title")
        row["title"] = title or None
    return row


def _blocks(element: ElementTree.Element) -> Iterator[str]:
    """A line a paragraph or table row."""
    for child in element:
        if child.tag == f"{WORD}p":
            yield _paragraph(child)
        elif child.tag == f"{WORD}tbl":
            for tr in child.iter(f"{WORD}tr"):
                cells = [" ".join(" ".join(_blocks(cell)).split()) for cell in tr.findall(f"{WORD}tc")]
                yield " | ".join(cells)
        elif child.tag != f"{WORD}sectPr":
            yield from _blocks(child)


def _paragraph(paragraph: ElementTree.Element) -> str:
    deleted = {id(run) for gone in paragraph.iter(f"{WORD}del") for run in gone.iter()}
    signs = {f"{WORD}tab": "\t", f"{WORD}br": "\n", f"{WORD}cr": "\n"}
    parts = []
    for run in paragraph.iter():
        if id(run) in deleted:
            continue
        if run.tag == f"{WORD}t":
            parts.append(run.text or "")
        elif run.tag in signs:
            parts.append(signs[run.tag])
    return "".join(parts)


def read_epub(file: File, reading: "Reading") -> Iterator[Document | Dropped]:
    """A book: its chapters in reading order, title and rights."""
    yield from _office(file, reading, epub_row)


def epub_row(archive: Archive) -> dict[str, Any]:
    """Text, title, and what the book says of its rights."""
    root = archive.xml("META-INF/container.xml").find(f".//{CONTAINER}rootfile")
    package_name = root.get("full-path", "") if root is not None else ""
    package = archive.xml(package_name)
    items = {item.get("id"): item for item in package.iter(f"{OPF}item")}
    chapters = []
    for reference in package.iter(f"{OPF}itemref"):
        item = items.get(reference.get("idref"))
        if item is None or "nav" in (item.get("properties") or "").split():
            continue
        if "html" in (item.get("media-type") or ""):
            name = posixpath.join(posixpath.dirname(package_name), unquote(item.get("href") or ""))
            chapters.append(html.read_html(decode(archive.read(posixpath.normpath(name)))[0], main=False)[1])
    found = {key: package.findtext(f".//{DUBLIN}{key}") for key in ("title", "creator", "rights", "language")}
    text = "\n\n".join(chapter for chapter in chapters if chapter)
    return {"text": text, **{key: value.strip() for key, value in found.items() if value and value.strip()}}


def read_pdf(file: File, reading: "Reading") -> Iterator[Document | Dropped]:
    """The text of a PDF, page after page; lines of a paragraph are joined."""
    raw = reading.whole(file)
    if isinstance(raw, Dropped):
        yield raw
        return
    try:
        row = reading.bounded(lambda: pdf_row(raw, reading.max_bytes), str(file))
    except UserError:
        raise
    except Exception as error:  # the library raises whatever a broken file makes it stumble over
        told = f"檔案不完整或損壞 (damaged file): {type(error).__name__} {str(error)[:200]}"
        yield reading.broken("broken_file", told, str(file))
        return
    if isinstance(row, dict) and not row["text"]:
        told = "PDF 沒有文字：掃描的，或太大的頁被跳過 (no text: scanned, or pages beyond the limits)"
        yield Dropped(Document(str(file), "", reading.source.label), "read", "no_text", told)
        return
    yield _document(row, reading, file)


def pdf_row(raw: bytes, max_chars: int) -> dict[str, Any]:
    """Text, title and number of pages; pypdf holds each stream to 75 MB and refuses page trees that go in circles."""
    import logging

    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what it repairs is told in hundreds of lines
    pdf = PdfReader(io.BytesIO(raw))
    if len(pdf.pages) > MAX_PDF_PAGES:
        raise BadDocument(f"{len(pdf.pages)} pages")
    pages, left = list[str](), max_chars
    for page in pdf.pages:
        pages.append(join_lines(page.extract_text()).strip())
        left -= len(pages[-1])
        if left < 0:
            break
    title = str((pdf.metadata and pdf.metadata.title) or "").strip()
    return {"title": title or None, "pages": len(pages), "text": "\n".join(page for page in pages if page)}


LINE_IN_SENTENCE = re.compile(
    r"(?<=[\u3400-\u9fff，、；：「」（）])[ \t]*\n[ \t]*(?=[\u3400-\u9fff，、；：。！？」』）])"
)


def join_lines(text: str) -> str:
    """A page's text without the line breaks of the paper inside Chinese sentences.

    >>> join_lines("臺灣的夜\\n市很有名。\\n第二段")
    '臺灣的夜市很有名。\\n第二段'
    """
    return LINE_IN_SENTENCE.sub("", text)
