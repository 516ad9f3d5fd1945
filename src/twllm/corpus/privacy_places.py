"""Licence plates and addresses.

A plate has the shape of a thousand product numbers, so a word for it must stand near by (車牌, 車號 … before it, 號自用小客車 … behind).
An address is masked from the village or road on, down to house, floor and room; county and township stay: a district has
thousands of doors, and that 西屯區 lies in 臺中市 is knowledge. A road without a number is nobody's address. Not covered: addresses
in Latin letters, buildings told by name only, plots of land (地號).
"""

import re
from collections.abc import Iterator
from functools import cache

from twllm.corpus.privacy_rules import END, GAP, START, Rule, free, said

NUM = "[0-9一二三四五六七八九十百零○〇]"
NUMERALS = NUM.strip("[]") + "12345678"
HAN = "[\u4e00-\u9fff]"
ANCHOR = re.compile(
    f"(?:[路街段巷弄衖村里鄰]|(?<=大)道)[ ]?{NUM}{{1,7}}(?:[-之]{NUM}{{1,4}})?(?:[、及,，]{NUM}{{1,4}})*[ ]?號"
)
LEFT = 40  # characters before the number in which an address may begin
DOOR = re.compile(
    f"[ ]?{NUM}{{1,7}}(?:[-之]{NUM}{{1,4}})?(?:[、及,，]{NUM}{{1,4}})*[ ]?號(?:之{NUM}{{1,3}})?"
    f"(?:[、及,，和]{NUM}{{1,4}}(?:[-之]{NUM}{{1,4}})?號)*"
    f"(?:[,， ]{{0,2}}(?:(?:地下|B)?{NUM}{{1,4}}[ ]?(?:樓|[Ff](?![A-Za-z]))(?:[之-]{NUM}{{1,3}})?|B[1-9](?![0-9A-Za-z])))?(?:[ ]?{NUM}{{1,4}}室)?"
)
OTHER_NUMBER = re.compile(
    "線|公車|國道|隧道|出口|橋|高速|月台|月臺|令|函|判決|裁定|解釋|公告|道路|計畫|計劃|提案|議案|碼|機|艦|井|水門|公園|颱風|停車|誌|地$"
)
BREAK = re.compile("[。！？!?；;：:，,、（(「『\\n\t|/]")  # an address does not go across these
COUNTY = (
    "(?:[臺台][北中南]市|新北市|桃園[縣市]|高雄[縣市]|基隆市|新竹[縣市]|嘉義[縣市]|[臺台][北中南東]縣|(?:宜蘭|苗栗|彰化|南投|雲林|屏東|花蓮|澎湖"
    "|金門|連江)縣)"
)
TOWN = re.compile(
    f"{COUNTY}[ ]?(?:{HAN}{{1,3}}?[鄉鎮市區]區?(?!民大道|府路|政路))?|{HAN}{{2,3}}?[鄉鎮市區]區?(?!民大道|府路|政路|場)"
)
BODY = re.compile(  # what stands between the township and the number of the house
    f"(?P<village>{HAN}{{1,4}}?(?<![公英海])[村里])?(?P<neighbours>[ ]?{NUM}{{1,3}}鄰)?[ ]?"
    f"(?P<road>{HAN}{{1,7}}(?:(?<![公鐵道網線管電迴通思馬水航支陸套去出回走問帶順趕產動])路|街|大道)(?:[ ]?{NUM}{{1,3}}[ ]?段)?)?"
    f"[ ]?(?P<lane>{NUM}{{1,4}}[ ]?巷)?[ ]?(?:{NUM}{{1,4}}[ ]?弄)?[ ]?(?:{NUM}{{1,4}}[ ]?衖)?$"
)
SPEECH = re.compile(
    "[在於到住位址往是為從的和與及至給今那棟來]|[路街](?![一二三四五六七八九十]?[路街])"
)  # before a road's name
ROAD_CHARS = 4  # of a road's name where nothing tells its beginning


