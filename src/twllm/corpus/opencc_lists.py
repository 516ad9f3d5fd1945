"""OpenCC's word and character lists, read at run time from its Python package (Apache-2.0); nothing of them is copied here.

The package ships them packed (.ocd2) with the tool that unpacks them, `opencc_dict`; one list takes about 25 ms, once a process.
"""

import subprocess
import tempfile
from functools import cache
from pathlib import Path

from twllm.errors import UserError


@cache
def entries(name: str) -> dict[str, tuple[str, ...]]:
    """Word or character → its replacements, the usual one first; `name` as in the package: `TWPhrases`, `STCharacters`, …

    Raises:
        UserError: this build of the package has no such list or no tool to unpack it.
    """
    import opencc

    root = Path(opencc.__file__).parent / "clib"
    packed, tool = root / "share" / "opencc" / f"{name}.ocd2", root / "bin" / "opencc_dict"
    tool = tool if tool.exists() else tool.with_suffix(".exe")
    if not packed.is_file() or not tool.is_file():
        raise UserError(
            "OpenCC 套件裡沒有字詞表 (no word lists in the opencc package)", packed, "pip install 'opencc>=1.4.2'"
        )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "list.txt"
        subprocess.run([tool, "-i", packed, "-o", out, "-f", "ocd2", "-t", "text"], check=True, capture_output=True)
        lines = out.read_text(encoding="utf-8").splitlines()
    rows = (line.split("\t") for line in lines)
    return {key: tuple(values.split(" ")) for key, values in rows}


@cache
def taiwan_variants() -> dict[str, str]:
    """Character of OpenCC's standard → the form Taiwan writes (爲 → 為); characters Taiwan writes as they are are left out."""
    return {char: forms[0] for char, forms in entries("TWVariants").items() if forms[0] != char}


def in_taiwan_form(text: str) -> str:
    """Traditional text of OpenCC's standard with the characters that Taiwan writes.

    >>> in_taiwan_form("爲羣衆")
    '為群眾'
    """
    return text.translate(_taiwan_table())


@cache
def _taiwan_table() -> dict[int, str]:
    return {ord(char): form for char, form in taiwan_variants().items()}


@cache
def to_simplified_table() -> dict[int, str]:
    """For `str.translate`: each Traditional character → its Simplified one, one for one (for a word segmenter, not for people)."""
    return {ord(char): forms[0] for char, forms in entries("TSCharacters").items() if len(char) == len(forms[0]) == 1}


@cache
def to_taiwan_table() -> dict[int, str]:
    """For `str.translate`: each Simplified-only and variant character → the usual one in Taiwan, one for one; 臺 → 台."""
    from twllm.corpus.steps.script import simplified_only

    simplified = {char: entries("STCharacters").get(char, (char,))[0] for char in simplified_only()}
    table = {ord(char): in_taiwan_form(other) for char, other in simplified.items() if len(other) == 1}
    for char, forms in entries("HKVariants").items():
        table |= {
            ord(form): taiwan_variants().get(char, char) for form in forms if form != char and _rare_in_taiwan(form)
        }
    return table | _taiwan_table() | {ord("臺"): "台"}


def _rare_in_taiwan(char: str) -> bool:
    """Whether the character is not among the 5,401 that Big5 lists as common."""
    try:
        return char.encode("cp950") >= b"\xc9\x40"
    except UnicodeEncodeError:
        return True
