"""Taiwan's personal data: what is replaced, and what looks like it and stays."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twllm.corpus.privacy import KINDS, find, masked, scrub, shape
from twllm.corpus.privacy_checks import issuer, valid_card, valid_company, valid_identity, valid_old_permit

FOUND = [
    ("我的身分證字號是A123456789，請查收。", "我的身分證字號是〔身分證字號〕，請查收。"),
    ("字號：Ａ１２３４５６７８９", "字號：〔身分證字號〕"),
    ("身分證 A123-456-789 和 a123456789", "身分證 〔身分證字號〕 和 〔身分證字號〕"),
    ("居留證A800000014已換發", "居留證〔居留證號〕已換發"),
    ("舊的居留證 AC01234567。", "舊的居留證 〔居留證號〕。"),
    ("打0912345678或0912-345-678給我", "打〔手機號碼〕或〔手機號碼〕給我"),
    ("手機：+886 912 345 678", "手機：〔手機號碼〕"),
    (
        "手機 ０９１２－３４５－６７８、(0912)345-678、0912.345.678、09-12345678",
        "手機 〔手機號碼〕、〔手機號碼〕、〔手機號碼〕、〔手機號碼〕",
    ),
    ("手機:0 9 1 2 3 4 5 6 7 8", "手機:〔手機號碼〕"),
    ("電話(02)2345-6789轉123，傳真04-2234-5678", "電話〔電話號碼〕，傳真〔電話號碼〕"),
    ("家裡電話 049-2345678、+886-2-2345-6789", "家裡電話 〔電話號碼〕、〔電話號碼〕"),
    ("請洽0223456789王小姐，馬祖 0836-22345", "請洽〔電話號碼〕王小姐，馬祖 〔電話號碼〕"),
    ("電話是25865000，轉260。", "電話是〔電話號碼〕，轉260。"),
    ("人在美國，打 +1 650-253-0000", "人在美國，打 〔電話號碼〕"),
    ("寄到wang.da-ming@mail.ntu.edu.tw就好", "寄到〔電子郵件〕就好"),
    (
        "來信 xiaomei[at]gmail.com、me（at）a.com.tw、ling at mail dot com",
        "來信 〔電子郵件〕、〔電子郵件〕、〔電子郵件〕",
    ),
    ("信箱ling＠gmail.com、ling小老鼠gmail.com、ling @ gmail.com", "信箱〔電子郵件〕、〔電子郵件〕、〔電子郵件〕"),
    ("卡號4111 1111 1111 1111，效期 12/29", "卡號〔信用卡號〕，效期 12/29"),
    ("發票統編04595257謝謝", "發票統編〔統一編號〕謝謝"),
    ("統一編號：04595257", "統一編號：〔統一編號〕"),
    ("健保卡卡號：0000 1234 5678", "健保卡卡號：〔健保卡號〕"),
    ("護照號碼 312345678，舊的 M12345678（護照）", "護照號碼 〔護照號碼〕，舊的 〔護照號碼〕（護照）"),
    ("請匯款到銀行帳號822-123456789012", "請匯款到銀行帳號〔銀行帳號〕"),
    ("郵局局號：0012345，帳號：0123456", "郵局局號：〔銀行帳號〕，帳號：〔銀行帳號〕"),
    (
        "車牌號碼ABC-1234、舊牌 1234-AB，ABC-123號普通重型機車",
        "車牌號碼〔車牌號碼〕、舊牌 〔車牌號碼〕，〔車牌號碼〕號普通重型機車",
    ),
    ("我住在臺北市信義區忠孝東路五段12巷3弄8號5樓之2。", "我住在臺北市信義區〔地址〕。"),
    (
        "他從民生路搬到中山路一百二十號，門牌是高雄市前鎮區凱旋四路１１９號。",
        "他從民生路搬到〔地址〕，門牌是高雄市前鎮區〔地址〕。",
    ),
    ("新竹縣尖石鄉秀巒村3鄰12號", "新竹縣尖石鄉〔地址〕"),
]
KEPT = [
    "身分證字號A123456788是錯的。",  # wrong check digit
    "居留證 AC01234566",
    "A12345678",
    "撥打0800-123-456、165或1999市民專線",
    "2024年1月15日，1911-10-10，第12345678號",
    "統編12345678",  # wrong check digit
    "04595257",  # right, but nothing says what it is
    "4111 1111 1111 1112",
    "0000 0000 0000 0000",
    "訂單0912345678901、序號10912345678",
    "訂單編號0912345678，條碼4710088412345",
    "台立議字第0940701642、0940702356、0950700879號函",
    "<span>台立議字第</span><span>0940068158</span></font>號",
    "圓周率3.14159265358979，π",
    "座標25.033964, 121.564468",
    "ISBN 978-957-13-1234-5",
    "玉山標高 3,952 公尺；人口 23,400,000 人",
    "請洽小明@學校",
    "icon@2x.png、@property、vue@3.4.21、推特 @taiwan_today",
    "https://example.tw/a?b=1&c=0912345678",
    "帳戶自 2019-01-15 10:00 起凍結",
    "懸掛一面車牌的550CC以上大型重型機車、車號 EMU3001、型號 ABC-1234、符合CNS1431汽車用外胎標準",
    "將國道7號路線北延到岡山以北之後再匯入國道1號，民族路台一省道與國道十號，走中山路到國父紀念館站1號出口",
    "中正路一段正在鋪路，第12號提案，中正段一小段123地號",
    "護照費用1300元，健保卡換發，信用卡年費3000",
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), FOUND)
def test_found_and_replaced(text: str, expected: str) -> None:
    found, counts = scrub(text)
    assert found == expected
    assert sum(counts.values()) == expected.count("〔")
    assert scrub(found)[0] == found  # placeholders are not personal data


@pytest.mark.parametrize("text", KEPT)
def test_kept(text: str) -> None:
    assert scrub(text) == (text, {})


def test_places_are_those_of_the_original_text() -> None:
    text = "信箱 ａ，電話０２－２３４５－６７８９。"
    (found,) = find(text)
    assert text[found.start : found.end] == "０２－２３４５－６７８９" and found.kind == "電話號碼"


def test_check_digits_hold_one_number_in_ten() -> None:
    assert sum(valid_old_permit(f"AC{number:08}") for number in range(1000)) == 100
    assert sum(valid_identity(f"B1{number:08}") for number in range(1000)) == 100
    assert sum(valid_card(f"4111{number:012}") for number in range(1000)) == 100


def test_company_rule_of_2023_and_the_seventh_digit() -> None:
    assert valid_company("04595257") and valid_company("04595252")  # 台積電's, divisible by 5 and not by 10
    assert not valid_company("00000000") and not valid_company("04595253")
    assert valid_company("10458575") and not valid_company("10458565")  # a seventh 7 may count as 1
    assert 0.19 < sum(valid_company(f"{number:08}") for number in range(0, 10**8, 9973)) / (10**8 // 9973) < 0.25


def test_issuers() -> None:
    assert [issuer(number) for number in ("378282246310005", "3530111333300000", "6200000000000005", "4710088412345")] == [
        "American Express", "JCB", "UnionPay", "",
    ]  # fmt: skip


def test_what_is_kept_on_request() -> None:
    text = "統編04595257，臺北市政府電話02-2720-8889，臺北市信義區市府路1號，我的手機0912-345-678，service@gov.tw"
    assert "04595257" in scrub(text, keep=("統一編號",))[0]
    left = scrub(text, keep_offices=True)[0]
    assert "02-2720-8889" in left and "市府路1號" in left and "service@gov.tw" in left and "〔手機號碼〕" in left
    assert scrub("王先生家裡電話02-2345-6789", keep_offices=True)[0] == "王先生家裡電話〔電話號碼〕"


PIECES = st.sampled_from(
    ["A123456789", "0912345678", "02-2345-6789", "身分證", "電話", "帳號", "護照", "車牌", "ABC-1234", "12345678901", "統編", "04595257", "地址",
     "中山路", "12號", "3樓", "@", "gmail.com", "ming", " ", "-", "，", "。", "\n", "（", "）", "第", "號", "+886", "〔", "〕", "1", "２", "字", "局號", "１２３４５６７"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=60))
def test_scrubbing_twice_is_scrubbing_once(text: str) -> None:
    once, counts = scrub(text)
    assert scrub(once) == (once, {})
    if not counts:
        assert once == text
    found = find(text)
    around = [text[a.end : b.start] for a, b in itertools.pairwise(found)]
    assert all(part in masked(text, found) for part in around)  # what stands between is as it was
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))


def test_step_masks_notes_each_place_and_never_shows_a_number(tmp_path: Path) -> None:
    from twllm.corpus.config import CorpusConfig
    from twllm.corpus.document import Document, Noted
    from twllm.corpus.steps import make_step

    text = "聯絡王小姐0912-345-678，或林先生0987654321。公司統編04595257。"
    config = CorpusConfig(privacy={"keep": ["company"]})
    *notes, document = make_step("privacy", config)([Document("1", text)])
    assert document.text == "聯絡王小姐〔手機號碼〕，或林先生〔手機號碼〕。公司統編04595257。"
    assert [(note.reason, note.detail) for note in notes if isinstance(note, Noted)] == [
        ("pii_mobile", "09##-###-###"), ("pii_mobile", "09########"),
    ]  # fmt: skip
    assert all("345" not in note.document.text and "〔手機號碼〕" in note.document.text for note in notes)
    assert document.history == ("privacy",)


def test_funnel_counts_places_of_each_kind(tmp_path: Path) -> None:
    from twllm.corpus.build import build_folder
    from twllm.corpus.config import CorpusConfig, CorpusSource

    rows = [{"text": f"第{i}則：聯絡0912-345-{i:03}，信箱 a{i}@mail.tw，歡迎來信。"} for i in range(5)]
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = CorpusConfig(sources=(CorpusSource(path=str(file), license="CC0-1.0"),), steps=("privacy",))
    build_folder(config, tmp_path / "out")
    stage = json.loads((tmp_path / "out/funnel.json").read_text(encoding="utf-8"))["stages"][-1]
    assert {reason: count["documents"] for reason, count in stage["notes"].items()} == {"pii_email": 5, "pii_mobile": 5}
    assert stage["documents"] == 5 and not stage["drops"]
    sample = (tmp_path / "out/drops/pii_mobile.jsonl").read_text(encoding="utf-8")
    assert "〔手機號碼〕" in sample and "0912" not in sample
    assert "手機" in (tmp_path / "out/funnel.html").read_text(encoding="utf-8")


def test_scrub_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from twllm.corpus.commands_privacy import scrub as command

    rows = [
        '{"id": "0912345678", "text": "打0912-345-678",  "url": "https://a.tw"}',
        '{"text":   "沒有個資的一列"}',
        "{broken",
        json.dumps({"messages": [{"role": "user", "content": "我是A123456789"}], "n": 3}, ensure_ascii=False),
    ]
    file, out, report = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "report.json"
    file.write_text("\n".join(rows), encoding="utf-8")
    command(file, out, report, workers=1)
    lines = out.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {"id": "0912345678", "text": "打〔手機號碼〕", "url": "https://a.tw"}
    assert lines[1] == rows[1]  # as it was
    assert json.loads(lines[2])["messages"][0]["content"] == "我是〔身分證字號〕"
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["kinds"] == {"手機號碼": 1, "身分證字號": 1} and found["broken_places"] == ["3"]
    assert found["samples"]["手機號碼"] == [{"line": 1, "shape": "09##-###-###", "text": "打〔手機號碼〕"}]
    assert "有個資" in capsys.readouterr().out


def test_names_of_kinds() -> None:
    from typing import get_args

    from twllm.corpus.privacy_config import Kind

    assert set(get_args(Kind)) == set(KINDS) and len(set(KINDS.values())) == len(KINDS)
    assert shape("A123456789") == "A1########"


def test_every_reason_of_the_steps_has_a_chinese_name() -> None:
    import re

    import twllm.corpus
    from twllm.corpus.funnel_names import REASONS, STAGES, named
    from twllm.corpus.steps import names

    assert set(names()) - {"taiwan", "convert"} <= set(STAGES)
    folder = Path(twllm.corpus.__file__).parent
    code = "".join(
        file.read_text(encoding="utf-8")
        for file in (*folder.glob("steps/*.py"), folder / "quality.py", folder / "classify.py")
    )
    told = set(re.findall(r'(?:Drop|Fault)\("([a-z_]+)"', code)) | {f"pii_{kind}" for kind in KINDS}
    assert told and told <= set(REASONS)
    assert named("region_HK") == "地區：香港 region_HK"