def addresses(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of what is masked of each address; digits must be ASCII."""
    end = 0
    for anchor in ANCHOR.finditer(text):
        if anchor.start() < end:
            continue
        door = DOOR.match(text, anchor.start() + 1)
        if door is None or OTHER_NUMBER.match(text, door.end()):
            continue
        left = max(end, anchor.start() - LEFT)
        start = _begin(text[left : anchor.start() + 1])
        if start is not None:
            yield left + start, door.end()
            end = door.end()


def _begin(head: str) -> int | None:
    """Where in `head`, which ends before the number of the house, the part to mask begins; None when it is no address."""
    cut = max((found.end() for found in BREAK.finditer(head)), default=0)
    town = max((found.end() for found in TOWN.finditer(head, cut)), default=0)
    body = BODY.search(head, max(town, cut))
    if body is None or not body.group().strip():
        return None
    if not body["road"]:
        known = body["lane"] or (town and (body["village"] or body["neighbours"]))
        return _skip(head, body.start()) if known else None
    name = body["road"].rstrip(NUMERALS + "段 ")
    spoken = max((found.end() for found in SPEECH.finditer(name, 0, len(name) - 1)), default=0)
    if not spoken and (town or body["village"]):
        return _skip(head, body.start())
    size = len(name) - (2 if name.endswith("大道") else 1) - spoken
    if size < 1:
        return None
    return body.start("road") + spoken + (0 if town else max(0, size - ROAD_CHARS))


def _skip(head: str, at: int) -> int:
    while at < len(head) and head[at] == " ":
        at += 1
    return at


PLATE_CUE = re.compile(
    "車牌|車號|車輛|牌照|號牌|號(?:自用|自小|營業|普通|普重|重型|輕型|大型|小客|小貨|租賃|計程|機車|汽車|大貨|曳引|拖車)"
)
PLATE_WORD = "車牌|車號|牌照|號牌|車輛[:： ]|車籍"
VEHICLE = "(?:之|的)?(?:自用|自小|營業|普通|普重|重型|輕型|大型|小客|小貨|租賃|計程|機車|汽車|大貨|曳引|拖車)"
PLATE_AFTER = re.compile(f"[」）)]?[ ]?號[ ]?{VEHICLE}")
PLATE_TYPE = re.compile(f"[ ]?{VEHICLE}")
MEASURE = re.compile("[0-9]+(?:CC|KG|KM|MM|CM|KW|HP|PS|GB|MB)", re.IGNORECASE)
TRAINS = ("EMU", "DMU", "DRC", "DHL")


@cache
def plate_rule() -> Rule:
    """車牌: the formats of today (ABC-1234) and before (AB-1234, 1234-AB, ABC-123, 123-ABC, A1-2345 …)."""
    gap = f"{GAP}?"
    shapes = (
        f"[A-Z]{{2,3}}{gap}[0-9]{{3,4}}", f"[0-9]{{3,4}}{gap}[A-Z]{{2,3}}", f"[0-9]{{4}}{gap}(?:[A-Z][0-9]|[0-9][A-Z])",
        f"(?:[A-Z][0-9]|[0-9][A-Z]){gap}[0-9]{{4}}", "[A-Z]{2,3}-[0-9]{2}", "[0-9]{2}-[A-Z]{2,3}", "[0-9]{2}-[0-9]{4}",
    )  # fmt: skip
    near = said(PLATE_WORD, 20, 0)

    def test(match: re.Match[str]) -> bool:
        if match[1].upper().startswith(TRAINS) or MEASURE.fullmatch(match[1]):
            return False
        text, end, dashed = match.string, match.end(1), not match[1].isalnum()
        return (near(match) and free(match)) or bool(
            PLATE_AFTER.match(text, end) or (dashed and PLATE_TYPE.match(text, end))
        )

    return Rule("車牌號碼", re.compile(f"{START}({'|'.join(shapes)}){END}(?!{GAP}[0-9A-Z])", re.ASCII), test)
