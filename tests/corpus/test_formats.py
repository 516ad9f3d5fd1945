"""docx, epub, pdf, html: their text, and files that are not what they say, or unpack to far too much."""

import io
import zipfile
from pathlib import Path

import pytest

from tests.corpus.conftest import GOOD
from twllm.corpus.config import CorpusSource
from twllm.corpus.document import Document, Dropped
from twllm.corpus.read import Reading, read_source
from twllm.corpus.sources import plan_source, read_part
from twllm.errors import UserError

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
DOCX = f"""<?xml version="1.0"?><w:document {W}><w:body>
<w:p><w:r><w:t>第一段</w:t></w:r><w:del><w:r><w:delText>刪</w:delText><w:t>掉</w:t></w:r></w:del><w:r><w:tab/><w:t>接著</w:t></w:r></w:p>
<w:tbl><w:tr><w:tc><w:p><w:r><w:t>縣市</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>臺北</w:t></w:r></w:p></w:tc></w:tr></w:tbl>
<w:sdt><w:sdtContent><w:p><w:r><w:t>第二段</w:t><w:br/><w:t>換行</w:t></w:r></w:p></w:sdtContent></w:sdt><w:sectPr/></w:body></w:document>"""
CORE = '<cp:coreProperties xmlns:cp="x" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>計畫書</dc:title></cp:coreProperties>'
OPF = """<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:title>臺灣小吃</dc:title><dc:rights>CC BY 4.0</dc:rights></metadata><manifest>
<item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="b" href="%E4%BA%8C.xhtml" media-type="application/xhtml+xml"/><item id="a" href="a.xhtml" media-type="application/xhtml+xml"/>
</manifest><spine><itemref idref="n"/><itemref idref="a"/><itemref idref="b"/><itemref idref="none"/></spine></package>"""
CONTAINER = '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="OEBPS/x.opf"/></rootfiles></container>'


def archive(entries: dict[str, str | bytes]) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in entries.items():
            packed.writestr(name, content)
    return raw.getvalue()


def pdf(*lines: str) -> bytes:
    """A PDF of one page written by hand, with a Chinese font that is named, not embedded (UCS-2 codes)."""
    shown = "".join(f"<{line.encode('utf-16-be').hex()}> Tj 0 -20 Td\n" for line in lines)
    content = f"BT /F1 12 Tf 50 700 Td\n{shown}ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type0 /BaseFont /MSung /Encoding /UniCNS-UCS2-H /DescendantFonts [6 0 R] >>",
        b"<< /Type /Font /Subtype /CIDFontType0 /BaseFont /MSung /CIDSystemInfo << /Registry (Adobe) /Ordering (CNS1) /Supplement 0 >> >>",
        b"<< /Title <feff%s> >>" % "臺灣".encode("utf-16-be").hex().encode(),
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer << /Size %d /Root 1 0 R /Info 7 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(out))
    return out + b"xref\n0 %d\n0000000000 65535 f \n%s%s" % (len(objects) + 1, table, trailer)


def one(path: Path, max_bytes: int = 1 << 20) -> Document | Dropped:
    source = CorpusSource(path=str(path), name="書", license="CC0-1.0")
    [item] = read_part(plan_source(source)[0], Reading(source, skip_broken=True, max_bytes=max_bytes))
    return item


def test_docx(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(archive({"word/document.xml": DOCX, "docProps/core.xml": CORE}))
    assert one(tmp_path / "a.docx") == Document(
        "書/a.docx", "第一段\t接著\n縣市 | 臺北\n第二段\n換行", "書", "", "CC0-1.0", {"title": "計畫書"}
    )


def test_epub(tmp_path: Path) -> None:
    chapters = {
        f"OEBPS/{name}.xhtml": f"<html><body><p>{text}</p></body></html>"
        for name, text in (("a", "第一章"), ("二", "第二章"), ("nav", "目錄"))
    }
    (tmp_path / "a.epub").write_bytes(archive({"META-INF/container.xml": CONTAINER, "OEBPS/x.opf": OPF, **chapters}))
    document = one(tmp_path / "a.epub")
    assert isinstance(document, Document)
    assert document.text == "第一章\n\n第二章"
    assert document.metadata == {"title": "臺灣小吃", "rights": "CC BY 4.0"}


def test_pdf(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf("臺灣的夜市很", "有名。", "下一段。"))
    document = one(tmp_path / "a.pdf")
    assert isinstance(document, Document)
    assert document.text == "臺灣的夜市很有名。\n下一段。"
    assert document.metadata == {"title": "臺灣", "pages": 1}


def test_html(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(f'<meta charset="big5"><title>頁</title><p>{GOOD}</p>'.encode("big5"))
    document = one(tmp_path / "a.html")
    assert isinstance(document, Document)
    assert (document.text, document.metadata) == (GOOD, {"title": "頁", "charset": "cp950"})


BOMB_XML = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><w:document/>'


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("a.docx", b"", "broken_file"),
        ("a.docx", b"PK\x03\x04 not a zip", "broken_file"),
        ("a.docx", archive({"x": "y"}), "broken_file"),
        ("a.docx", archive({"word/document.xml": "<a><b></a>"}), "broken_file"),
        ("a.docx", archive({"word/document.xml": BOMB_XML}), "broken_file"),
        ("a.docx", archive({"word/document.xml": b" " * 5_000_000}), "too_large"),
        (
            "a.epub",
            archive({"META-INF/container.xml": CONTAINER, "OEBPS/x.opf": OPF, "OEBPS/a.xhtml": b"A" * 3_000_000}),
            "too_large",
        ),
        ("a.epub", archive({"META-INF/container.xml": CONTAINER}), "broken_file"),
        ("a.pdf", b"", "broken_file"),
        ("a.pdf", b"%PDF-1.4\nnothing", "broken_file"),
        ("a.pdf", b"x" * (2 << 20), "too_large"),
        ("a.html", b"x" * (2 << 20), "too_large"),
        ("a.txt", b"x" * (2 << 20), "too_large"),
    ],
)
def test_bad_files_are_named_and_the_rest_is_read(tmp_path: Path, name: str, raw: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(raw)
    (tmp_path / "b.txt").write_text(GOOD, encoding="utf-8")
    source = CorpusSource(path=str(tmp_path), name="書", license="CC0-1.0")
    bad, good = read_part(plan_source(source)[0], Reading(source, skip_broken=True, max_bytes=1 << 20))
    assert isinstance(bad, Dropped) and isinstance(good, Document)
    assert (bad.reason, bad.document.id) == (reason, str(tmp_path / name))
    with pytest.raises(UserError) as error:
        list(read_part(plan_source(source)[0], Reading(source, max_bytes=1 << 20)))
    assert error.value.where == str(tmp_path / name)


def test_a_size_that_lies(tmp_path: Path) -> None:
    """The zip's own directory says the entry is small; reading stops at the limit all the same."""
    raw = archive({"word/document.xml": b" " * 5_000_000})
    size = (5_000_000).to_bytes(4, "little")
    (tmp_path / "a.docx").write_bytes(raw.replace(size, (1000).to_bytes(4, "little")))
    item = one(tmp_path / "a.docx")
    assert isinstance(item, Dropped) and item.reason in ("broken_file", "too_large")


def test_read_source_knows_them(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(archive({"word/document.xml": DOCX}))
    (tmp_path / "b.html").write_text("<p>頁</p>", encoding="utf-8")
    items = list(read_source(CorpusSource(path=str(tmp_path), license="MIT")))
    assert [item.text[:3] for item in items if isinstance(item, Document)] == ["第一段", "頁"]
