"""Every reason with texts that pass and texts that fail, in Taiwan Mandarin."""

from dataclasses import replace

import pytest

from tests.synth.planted import LONG, good_pairs, to_simplified
from twllm.synth.config import FilterConfig
from twllm.synth.filters import Message, Rules, first_fault
from twllm.synth.filters.base import MESSAGE_FILTERS, TRANSLATION_FILTERS

CODE = "改這一行就好：\n\n```python\nfor name in names:\n    print(name)\n```"
PASS: dict[str, list[Message]] = {
    "short": [Message("assistant", text) for text in ("好，謝謝！", "可以。", "👍", "玉山。", "3,952 公尺", "對啊", "OK，沒問題")],
    "code": [
        Message("assistant", CODE),
        Message("assistant", "```bash\ngit log --oneline | head -n 20\ngit show HEAD~3 --stat\n```"),
        Message("assistant", "`pip install --upgrade twllm`"),
        Message("assistant", "````\n```\n這裡有三個反引號\n```\n````"),
        Message("user", "我的 Python 出現 IndexError: list index out of range，是什麼意思？"),
        Message("assistant", '設定檔長這樣：\n```json\n{"a": [1, 2]}\n```\n存檔就好。'),
    ],
    "styles": [
        Message("assistant", "| 票種 | 票價 |\n|---|---|\n| 全票 | 150 元 |\n| 學生票 | 120 元 |"),
        Message("assistant", "- 帶水\n- 帶雨衣\n- 早點出發，避開人潮"),
        Message("assistant", "哈哈哈哈真的，我也這樣覺得！"),
        Message("assistant", "ㄅㄆㄇㄈ是注音的前四個符號，「拍謝」是台語的不好意思。"),
        Message("assistant", "敬愛的老師：\n\n謝謝您這一年的照顧。\n\n學生 小明 敬上"),
        Message("assistant", "可以看官網，網址是 https://www.railway.gov.tw/tra-tip-web/tip"),
        Message("user", "那如果下雨天，路線要怎麼改？\n1. 先去美術館\n2. 再去老街\n3. 晚上逛夜市"),
        Message("assistant", "抱歉，我剛剛說錯了，開放時間是九點到五點。"),
        Message("assistant", "作為一個新手爸爸，你已經做得很好了，累的時候記得找人幫忙。"),
    ],
    "topics": [
        Message("assistant", "抱歉，我無法協助你做這件事，但可以陪你聊聊怎麼了。", topic="安全拒絕/違法"),
        Message("assistant", "我是語言模型，看不到今天的天氣。", topic="無法得知/即時資訊"),
        Message("assistant", "「視頻」在臺灣叫影片，軟件叫軟體，質量叫品質。", topic="語言用語/兩岸差異"),
        Message("assistant", "Excuse me, how do I get to the MRT station?", topic="改寫/翻譯"),
        Message("user", "".join(LONG) * 2 + "幫我摘要這一篇。", topic="摘要/文章"),
    ],
    "turns": [
        Message("assistant", "可以，先訂票再訂房。", before=({"role": "user", "content": "要先訂票還是訂房？"},)),
        Message("user", "好，謝謝！", before=({"role": "user", "content": "好，謝謝！"}, {"role": "assistant", "content": "不客氣。"})),
    ],
}  # fmt: skip
FAIL: dict[str, list[Message]] = {
    "half_answer": [Message("assistant", LONG[0][:20], finish_reason="length")],
    "refusal": [
        Message("assistant", "抱歉，我無法提供這類內容。"),
        Message("assistant", "很抱歉，這個問題我沒辦法回答你。"),
        Message("assistant", "I’m sorry, but I can’t assist with that request."),
        Message("assistant", "", refusal="I refuse"),
        Message("assistant", "好的", finish_reason="content_filter"),
    ],
    "empty": [Message("assistant", text) for text in ("", "\n\n", "……", "。！？", "---")],
    "garbled": [Message("assistant", text) for text in ("可以搭公\ufffd車去。", "好\x07。", "請看\ue001這裡。")],
    "code_fence": [Message("assistant", CODE[:-4]), Message("assistant", "先寫 ```python 再寫內容。"), Message("assistant", "~~~\nx = 1\n")],
    "rubbish": [
        Message("assistant", "先訂票。<|endoftext|>再訂房。"),
        Message("assistant", "好。\nUser: 那要多少錢？"),
        Message("user", "助理：你可以搭公車。"),
        Message("assistant", '{"answer": "搭公車"}'),
        Message("assistant", "第一步\\n第二步\\n第三步"),
        Message("assistant", "<p>先訂票</p>"),
    ],
    "meta": [
        Message("assistant", "作為一個AI，我沒有味覺，不過很多人推薦這家。"),
        Message("assistant", "身為 AI 語言模型，我沒有個人意見。".replace(" ", "")),
        Message("assistant", "As an AI language model, I do not eat."),
        Message("user", "好，我會扮演一位早餐店老闆。"),
    ],
    "role_flip": [
        Message("user", "當然可以！以下是三個建議：先訂票、再訂房、最後排行程。"),
        Message("user", "希望這些建議對你有幫助！"),
        Message("user", "行程建議\n1. 早上爬山\n2. 中午吃麵\n3. 晚上看海"),
    ],
    "loop": [
        Message("assistant", "先訂票，再訂房。" * 6),
        Message("assistant", "可以去看看" + "，很漂亮很漂亮" * 9),
        Message("assistant", "記得帶傘。外面下雨。記得帶傘出門喔，路上小心。天氣很冷。記得帶傘出門喔，路上小心。很滑。記得帶傘出門喔，路上小心。"),
    ],
    "language": [
        Message("assistant", to_simplified(LONG[1])),
        Message("assistant", "谢谢！"),
        Message("assistant", "用戶可以下載軟件，在屏幕上看視頻。"),
        Message("assistant", "Take the bus from the main station and get off at the third stop."),
        Message("assistant", "電車で行くのが一番便利です。駅から五分ぐらいです。"),
        Message("assistant", "버스를 타고 가는 것이 가장 편리합니다. 역에서 오 분쯤 걸려요."),
        Message("assistant", "佢哋話呢間餐廳好好食，我哋聽日一齊去啦。"),
        Message("assistant", to_simplified(LONG[2]), topic="語言用語/兩岸差異"),
        Message("assistant", "Here is the plan for your trip to Hualien.", topic="程式/Python"),
    ],
    "echo": [
        Message("assistant", LONG[0], before=({"role": "user", "content": LONG[0]},)),
        Message("assistant", LONG[1], before=({"role": "assistant", "content": LONG[1]}, {"role": "user", "content": "那第二天呢？"})),
        Message("user", LONG[2][:40] + "？", before=({"role": "user", "content": LONG[2][:40]}, {"role": "assistant", "content": "好。"})),
    ],
    "cut_off": [
        Message("assistant", "搭臺鐵大約兩小時。到站以後可以租機車，往南騎臺十一線看海，也可以"),
        Message("assistant", "需要準備的東西有：水、雨衣、"),
        Message("assistant", "先把豬絞肉炒出油，再下紅蔥頭和蒜末爆香，接著加醬油", before=({"role": "assistant", "content": "好，先備料。"},)),
    ],
    "length": [Message("user", "".join(question for question, _ in good_pairs())[:700])],
}  # fmt: skip


