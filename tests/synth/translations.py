"""English and Simplified messages with a good Taiwan translation each, and what a bad translator makes of them.

The English ones were written for these tests; numbers are filled in, so that no two rows are the same. The Simplified ones
are shipped Taiwan rows, turned into mainland writing by OpenCC: the good translation is the row itself.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.synth.fault_server import Reply
from tests.synth.planted import good_pairs, pick, to_simplified

# (English, Taiwan Mandarin); {n} is a number of two digits, {m} another of four
ENGLISH: tuple[tuple[str, str], ...] = (
    ("The night market has {n} stalls and opens at 5:30 pm every day.", "這個夜市有 {n} 個攤位，每天下午五點半開始營業。"),
    ("She sold {m} lunch boxes in March, which is twice as many as last year.", "她三月賣了 {m} 個便當，是去年的兩倍。"),
    ("About {n}% of the students take the bus to school.", "大約百分之{n}的學生搭公車上學。"),
    ("Please read pages {n} to 120 and answer the three questions at the end.", "請讀第 {n} 到 120 頁，並回答最後的三個問題。"),
    ("The library was founded in 1945 and now holds {m} books.", "這間圖書館成立於 1945 年，目前有 {m} 本藏書。"),
    ("Install version 3.11.{n} first, then restart the computer.", "請先安裝 3.11.{n} 版，再重新啟動電腦。"),
    ("The mountain is {m} metres high; the hike takes two days and one night.", "這座山高 {m} 公尺，走完要兩天一夜。"),
    ("Our company has 2.5 million users and {n} engineers.", "我們公司有 250 萬名使用者和 {n} 位工程師。"),
    ("The concert on July 4 was cancelled, so {n} tickets were refunded.", "7 月 4 日的演唱會取消了，所以退了 {n} 張票。"),
    ("In the 1990s, a cup of coffee cost only {n} dollars here.", "1990 年代，這裡一杯咖啡只要 {n} 元。"),
    ("Mix three eggs with {n} grams of sugar and bake for half an hour.", "把三顆蛋和 {n} 公克的糖拌勻，烤半小時。"),
    ("He has worked as a nurse for twenty-three years and never missed a shift in {n} months.", "他當護理師二十三年了，{n} 個月來沒有缺過一次班。"),
    ("You can download the file from https://example.com/files/{n}.zip and open it offline.", "你可以從 https://example.com/files/{n}.zip 下載檔案，離線也能開啟。"),
    ("Use `git log -n {n}` to see the latest commits, and `git show` for details.", "用 `git log -n {n}` 看最近的提交，細節用 `git show` 看。"),
    ("Call print to show the result:\n\n```python\nprint({n})\n```\n\nThat is all you need.", "呼叫 print 就會顯示結果：\n\n```python\nprint({n})\n```\n\n這樣就夠了。"),
    ("The rent is {m} dollars a month, and the deposit is two months' rent.", "租金每個月 {m} 元，押金是兩個月的租金。"),
    ("- Bring {n} bottles of water\n- Wear warm clothes\n- Leave before 6 am", "- 帶 {n} 瓶水\n- 穿保暖的衣服\n- 早上 6 點前出發"),
    ("One third of the island is covered by forest, and {n} species of birds live there.", "這座島有三分之一是森林，住著 {n} 種鳥。"),
    ("The train leaves at 14:00 from platform {n}.", "火車下午兩點從第 {n} 月台開出。"),
    ("The film won {n} awards and earned $1.2 billion worldwide.", "這部電影得了 {n} 個獎，全球票房 12 億美元。"),
    ("It was the coldest winter in {n} years, said the weather bureau.", "氣象局說，這是 {n} 年來最冷的冬天。"),
    ("What should I do if my phone falls into water {n} minutes before an interview?", "面試前 {n} 分鐘手機掉進水裡該怎麼辦？"),
    ("Write a short poem about autumn in the city, with {n} lines.", "寫一首關於城市秋天的短詩，要有 {n} 行。"),
    ("Only {n} of the 1,000 people who applied got the job.", "1,000 名應徵者裡只有 {n} 人錄取。"),
    ("The shop is closed on Mondays; on other days it serves a dozen guests and sells {n} cakes.", "這家店星期一公休，其他日子招待 12 位客人，賣出 {n} 個蛋糕。"),
)  # fmt: skip


def english_pairs(count: int) -> list[tuple[str, str]]:
    """`count` different pairs."""
    made = []
    for at in range(count):
        english, taiwan = ENGLISH[at % len(ENGLISH)]
        n, m = str(32 + at * 7 % 60), str(1234 + at * 37)
        made.append(tuple(text.replace("{n}", n).replace("{m}", m) for text in (english, taiwan)))
    return made  # type: ignore[return-value]


def simplified_pairs(count: int) -> list[tuple[str, str]]:
    """`count` different pairs of longer answers."""
    answers = [answer for _, answer in good_pairs() if len(answer) > 30 and "\n" not in answer]
    return [(to_simplified(answer), answer) for answer in answers[:count]]


def other_number(text: str) -> str:
    """The last group of digits changed."""
    at = max(place for place, char in enumerate(text) if char.isdigit())
    return text[:at] + str((int(text[at]) + 3) % 10) + text[at + 1 :]


HALF = "這個地方很值得一去，建議早一點出發。"
Fault = tuple[tuple[str, ...], Callable[[str, str, int], str], str]
# name → (reasons that count, (source, good, row) → bad translation, which rows: any, digits, code, url, long)
FAULTS: dict[str, Fault] = {
    "number": (("number_changed",), lambda s, t, n: other_number(t), "digits"),
    "number_lost": (("number_changed",), lambda s, t, n: "".join(c for c in t if not c.isdigit()), "digits"),
    "number_added": (("number_changed",), lambda s, t, n: t + "一共有 871 個。", "any"),
    "untranslated": (("language", "untranslated"), lambda s, t, n: s, "any"),
    "half_english": (("untranslated", "language", "length_ratio"), lambda s, t, n: t + " And then you can just go there by bus with your friends.", "any"),
    "simplified": (("language",), lambda s, t, n: to_simplified(t), "long"),
    "mainland": (("language",), lambda s, t, n: t + pick("記得先下載軟件。", "可以看視頻學。", "請用鼠標點一下屏幕。")(n), "any"),
    "preamble": (("preamble",), lambda s, t, n: pick("好的，以下是翻譯：\n", "翻譯：", "以下是譯文：\n\n")(n) + t, "any"),
    "tags": (("preamble",), lambda s, t, n: f"<原文>\n{t}\n</原文>", "any"),
    "note": (("preamble",), lambda s, t, n: t + "\n\n（註：這裡的翻譯依照原文的語氣。）", "any"),
    "refusal": (("refusal",), lambda s, t, n: pick("抱歉，我無法翻譯這段內容。", "I'm sorry, but I can't translate that.")(n), "any"),
    "empty": (("empty",), lambda s, t, n: "", "any"),
    "half": (("half_answer",), lambda s, t, n: t[: len(t) // 2], "any"),
    "cut": (("cut_off", "length_ratio", "number_changed", "code_changed"), lambda s, t, n: t[: max(6, t.rfind("，"))], "long"),
    "summary": (("length_ratio", "number_changed"), lambda s, t, n: "這很不錯。", "long"),
    "padded": (("length_ratio",), lambda s, t, n: t + HALF * 2 + "".join(q for q, _ in good_pairs()[n * 9 : n * 9 + 14] if not any(map(str.isdigit, q))), "long"),
    "loop": (("loop",), lambda s, t, n: t + "就是這樣。" * 12, "any"),
    "garbled": (("garbled",), lambda s, t, n: t[:5] + "\ufffd\ufffd" + t[5:], "any"),
    "code": (("code_changed",), lambda s, t, n: t.replace("print(", "列印(").replace("git log", "git 記錄"), "code"),
    "fence": (("code_fence", "code_changed"), lambda s, t, n: t.replace("\n```\n", "\n") if "```" in t else t + "\n```", "code"),
    "url": (("url_changed",), lambda s, t, n: t.replace("example.com", "example.com.tw"), "url"),
}  # fmt: skip


def fits(where: str, source: str, good: str) -> bool:
    """Whether a fault of this kind can be planted in this row."""
    if where == "digits":
        return any(map(str.isdigit, good)) and "http" not in good and "`" not in good
    long = len(good) > 24 and "，" in good and "\n" not in good and len(good) - good.rfind("，") > 4
    return {"code": "`" in source, "url": "http" in source, "long": long and "`" not in source}.get(where, True)


class Bad:
    """Rows with planted faults (every second one that one fits), as a file to translate and a Script that translates it."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs
        self.planted: dict[str, str] = {}  # row id → fault
        self.replies: dict[str, Reply] = {}
        names = list(FAULTS)
        at = 0
        for number, (source, good) in enumerate(pairs):
            text, finish = good, "stop"
            if number % 2:
                order = [names[(at + step) % len(names)] for step in range(len(names))]
                usable = [name for name in order if fits(FAULTS[name][2], source, good)]
                rare = [n for n in usable if FAULTS[n][2] in ("code", "url") and n not in self.planted.values()]
                name = (rare or usable)[0]
                at = at if rare else names.index(name) + 1
                text, finish = FAULTS[name][1](source, good, number), "length" if name == "half" else "stop"
                self.planted[f"row-{number}"] = name
            self.replies[source] = Reply(text, finish)

    def __call__(self, body: dict[str, Any], before: int) -> Reply:
        asked = body["messages"][-1]["content"]
        return self.replies[asked.removeprefix("<原文>\n").removesuffix("\n</原文>")]

    def write(self, path: Path) -> Path:
        """One conversation a pair: the source is the assistant's message, so that all filters look at it."""
        with path.open("w", encoding="utf-8") as stream:
            for number, (source, _) in enumerate(self.pairs):
                messages = [{"role": "user", "content": f"{number}"}, {"role": "assistant", "content": source}]
                row = {
                    "id": f"row-{number}",
                    "messages": messages,
                    "source": "tests",
                    "license": "CC0-1.0",
                    "topic": "t",
                }
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        return path
