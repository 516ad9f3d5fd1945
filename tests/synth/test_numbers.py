"""Numbers that stayed the same in another spelling, and numbers that changed."""

import pytest

from twllm.synth.filters.numbers import changed_number

SAME = [
    ("It sold 1,000 units in May.", "五月賣出一千台。"),
    ("The meeting is at 3:30 pm on July 4, 2024.", "會議在 2024 年 7 月 4 日下午三點半。"),
    ("The meeting is at 3:30 pm.", "會議在 15:30 開始。"),
    ("About 50% of users", "約五成的使用者"),
    ("12.5 percent", "百分之十二點五"),
    ("35 per cent", "三成五"),
    ("100%", "百分之百"),
    ("2.5 million people", "250 萬人"),
    ("120,000,000 points", "1 億 2000 萬分"),
    ("$1.2 billion", "12 億美元"),
    ("10k users", "1 萬名使用者"),
    ("in the 1990s", "在 90 年代"),
    ("Three apples and two pears", "三顆蘋果和兩顆梨"),
    ("twenty-three students", "二十三個學生"),
    ("three hundred and fifty dollars", "350 元"),
    ("nineteen eighty-four", "1984"),
    ("a dozen eggs", "12 顆蛋"),
    ("version 3.11.2", "3.11.2 版"),
    ("one third of the class", "三分之一的學生"),
    ("founded in 1945", "民國 34 年創立"),
    ("The 20th century", "二十世紀"),
    ("We meet every Wednesday", "我們每週三見面"),
    ("Half of them", "一半的人"),
    ("A sandwich for everyone", "每個人一個三明治"),
    ("for decades", "幾十年來"),
    ("14:00", "下午兩點"),
    ("１２３", "123"),
    ("step 1: second try", "第一步：第二次試"),
    ("24 hours a day", "一天二十四小時"),
    ("It may rain. An apple, please.", "可能會下雨。請給我 1 顆蘋果。"),
    ("他有两万三千元", "他有 23,000 元"),
    ("第一章第三节共120页", "第一章第三節共 120 頁"),
    ("他三十多岁，五个孩子", "他三十多歲，五個孩子"),
    ("百货公司千万别去", "百貨公司千萬別去"),
]
CHANGED = [
    ("It sold 1,000 units.", "賣出一萬台。"),
    ("50% of users", "40% 的使用者"),
    ("50% of users", "五十個使用者"),
    ("July 4", "7 月 5 日"),
    ("2.5 million", "25 萬"),
    ("three apples", "四顆蘋果"),
    ("12 eggs", "21 顆蛋"),
    ("$1.2 billion", "1.2 億美元"),
    ("founded in 1945", "1954 年創立"),
    ("founded in 1945", "民國 43 年創立"),
    ("no numbers here", "共有 37 個"),
    ("3:30 pm", "下午 4:30"),
    ("他有2万元", "他有 3 萬元"),
    ("共120页", "共 102 頁"),
    ("三十五个人", "三十六個人"),
    ("Costs 350 dollars", "很便宜"),
]


@pytest.mark.parametrize(("source", "target"), SAME)
def test_same(source: str, target: str) -> None:
    assert changed_number(source, target) is None


@pytest.mark.parametrize(("source", "target"), CHANGED)
def test_changed(source: str, target: str) -> None:
    assert changed_number(source, target) is not None
