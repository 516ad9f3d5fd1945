"""Each reason of quality with a text that breaks the rule and near ones that do not."""

from collections.abc import Callable

import pytest

from tests.corpus.conftest import GOOD
from twllm.corpus.steps.characters import count_kinds
from twllm.corpus.steps.quality import repeated_share

Reasons = Callable[..., list[str]]

KEPT = {
    "colloquial": "拜託～這家滷肉飯真的超好吃，CP 值超高，排隊二十分鐘也值得啦！",
    "bopomofo": "「ㄅㄨˋ ㄓ ㄉㄠˋ」就是「不知道」的注音，小朋友ㄒㄧㄝˇ作業常這樣ㄒㄧㄝˇ。",
    "taigi": "𪜶兜的囡仔真𠢕讀冊，逐工攏透早就起床，食飽才去學校。",
    "mixed": "昨天 meeting 之後 PM 說 deadline 提前，所以 backend 的 API 要先 deploy 到 staging。",
    "mainland wording": "這個視頻的質量不錯，軟件界面也挺好用，建議用戶下載最新版本。",
    "simplified is for the script step": "这个软件的界面很好用，建议大家下载最新版本来试试看吧。",
    "emoji": "今天颱風假，大家在家要注意安全喔🙏，記得準備手電筒跟飲用水！",
    "full-width": "ＮＴＵ　ＡＩ課程於２０２４年９月開課，請同學於期限內完成加退選。",
    "legal": "第 1 條\n（刪除）\n第 2 條\n（刪除）\n第 3 條\n本法所稱主管機關，在中央為內政部，在地方為縣（市）政府。",
    "western stops": "請先安裝套件，再執行測試指令，若有錯誤就回報給維護者. 謝謝大家的幫忙",
}


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT.keys())
def test_kept(reasons: Reasons, text: str) -> None:
    assert reasons("quality", text) == [""]


DROPPED = {
    "too_short": "下一頁　\n 回首頁",
    "garbled": "這一頁的編碼壞掉了，\ufffd\ufffd\ufffd看不出原本寫的是什麼字，只好不要。",
    "symbols": "｜§§│├──┼──┤│║════║ 表格 │├──┼──┤│ ★★★☆☆ ▲▼ 收入標準。",
    "few_han": "The night market is open until midnight. 夜市 is worth a visit for everyone.",
    "repeated_lines": "版權所有，轉載請註明出處。\n" * 3 + "本文介紹夜市。",
    "no_sentence_end": "首頁 最新消息 關於我們 產品介紹 聯絡資訊 常見問題 會員登入 購物車",
}


@pytest.mark.parametrize(("reason", "text"), DROPPED.items(), ids=DROPPED.keys())
def test_dropped(reasons: Reasons, reason: str, text: str) -> None:
    assert reasons("quality", text, GOOD) == [reason, ""]


LOOSE: dict[str, dict[str, float]] = {
    "too_short": {"min_chars": 6},
    "garbled": {"max_garbled_share": 1.0},
    "symbols": {"max_symbol_share": 1.0, "min_han_share": 0.1},
    "few_han": {"min_han_share": 0.0},
    "repeated_lines": {"max_repeated_share": 1.0},
    "no_sentence_end": {"need_sentence_end": False, "region": {"page_rules": False}},
}


@pytest.mark.parametrize("reason", LOOSE)
def test_each_limit_is_a_setting(reasons: Reasons, reason: str) -> None:
    settings = LOOSE[reason] | {"need_sentence_end": False}
    assert reasons("quality", DROPPED[reason], **settings) == [""]


def test_shortest_length_counts_no_white_space(reasons: Reasons) -> None:
    text = "台灣的首都是臺北。"  # datatrove's C4 filter drops it
    assert reasons("quality", text, min_chars=9) == [""]
    assert reasons("quality", text + " \n　", min_chars=10) == ["too_short"]


def test_kinds_of_characters() -> None:
    count = count_kinds("台灣々〇𪜶 ㄊㄞˊ，Aa1１!#😀\ufffd\ue000\t\n　")
    assert count._asdict() == {
        "han": 5, "bopomofo": 3, "letter": 4, "punctuation": 2, "symbol": 2, "space": 4, "garbled": 2,
    }  # fmt: skip


def test_repeated_share_is_weighted_by_characters() -> None:
    assert repeated_share("甲乙丙丁\n甲乙丙丁\n戊己") == pytest.approx(0.4)
    assert repeated_share("甲\n\n\n\n乙") == 0


