"""Taiwan's personal data: what is replaced, and what looks like it and stays."""

import pytest

from twllm.corpus.privacy import find, scrub, valid_old_permit

FOUND = [
    ("我的身分證字號是A123456789，請查收。", "我的身分證字號是〔身分證字號〕，請查收。"),
    ("字號：Ａ１２３４５６７８９", "字號：〔身分證字號〕"),
    ("居留證A800000014已換發", "居留證〔居留證號〕已換發"),
    ("舊的居留證 AC01234567。", "舊的居留證 〔居留證號〕。"),
    ("打0912345678或0912-345-678給我", "打〔手機號碼〕或〔手機號碼〕給我"),
    ("手機：+886 912 345 678", "手機：〔手機號碼〕"),
    ("電話(02)2345-6789轉123，傳真04-2234-5678", "電話〔電話號碼〕，傳真〔電話號碼〕"),
    ("家裡電話 049-2345678、+886-2-2345-6789", "家裡電話 〔電話號碼〕、〔電話號碼〕"),
    ("寄到wang.da-ming@mail.ntu.edu.tw就好", "寄到〔電子郵件〕就好"),
    ("卡號4111 1111 1111 1111，效期 12/29", "卡號〔信用卡號〕，效期 12/29"),
    ("發票統編04595257謝謝", "發票統編〔統一編號〕謝謝"),
    ("統一編號：04595257", "統一編號：〔統一編號〕"),
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
    "圓周率3.14159265358979，π",
    "ISBN 978-957-13-1234-5",
    "玉山標高 3,952 公尺；人口 23,400,000 人",
    "請洽小明@學校",
    "https://example.tw/a?b=1&c=2",
]


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


def test_one_number_in_ten_is_a_valid_old_permit() -> None:
    assert sum(valid_old_permit(f"AC{number:08}") for number in range(1000)) == 100