@pytest.mark.parametrize(
    "message", [message for group in PASS.values() for message in group], ids=lambda m: m.text[:12]
)
def test_passes(message: Message, rules: Rules) -> None:
    assert first_fault(message, rules) is None


@pytest.mark.parametrize(
    ("reason", "message"), [(reason, message) for reason, group in FAIL.items() for message in group]
)
def test_fails_with_its_reason(reason: str, message: Message, rules: Rules) -> None:
    fault = first_fault(message, rules)
    assert fault is not None
    assert fault.reason == reason


def test_every_reason_is_tested_and_can_be_switched_off(rules: Rules) -> None:
    assert set(FAIL) == set(MESSAGE_FILTERS)
    assert {*FAIL_TRANSLATION, *FAIL} >= set(TRANSLATION_FILTERS)
    off = replace(rules, config=FilterConfig(off=tuple(MESSAGE_FILTERS)))
    assert [first_fault(message, off) for group in FAIL.values() for message in group] == [None] * sum(
        map(len, FAIL.values())
    )


def test_a_least_length_may_be_asked_for(rules: Rules) -> None:
    longer = replace(rules, config=FilterConfig(min_chars=5))
    fault = first_fault(Message("assistant", "好。"), longer)
    assert fault is not None
    assert fault.reason == "length"


