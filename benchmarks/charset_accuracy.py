"""Accuracy of the charset detection on real text: every charset, every declaration (true, missing, lying), ours beside others.

    python benchmarks/charset_accuracy.py --data ../shared/data [--pages 60]

Texts of DATA/prose (statutes, transcripts, gazettes, a wiki) are put into HTML pages of 30, 300 and 3,000 characters and written in each
charset; the declaration in the page is none, the true one, or each of the lies. A page counts as right when every character comes
out as it was. For HKSCS the Cantonese of DATA/filter/ud, for UAO only lines with a character that CP950 lacks, for GBK also the
simplified side of DATA/filter. Others: chardet, charset-normalizer (both from the bytes alone), resiliparse (the bytes, then WHATWG
decoding), "declared" = what the page says, without a look. A browser's answer to a wrong declaration is "declared".
The last line is `RESULT {json}`.
"""

import argparse
import gzip
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from twllm.corpus.big5 import uao_table
from twllm.corpus.charset import decode

LIES = ("", "truth", "utf-8", "big5", "gbk", "iso-8859-1", "shift_jis", "utf-16")
SIZES = (30, 300, 3000)
FRAME = '<html><head>{meta}<title>{title}</title></head><body><div class="x"><a href="/">home</a></div><p>{text}</p></body></html>'


def prose(folder: Path) -> Iterator[str]:
    """Lines of at least 15 characters, a text of each file in turn."""
    files = [gzip.open(file, "rt", encoding="utf-8") for file in sorted((folder / "prose").glob("*.jsonl.gz"))]  # noqa: SIM115 - read in turn
    for _ in range(400):
        for file in files:
            if line := file.readline():
                for part in json.loads(line)["text"].split("\n")[:400]:
                    part = re.sub(r"[<>&\r\x00-\x1f]", "", part)
                    if len(part) >= 15:
                        yield part


