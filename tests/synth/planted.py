"""Good texts and planted faults, with known places: which dialogue or row has which fault, and which reasons count as caught.

Good texts are the shipped instruction and fact rows (written for Taiwan), so that false drops are
measured on real Taiwan Mandarin.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.synth.fault_server import Reply, Script
from twllm import data
from twllm.synth.config import SelfplayConfig
from twllm.synth.selfplay import request_seed

SPECIAL = (
    "語言用語",
    "助理",
    "自我介紹",
    "翻譯",
    "身分",
    "用語",
    "教學",
    "限制",
    "安全",
    "改寫",
    "隱私",
    "無法",
    "客家文化/語言",
)


@cache
def good_pairs() -> tuple[tuple[str, str], ...]:
    """(question, answer) of shipped rows, without those about words of other regions, the assistant itself and
    refusals: dialogues put them under topics where they would be faults."""
    pairs = []
    for folder in ("taiwan_instruction", "taiwan_facts"):
        for file in sorted((data.ROOT / folder).glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                if any(word in row.get("topic", "") for word in SPECIAL):
                    continue
                if "messages" in row:
                    messages = [message["content"] for message in row["messages"] if message["role"] != "system"]
                    pairs.append((messages[0], messages[1]))
                else:
                    pairs.append((row["questions"][0], row["answer"]))
    return tuple(pair for pair in pairs if "語言模型" not in pair[1])


@cache
def to_simplified(text: str) -> str:
    """Mainland writing of a text, by OpenCC."""
    from opencc import OpenCC

    return str(OpenCC("tw2sp").convert(text))


LONG = (
    "搭臺鐵去花蓮大約兩個多小時，連假最好提早四週訂票。到站之後可以租機車，往南騎臺十一線看海；想省力就搭觀光公車，一天票可以無限次上下車。",
    "先把豬絞肉炒出油，再下紅蔥頭和蒜末爆香，接著加醬油、米酒和一點冰糖，倒水蓋過肉，小火滷四十分鐘。最後放水煮蛋，燜到隔天會更入味。",
    "租約到期前一個月，房東要提前通知你是否續約。押金最多兩個月租金，退租時點交清楚、拍照存證，房東就應該當場退還，不能拿自然耗損當理由扣錢。",
    "登玉山要先申請入園和入山，排雲山莊的床位要抽籤。建議第一天走到山莊過夜，第二天凌晨兩點多出發攻頂，看完日出再慢慢下山，全程大約二十二公里。",
)


def pick(*variants: str) -> Callable[[int], str]:
    return lambda number: variants[number % len(variants)]


@dataclass(frozen=True)
class Planted:
    """A fault: the role and turn it sits in, what is said there, and the reasons that count as caught ("" = recovered)."""

    reasons: tuple[str, ...]
    text: Callable[[int], str] = lambda n: ""
    role: str = "assistant"
    finish_reason: str = "stop"
    reply: Callable[[int], Reply] | None = None  # (times it came before) → reply; None: a text fault


def once(reply: Reply, times: int = 1) -> Callable[[int], Reply]:
    """That reply the first times, and then the good answer (a Reply without text)."""
    return lambda before: reply if before < times else Reply()


ERROR_BODY = {"error": {"message": "server overloaded", "type": "server_error"}}
TOO_LONG = {"error": {"message": "maximum context length is 4096 tokens", "code": "context_length_exceeded"}}
FAULTS: dict[str, Planted] = {
    "half": Planted(("half_answer",), lambda n: LONG[n % 4][:30], finish_reason="length"),
    "cut": Planted(("cut_off",), lambda n: LONG[n % 4][: (30, 38, 45, 52)[n % 4]].rstrip("，。；、") ),
    "comma": Planted(("cut_off",), lambda n: LONG[n % 4][: LONG[n % 4].index("，") + 1]),
    "empty": Planted(("empty",), pick("", "  \n ", "……", "。")),
    "english": Planted(("language",), pick("The train takes about two hours; book four weeks ahead for holidays.", "Sure! Here are three tips for renting an apartment in Taipei.", "You can apply online and pick up the card in person.")),
    "simplified": Planted(("language",), lambda n: to_simplified(LONG[n % 4])),
    "mainland": Planted(("language",), pick("用戶可以先下載這個軟件，在屏幕上點一下就能看視頻。", "打開鼠標設置，再把默認的打印機換掉，文件就能打印出來。", "先檢查服務器和數據庫的連接，再看程序員寫的代碼有沒有錯。")),
    "cantonese": Planted(("language",), pick("佢哋話呢間餐廳好好食，我哋聽日一齊去啦，你嚟唔嚟呀？", "你而家先諗會唔會太遲呀？我哋琴日已經買咗飛喇。")),
    "japanese": Planted(("language",), pick("電車で行くのが一番便利です。駅から歩いて五分ぐらいかかります。", "この料理はとてもおいしいので、ぜひ食べてみてください。")),
    "refusal": Planted(("refusal",), pick("抱歉，我無法協助你完成這個請求。", "很抱歉，我不能提供這方面的資訊，建議你諮詢專業人士。", "對不起，這個問題我沒辦法回答。", "我無法提供相關的內容，請見諒。", "這個請求違反了使用政策，我們換個話題吧。")),
    "refusal_en": Planted(("refusal", "language"), pick("I'm sorry, but I can't help with that.", "I cannot assist with this request.")),
    "meta": Planted(("meta",), pick("作為一個AI，我沒有辦法親自去那裡，不過可以跟你說怎麼走。", "身為人工智慧語言模型，我沒有個人的喜好，但很多人會選滷肉飯。", "我是一個由某公司開發的大型語言模型，沒吃過這家店。", "在我的訓練資料裡，這間店的評價不錯。", "我只是一個 AI，不會肚子餓，但這家店很多人推薦。".replace(" AI", "AI"))),
    "loop_sentence": Planted(("loop",), lambda n: (LONG[n % 4].split("。")[0] + "。") * 5),
    "loop_phrase": Planted(("loop",), pick("這家店很好吃，" + "真的很好吃，" * 12 + "推薦給你。", "可以先去看看" + "再看看" * 15 + "。", "首先" + "我們需要準備材料和" * 9 + "鍋子。")),
    "loop_char": Planted(("loop",), pick("好" * 60, "哈哈哈哈" * 20 + "。")),
    "self_repeat": Planted(("echo",)),  # its text is the dialogue's first answer
    "parrot": Planted(("echo",)),  # its text is the question before
    "fence": Planted(("code_fence",), pick("可以這樣寫：\n\n```python\nfor i in range(3):\n    print(i)\n\n這樣就會印出三行。", "指令如下：\n```bash\nls -la\n```\n\n再來：\n```bash\ncd 專案\n")),
    "role_flip": Planted(("role_flip",), pick("當然可以！以下是三個建議，讓你參考看看。", "希望這些資訊對你有幫助，祝你旅途愉快！", "如果你還有其他問題，歡迎隨時告訴我。", "沒問題，我可以幫你整理。\n1. 先訂票\n2. 再訂房\n3. 最後排行程", "您好，有什麼可以幫您的嗎？很高興為您服務。"), role="user"),
    "script": Planted(("rubbish", "role_flip"), pick("使用者：那要怎麼去？\n助理：搭公車就可以了。", "好，我知道了。\nAssistant: 還有別的問題嗎？"), role="user"),
    "json": Planted(("rubbish",), pick('{"role": "assistant", "content": "可以搭公車去。"}', '[{"answer": "滷肉飯"}]', "{'reply': '先訂票再說'}")),
    "tokens": Planted(("rubbish",), pick("可以搭公車去。<|im_end|>", "先訂票。</s><s>[INST] 還有呢", "<think>使用者想問路。")),
    "escapes": Planted(("rubbish",), pick("第一步：先訂票。\\n第二步：訂房。\\n第三步：排行程。", "\\u53ef\\u4ee5搭公車去。")),
    "html": Planted(("rubbish",), pick("<div class='a'>先訂票</div>，然後再排行程。", "可以這樣安排：<br>早上爬山<br>下午看海")),
    "garbled": Planted(("garbled",), pick("可以搭\ufffd\ufffd車去，大約二十分鐘。", "先訂票\x00再說，人多的時候要早一點。")),
    "long_user": Planted(("length", "loop"), lambda n: "".join(q + a for q, a in good_pairs()[7 * n : 7 * n + 40])[:4000], role="user"),
    "context": Planted(("endpoint",), reply=lambda before: Reply(status=400, raw=TOO_LONG)),
    "dead": Planted(("endpoint",), reply=lambda before: Reply(status=500, raw=ERROR_BODY)),
    "duplicate": Planted(("near_duplicate",)),  # its messages are those of the dialogue before it, a word changed
    "http_500": Planted(("",), reply=once(Reply(status=500, raw=ERROR_BODY), 2)),
    "http_503": Planted(("",), reply=once(Reply(status=503, raw="<html>down</html>"))),
    "http_429": Planted(("",), reply=once(Reply(status=429, raw=ERROR_BODY, headers={"Retry-After": "0.05"}), 2)),
    "reset": Planted(("",), reply=once(Reply(how="reset"))),
    "cut_body": Planted(("",), reply=once(Reply("半個回答，還沒講完", how="cut"))),
    "slow": Planted(("",), reply=once(Reply("太慢了", how="slow"))),
    "broken_json": Planted(("",), reply=once(Reply(raw='{"choices": [{"mess'))),
    "error_in_200": Planted(("",), reply=once(Reply(raw=ERROR_BODY))),
    "no_choices": Planted(("",), reply=once(Reply(raw={"choices": []}))),
}  # fmt: skip


def planted_in(number: int, names: tuple[str, ...] = tuple(FAULTS)) -> str:
    """The fault of dialogue `number`: every second one has one, in turn; "" for none."""
    return names[(number // 2) % len(names)] if number % 2 else ""


class Dialogues:
    """A Script that plays both roles of self-play: good texts, and in dialogue i the fault `planted_in(i)`, in turn 1."""

    def __init__(self, config: SelfplayConfig, names: tuple[str, ...] = tuple(FAULTS)) -> None:
        self.names = names
        self.places = {
            request_seed(config.seed, number, turn, role): (number, turn, role)
            for number in range(config.num_dialogues)
            for turn in range(config.max_turns)
            for role in ("user", "assistant")
        }
        self.max_turns = config.max_turns

    def __call__(self, body: dict[str, Any], before: int) -> Reply:
        number, turn, role = self.places[body["seed"]]
        name = planted_in(number, self.names)
        fault = FAULTS.get(name)
        if name == "duplicate":
            text = self.good(number - 1, turn, role).replace("可以", "能夠")
            return Reply(text)
        if fault is None or turn != 1 or role != fault.role:
            return Reply(self.good(number, turn, role))
        if fault.reply is not None:
            reply = fault.reply(before)
            if reply.text is None and reply.raw is None and reply.how == "whole":
                return Reply(self.good(number, turn, role))
            return reply
        special = {"self_repeat": self.good(number, 0, role), "parrot": self.good(number, 1, "user")}
        text = special.get(name) or fault.text(number // (2 * len(self.names)))
        return Reply(text, fault.finish_reason)

    def good(self, number: int, turn: int, role: str) -> str:
        pairs = good_pairs()
        if turn == 0 and planted_in(number, self.names) == "self_repeat":
            return (LONG[0], LONG[1])[role == "assistant"]
        if turn == 1 and planted_in(number, self.names) == "parrot" and role == "user":
            return f"所以你的意思是這樣嗎？{LONG[number % 4][:40]}"
        question, answer = pairs[(number * self.max_turns + turn) % len(pairs)]
        return question if role == "user" else answer


def mirror(texts: dict[str, str]) -> Script:
    """A Script that answers what the dictionary says for the last message's text between the tags."""

    def script(body: dict[str, Any], before: int) -> Reply:
        asked = body["messages"][-1]["content"].removeprefix("<原文>\n").removesuffix("\n</原文>")
        return Reply(texts[asked])

    return script