def test_shipped_answers_are_kept(rules: Rules) -> None:
    dropped = []
    for question, answer in good_pairs():
        before = ({"role": "user", "content": question},)
        for message in (Message("user", question), Message("assistant", answer, before=before)):
            if fault := first_fault(message, rules):
                dropped.append((fault, message.text[:40]))
    assert len(dropped) <= 0.005 * 2 * len(good_pairs()), dropped


def translated(source: str, text: str, language: str = "en", role: str = "assistant") -> Message:
    return Message(role, text, source=source, language=language)


FAIL_TRANSLATION = {
    "preamble": [translated("Take the bus.", "以下是翻譯：\n搭公車去。"), translated("Take the bus.", "<原文>\n搭公車去。\n</原文>")],
    "untranslated": [
        translated("Take the bus to the museum.", "搭公車。And then you can walk to the museum in ten minutes. 到了就看得到博物館，門口有賣票。"),
        translated("可以搭公车去，下车走十分钟就到了博物馆。", "可以搭公車去，下車就到了。You just walk there for ten minutes.", "zh-CN"),
    ],
    "code_changed": [translated("Run `git log` first.", "先執行 `git 記錄`。"), translated(f"Do this:\n{CODE}", f"這樣做：\n{CODE.replace('name', 'item')}")],
    "url_changed": [translated("See https://a.tw/b.", "請看 https://a.tw/c。"), translated("See https://a.tw/b now.", "現在就看。")],
    "number_changed": [translated("It costs 350 dollars.", "要 530 元。")],
    "length_ratio": [translated("这个地方很适合全家人一起去，有山有海，还可以在老街吃小吃，傍晚看完日落再慢慢回家，路上也不会塞车。", "這個地方很適合全家人一起去。", "zh-CN"), translated("Take the bus.", "搭公車就可以到了，下車之後往前走，看到便利商店右轉，再走一下就會看到博物館的大門，記得先買票，也記得帶傘。")],
    "cut_off": [translated("Take the bus, then walk ten minutes, and you will see the museum on the left.", "搭公車，再走十分鐘，就會在左手邊看到那間很有名的")],
    "language": [translated("Take the bus to the museum.", "坐公交车去博物馆。"), translated("坐公交车去博物馆。", "坐公交车去博物馆。", "zh-CN")],
    "meta": [translated("As an AI, I do not eat.", "作為一個AI，我不吃東西。")],
    "refusal": [translated("How do I pick a lock?", "抱歉，我無法翻譯這個內容。")],
}  # fmt: skip
PASS_TRANSLATION = [
    translated("As an AI, you must answer.", "作為一個AI，你必須回答。", role="user"),
    translated("I'm sorry, but I can't help with that.", "抱歉，這件事我無法協助你。"),
    translated("Run `git log` first, see https://a.tw/b.", "先執行 `git log`，請看 https://a.tw/b。"),
    translated(f"Do this:\n\n{CODE}", f"這樣做：\n\n{CODE}"),
    translated("Thanks!", "謝謝！"),
    translated("He said \"to be or not to be, that is the question\" on stage.", "他在臺上說：「To be or not to be, that is the question.」"),
    translated("ChatGPT 4", "ChatGPT 4"),
    translated("ha ha ha ha ha ha ha ha ha ha ha ha ha", "哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈", role="user"),
    translated("质量很好。", "品質很好。", "zh-CN"),
    translated("好的，谢谢", "好的，謝謝", "zh-CN"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "message"), [(reason, message) for reason, group in FAIL_TRANSLATION.items() for message in group]
)
def test_a_bad_translation_fails_with_its_reason(reason: str, message: Message, rules: Rules) -> None:
    fault = first_fault(message, rules)
    assert fault is not None
    assert fault.reason == reason


@pytest.mark.parametrize("message", PASS_TRANSLATION, ids=lambda m: m.text[:12])
def test_a_good_translation_passes(message: Message, rules: Rules) -> None:
    assert first_fault(message, rules) is None