def conllu(file: Path) -> list[str]:
    """The sentences of a UD file."""
    return re.findall(r"^# text = (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE) if file.is_file() else []


def uao_encode(text: str, back: dict[str, int]) -> bytes:
    """Big5-UAO bytes; KeyError for what it lacks."""
    return b"".join(char.encode() if char < "\x80" else back[char].to_bytes(2, "big") for char in text)


def encoders() -> dict[str, Callable[[str], bytes]]:
    """Name → encoder that raises for what the charset lacks."""
    back: dict[str, int] = {}
    for code, char in uao_table().items():
        if code > 0xFF:
            back.setdefault(char, code)
    plain = {name: (lambda text, name=name: text.encode(name)) for name in ("utf-8", "cp950", "big5hkscs", "gbk", "gb18030", "utf-16-le", "utf-16-be", "utf-8-sig", "utf-16")}  # fmt: skip
    return plain | {"big5-uao": lambda text: uao_encode(text, back)}


def encodable(text: str, encode: Callable[[str], bytes]) -> str:
    """The text without the characters that a charset lacks (there, and back to the same)."""
    try:
        encode(text)
        return text
    except (UnicodeEncodeError, KeyError):
        pass
    kept = []
    for char in text:
        try:
            encode(char)
            kept.append(char)
        except (UnicodeEncodeError, KeyError):
            pass
    return "".join(kept)


def texts_of(name: str, folder: Path, encode: Callable[[str], bytes], cp950: Callable[[str], bytes]) -> list[str]:
    """Lines to write in a charset: what it is used for."""
    ud = folder / "filter" / "ud"
    lines = list(prose(folder))
    if name == "big5hkscs":
        lines = [line for file in sorted(ud.rglob("*.conllu")) if "hk" in file.name.lower() for line in conllu(file)]
    if name in ("gbk", "gb18030"):
        lines = [line for pair in zip(lines, [line for file in sorted(ud.rglob("*.conllu")) if "simp" in file.name.lower() for line in conllu(file)], strict=False) for line in pair]  # fmt: skip
    if name == "big5-uao":
        lines = [line for line in (encodable(line, encode) for line in lines) if encodable(line, cp950) != line]
    return [encodable(line, encode) for line in lines]


def pages(lines: list[str], size: int, count: int) -> list[str]:
    """Texts of about `size` characters."""
    found, block = list[str](), ""
    for line in lines:
        block = (block + "\n" + line)[:size] if block else line[:size]
        if len(block) >= size:
            found.append(block)
            block = ""
        if len(found) == count:
            break
    return found


def others() -> dict[str, Callable[[bytes, list[str]], str]]:
    """The comparisons that are installed."""
    found: dict[str, Callable[[bytes, list[str]], str]] = {}

    def declared(raw: bytes, names: list[str]) -> str:
        name = (names or ["utf-8"])[0]
        return raw.decode(
            {"big5": "cp950", "gbk": "gb18030", "gb2312": "gb18030", "big5-uao": "cp950"}.get(name, name), "replace"
        )

    found["declared"] = declared
    try:
        import chardet

        found["chardet"] = lambda raw, names: raw.decode(chardet.detect(raw)["encoding"] or "utf-8", "replace")
    except ImportError:
        pass
    try:
        from charset_normalizer import from_bytes

        found["charset-normalizer"] = lambda raw, names: str(from_bytes(raw).best() or "")
    except ImportError:
        pass
    try:
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding

        found["resiliparse"] = lambda raw, names: bytes_to_str(raw, detect_encoding(raw) or "utf-8")
    except ImportError:
        pass
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=60)
    options = parser.parse_args()
    codecs = encoders()
    rivals = {"ours": lambda raw, names: decode(raw, names)[0], **others()}
    right = {name: {(charset, size): [0, 0] for charset in codecs for size in SIZES} for name in rivals}
    by_lie = {name: {lie: [0, 0] for lie in LIES} for name in rivals}
    spent, size_bytes = dict.fromkeys(rivals, 0.0), 0
    wrong: list[str] = []
    for charset, encode in codecs.items():
        lines = texts_of(charset, options.data, encode, codecs["cp950"])
        for size in SIZES:
            for number, text in enumerate(pages(lines, size, options.pages)):
                lie = LIES[number % len(LIES)]
                told = charset if lie == "truth" else lie
                meta = f'<meta charset="{told}">' if told and number % 3 else ""
                page = FRAME.format(meta=meta, title=text[:12].replace("\n", " "), text=text)
                raw = encode(page)
                size_bytes += len(raw)
                for name, read in rivals.items():
                    start = time.process_time()
                    try:
                        good = read(raw, [told] if told else []).lstrip("\ufeff") == page
                    except (LookupError, ValueError):
                        good = False
                    spent[name] += time.process_time() - start
                    for cell in (right[name][charset, size], by_lie[name][lie]):
                        cell[0] += good
                        cell[1] += 1
                    if name == "ours" and not good:
                        wrong.append(f"{charset} {size} told={told!r} got={decode(raw, [told] if told else [])[1]}")
    print(f"{'charset':12}{'chars':>6}" + "".join(f"{name:>20}" for name in rivals))
    for charset in codecs:
        for size in SIZES:
            cells = [right[name][charset, size] for name in rivals]
            print(
                f"{charset:12}{size:6}" + "".join(f"{100 * a / max(1, b):17.1f} %{'':1}" for a, b in cells), cells[0][1]
            )
    print("\ndeclared as")
    for lie in LIES:
        print(
            f"{lie or 'nothing':18}"
            + "".join(f"{100 * by_lie[name][lie][0] / max(1, by_lie[name][lie][1]):17.1f} %{'':1}" for name in rivals)
        )
    totals = {
        name: round(sum(a for a, _ in cells.values()) / sum(b for _, b in cells.values()), 4)
        for name, cells in right.items()
    }
    speed = {name: round(size_bytes / 1e6 / max(1e-9, seconds), 1) for name, seconds in spent.items()}
    print("all", totals, "\nMB/s", speed)
    for line in wrong[:40]:
        print("  wrong:", line)
    print("RESULT " + json.dumps({"right": totals, "mb_s": speed}, ensure_ascii=False))


if __name__ == "__main__":
    main()