SENTENCE = "昨天下午颱風登陸後，各地陸續傳出災情，消防局派出兩百名人力支援。"
PAGE_RULES = {
    "adult": ("一夜情、約砲、援交妹，免費視訊聊天，無碼影片看到飽！" * 2, "衛福部委託團體輔導援交少女，三年來協助兩百人回到學校，也在國中辦理性教育課程。"),
    "gambling": (
        "娛樂城推薦：百家樂、老虎機、捕魚機、今彩539，首儲送體驗金，出金快速！",
        "警方昨天在市區查獲一處賭場，現場有百家樂賭桌三張，帶回負責人及賭客十五人偵辦，全案依賭博罪嫌移送。",
    ),
    "loan": (
        "汽車借款、機車借款免留車，支票貼現、當日撥款，信用瑕疵可，急用錢請加賴詢問！",
        "金管會提醒民眾，看到標榜免保人、當日撥款的廣告要小心，可以先撥打一六五專線查證，以免個人資料外流。",
    ),
    "navigation": (
        "首頁\n會員登入\n購物車\n聯絡我們\n隱私權政策\n網站地圖\n常見問題\n訂閱電子報\n查看更多\n最新消息！",
        "請先在首頁登入會員，再到購物車結帳。如果找不到商品，可以看常見問題，或是用聯絡我們的表單留言，客服會盡快回覆。",
    ),
    "cookies": (
        "本網站使用Cookie，同意我們使用Cookie政策後請繼續。接受所有Cookie，管理偏好設定。",
        "依個資法規定，網站以 cookie 記錄瀏覽習慣時，要讓使用者知道目的與保存期限，並能隨時拒絕，主管機關得派員檢查。",
    ),
    "translated": (
        "它是一個偉大的產品，它可以被使用，它是一種最受歡迎的之一，被認為是好的，請點擊此處查看我們的更多。",
        "這款產品被認為是今年最實用的工具，它可以折疊，也可以放進背包，出門旅行的時候特別方便。",
    ),
    "link_farm": (
        "友站：" + "".join(f"\n網站{n} https://site{n}.example.com/index.html" for n in range(30)) + "。",
        SENTENCE * 4 + "詳情請見 https://www.example.com/news 和 https://www.example.org/ 兩個網站。",
    ),
    "short_lines": ("".join(f"第{n}項\n" for n in range(40)) + "完。", "".join(f"{n}. {SENTENCE[n % 5:]}\n" for n in range(14))),
    "ellipsis_lines": (
        "".join(f"第{n}則新聞：市政府宣布明年度的捷運計畫…\n" for n in range(14)) + "更多新聞",
        "".join(f"第{n}則：市政府宣布明年的計畫，{n}區先做，其他區會在後年跟上。\n" for n in range(14)) + "他想了想……",
    ),
    "bullet_lines": (
        "".join(f"- {n} 號產品，尺寸 {n * 3} 公分，顏色有紅藍綠三種可選\n" for n in range(25)),
        SENTENCE + "\n" + "".join(f"- {n} 號避難所：可容納{n}百人，備有飲水。\n" for n in range(25)),
    ),
    "no_sentences": (
        "\n".join(f"台北市信義區第{n}號倉庫 鋼筋 水泥 木材 玻璃 磁磚 油漆 電線 水管 工具 {n * 37} 箱" for n in range(30)) + "\n好。\n完",
        "\n".join(f"台北市信義區第{n}號倉庫有鋼筋、水泥、木材與玻璃，共 {n * 37} 箱。" for n in range(30)),
    ),
    "few_characters": ("哈哈哈哈，呵呵呵呵。" * 60, "".join(f"{SENTENCE}第{n}點。" for n in range(2)) + SENTENCE[::-1] + GOOD * 3),
    "repeated_grams": (
        "".join(f"{n}買一送一，全館免運費，滿千折百，加入會員再送購物金，數量有限，請大家把握機會，趕快打電話來訂購，錯過這一次就要再等一年了。\n" for n in range(40)),
        "".join(f"第{n}條　{GOOD[n % 7 : 20 + n % 11]}，{SENTENCE[n % 9 :]}\n" for n in range(9)),
    ),
    "repeated_sentence": (
        "".join(f"{GOOD[n : n + 28]}、{n}號。請大家告訴大家一定要轉發這則訊息。{SENTENCE[n:]}" for n in range(9)),
        "".join(f"問：{GOOD[n : n + 20]}{n}？答：{SENTENCE[n:]}" for n in range(9)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", PAGE_RULES)
def test_page_rules(reason: str) -> None:
    from twllm.corpus.steps.quality import page_fault

    broken, fine = PAGE_RULES[reason]
    fault = page_fault(broken)
    assert fault is not None and fault.reason == reason, fault
    assert page_fault(fine) is None
