"""Sentences with made-up personal data for benchmarks/privacy.py, and sentences that only look like it.

Nothing here belongs to anyone: numbers are drawn at random and get the check digit their kind asks for. `positives(rng, each)`
gives (kind, sentence, what must be gone); the sentences were written before the rules they measure.
"""

import random
from collections.abc import Callable, Iterator

from twllm.corpus.privacy_checks import valid_card, valid_company, valid_identity, valid_old_permit

WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Make = Callable[[random.Random], str]


def digits(rng: random.Random, size: int, first: str = "0123456789") -> str:
    return rng.choice(first) + "".join(rng.choice("0123456789") for _ in range(size - 1))


def checked(rng: random.Random, head: str, size: int, valid: Callable[[str], bool]) -> str:
    """`head` and random digits, the last of which makes it valid."""
    while True:
        body = head + "".join(rng.choice("0123456789") for _ in range(size - len(head) - 1))
        for last in rng.sample("0123456789", 10):
            if valid(body + last):
                return body + last


def identity(rng: random.Random) -> str:
    found = checked(rng, rng.choice(LETTERS) + rng.choice("12"), 10, valid_identity)
    spaced = f"{found[0]}{found[1:4]}-{found[4:7]}-{found[7:]}"
    return rng.choice([found] * 6 + [found.translate(WIDE), found.lower(), spaced, f"{found[0]} {found[1:]}"])


def permit(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return checked(rng, rng.choice(LETTERS) + rng.choice("89"), 10, valid_identity)
    return checked(rng, rng.choice(LETTERS) + rng.choice("ABCD"), 10, valid_old_permit)


def company(rng: random.Random) -> str:
    found = checked(rng, "", 8, valid_company)
    return rng.choice([found, found, found.translate(WIDE)])


def health_card(rng: random.Random) -> str:
    found = "0000" + digits(rng, 8)
    return rng.choice([found, found, f"{found[:4]} {found[4:8]} {found[8:]}", f"{found[:4]}-{found[4:8]}-{found[8:]}"])


def passport(rng: random.Random) -> str:
    return rng.choice(
        [digits(rng, 9, "3"), digits(rng, 9, "3"), digits(rng, 9, "12"), "M" + digits(rng, 8), "X" + digits(rng, 7)]
    )


def mobile(rng: random.Random) -> str:
    tail = digits(rng, 8)
    a, b, c = tail[:2], tail[2:5], tail[5:]
    forms = [f"09{a}{b}{c}"] * 3 + [f"09{a}-{b}-{c}"] * 3 + [
        f"09{a}-{b}{c}", f"09{a} {b} {c}", f"+886 9{a} {b} {c}", f"+886-9{a}-{b}-{c}", f"+8869{a}{b}{c}", f"886-9{a}-{b}{c}",
        f"(09{a}){b}-{c}", f"09{a}.{b}.{c}", f"09{a}{b}{c}".translate(WIDE), f"09{a}-{b}-{c}".translate(WIDE), f"+886 (0)9{a}-{b}-{c}",
        f"09{a}－{b}－{c}", f"09-{a}{b}{c}", " ".join(f"09{a}{b}{c}"),
    ]  # fmt: skip
    return rng.choice(forms)


def phone(rng: random.Random) -> str:
    area, local = rng.choice([
        ("02", digits(rng, 8, "2345678")), ("04", digits(rng, 8, "23")), ("03", digits(rng, 7, "2345678")), ("04", digits(rng, 7, "78")),
        ("05", digits(rng, 7, "2356")), ("06", digits(rng, 7, "2356")), ("07", digits(rng, 7, "2345678")), ("08", digits(rng, 7, "78")),
        ("037", digits(rng, 6, "2367")), ("049", digits(rng, 7, "2")), ("089", digits(rng, 6, "2358")), ("082", digits(rng, 6, "3")),
        ("0836", digits(rng, 5, "2578")), ("0826", digits(rng, 5, "6")),
    ])  # fmt: skip
    cut = len(local) - 4 if len(local) > 5 else 0
    dashed = f"{local[:cut]}-{local[cut:]}" if cut else local
    forms = [f"{area}-{local}", f"({area}){dashed}", f"({area}) {dashed}", f"{area}-{dashed}", f"{area} {dashed}", f"+886-{area[1:]}-{dashed}",
             f"+886 {area[1:]} {dashed}", f"（{area}）{local}", f"{area}-{dashed}".translate(WIDE), f"{area}{local}"]  # fmt: skip
    return rng.choice(forms) + rng.choice([""] * 4 + ["#123", " 轉 25", "分機3312", " ext. 12"])


def email(rng: random.Random) -> str:
    name = rng.choice(["xiao.mei", "a_chen88", "david-lin", "tainan.boy", "ling0203", "k.h.wu"]) + str(
        rng.randrange(100)
    )
    host = rng.choice(["gmail.com", "yahoo.com.tw", "mail.ntu.edu.tw", "ms21.hinet.net", "seed.net.tw", "livemail.tw"])
    forms = [f"{name}@{host}"] * 6 + [
        f"{name}[at]{host}", f"{name} (at) {host}", f"{name}＠{host}", f"{name} at {host.replace('.', ' dot ')}",
        f"{name} @ {host}", f"{name}（at）{host}", f"{name}[at]{host.replace('.', '[dot]')}", f"{name}小老鼠{host}", f"{name}@{host}".translate(WIDE),
    ]  # fmt: skip
    return rng.choice(forms)


def card(rng: random.Random) -> str:
    head, size = rng.choice(
        [("4", 16), ("4", 16), ("52", 16), ("55", 16), ("3560", 16), ("3528", 16), ("37", 15), ("2301", 16)]
    )
    found = checked(rng, head, size, valid_card)
    if size == 15:
        return rng.choice([found, f"{found[:4]} {found[4:10]} {found[10:]}"])
    parts = [found[i : i + 4] for i in range(0, 16, 4)]
    return rng.choice([found, " ".join(parts), "-".join(parts), found.translate(WIDE)])


def account(rng: random.Random) -> str:
    a = digits(rng, 14)
    return rng.choice([
        a[:12], a[:13], a, f"{a[:3]}-{a[3:5]}-{a[5:11]}-{a[11]}", f"{a[:4]}-{a[4:8]}-{a[8:12]}", f"{a[:7]}-{a[7:]}", f"{a[:3]}-{a[3:6]}-{a[6:12]}",
        f"{a[:3]} {a[3:5]} {a[5:12]}",
    ])  # fmt: skip


def plate(rng: random.Random) -> str:
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(3))
    number = digits(rng, 4)
    return rng.choice([
        f"{letters}-{number}", f"{letters}-{number}", f"{letters}-{number[:3]}", f"{number[:3]}-{letters}", f"{letters[:2]}-{number}",
        f"{number}-{letters[:2]}", f"{letters[0]}{number[0]}-{number}", f"{letters}{number}", f"E{letters[:2]}-{number}", f"{number}-{letters[0]}{number[1]}",
    ])  # fmt: skip


def address(rng: random.Random) -> tuple[str, str]:
    """(the address, the part that must be gone)"""
    town = rng.choice(
        [
            "臺北市信義區",
            "台中市西屯區",
            "高雄市鳳山區",
            "新北市板橋區",
            "嘉義市東區",
            "屏東縣潮州鎮",
            "臺東縣卑南鄉",
            "台南市中西區",
            "桃園市龜山區",
            "彰化縣員林市",
            "板橋區",
            "",
        ]
    )
    number = str(rng.randrange(1, 500))
    road = rng.choice(
        [
            "忠孝東路五段",
            "臺灣大道三段",
            "民權路",
            "中山路二段",
            "光復街",
            "文化一路",
            "和平西路",
            "三民路一段",
            "羅斯福路四段",
            "市民大道三段",
        ]
    )
    door = rng.choice([f"{number}號", f"{number}號{rng.randrange(2, 20)}樓", f"{rng.randrange(1, 90)}巷{number}號", f"{rng.randrange(1, 90)}巷{rng.randrange(1, 30)}弄{number}號{rng.randrange(2, 9)}樓之{rng.randrange(1, 9)}",
                       f"{number}之{rng.randrange(1, 9)}號", f"{number}-{rng.randrange(1, 9)}號", f"{number}號{rng.randrange(2, 14)}F", f" {number} 號"])  # fmt: skip
    if town.endswith(("鎮", "鄉")) and rng.random() < 0.6:
        road = rng.choice(["仁愛村", "光明里"]) + rng.choice([f"{rng.randrange(1, 30)}鄰", ""]) + rng.choice([road, ""])
    whole = town + road + door
    whole = rng.choice(
        [
            whole,
            whole,
            whole,
            "106" + whole if town else whole,
            whole.translate({c: c + 0xFEE0 for c in range(0x30, 0x3A)}),
        ]
    )
    return whole, whole[-len(door) :]


SENTENCES: dict[str, tuple[Make, tuple[str, ...]]] = {
    "身分證字號": (identity, (
        "我的身分證字號是{x}，請幫我查一下有沒有中籤。", "立書人：陳小華，身分證統一編號：{x}，住址如上。", "報名表要填姓名、{x}、生日三個欄位，我都寫了。",
        "被告林某（{x}）經傳喚未到。", "身份證：{x}\n生日：75年3月2日", "申請人 {x} 已完成線上報稅。", "ID {x} 查無資料，是不是打錯了？",
        "他把 {x} 直接貼在臉書留言，大家都看到了。", "國民身分證統一編號「{x}」應與戶籍謄本相符。", "保險要保人{x}與被保險人為母子。",
    )),
    "居留證號": (permit, (
        "外籍老師的居留證號碼是{x}，報稅時要填。", "ARC No. {x}，效期到明年六月。", "統一證號：{x}", "我先生是越南人，證號 {x}，要怎麼加入健保？",
        "移工{x}的雇主變更申請已核准。", "居留證{x}遺失，聲明作廢。", "請在欄位輸入{x}，系統就會帶出資料。", "買高鐵票的時候輸入 {x} 一直說格式不對。",
    )),
    "統一編號": (company, (
        "發票請打統編{x}，謝謝。", "公司統一編號：{x}，抬頭寫全名。", "統一編號 {x} 的負責人是他太太。", "賣方營利事業統一編號為{x}。",
        "請問{x}（統編）可以開三聯式嗎？", "扣繳單位統一編號：{x}", "抬頭：大湖工作室　統編：{x}", "三聯式發票，統編 {x}，下午寄出。",
    )),
    "健保卡號": (health_card, (
        "健保卡卡號：{x}，麻煩幫我掛下午的診。", "他的健保卡號是 {x}，卡片已經鎖住了。", "請輸入健保卡號（{x}）登入。", "全民健保卡卡號{x}遺失補發。",
        "健保 IC 卡卡號 {x}，上面還有照片。", "拿健保卡出來看，號碼是{x}。",
    )),
    "護照號碼": (passport, (
        "護照號碼：{x}，請幫我訂機票。", "我的護照號碼是{x}，效期到 2031 年。", "Passport No. {x}，登機前再確認一次。", "旅客護照 {x} 在機場遺失。", "護照號{x}與訂位資料不符。",
        "中華民國護照（號碼 {x}）已註銷。", "passport number: {x}",
    )),
    "手機號碼": (mobile, (
        "有問題打我手機{x}，晚上九點前都可以。", "聯絡人陳小姐 {x}，請先加 LINE。", "徵室友，意者電{x}。", "手機：{x}\n信箱另外給你", "外送員留言說請撥{x}找他。",
        "賣場電話 {x}（來電請說明看到網站）。", "失物招領：拾獲者請聯絡{x}，必有重謝。", "TEL:{x}", "我媽的號碼是 {x}，緊急聯絡人寫她。", "Line ID 同手機 {x}",
        "王先生{x}、李小姐0912-000-111都可以。", "他昨天傳簡訊問{x}是誰的號碼。",
    )),
    "電話號碼": (phone, (
        "家裡電話{x}，白天都有人。", "請洽{x}王小姐。", "電話：{x}　傳真另洽", "診所電話 {x}，星期三休診。", "傳真：{x}", "訂位專線{x}，人多請先預約。", "TEL {x}",
        "聯絡電話為{x}，請於上班時間來電。", "市話{x}已經停用。", "民宿老闆說打{x}最快。",
    )),
    "電子郵件": (email, (
        "履歷請寄到{x}，主旨寫應徵。", "我的信箱是{x}，有問題來信。", "E-mail: {x}", "來信請寄 {x} 給助教。", "聯絡方式（{x}）在最下面。", "索取講義：{x}", "帳號密碼會寄到{x}喔",
    )),
    "信用卡號": (card, (
        "我的信用卡號{x}被盜刷了，怎麼辦？", "卡號：{x}，有效期限 08/29。", "刷卡 {x} 失敗，銀行說額度不夠。", "他把卡號{x}和末三碼都念給對方聽。", "VISA {x} 請扣款。", "付款資料\n{x}\n王小明",
    )),
    "銀行帳號": (account, (
        "請匯款到銀行帳號{x}，戶名林大同。", "帳號：{x}（國泰世華 013）", "匯款帳號 822-{x}，匯完告訴我後五碼。", "退費請提供存摺帳號：{x}", "我的帳戶是{x}，中信。", "轉帳到 {x} 就可以了。",
        "郵局帳號：700-{x}", "玉山銀行（808）帳號 {x}",
    )),
    "車牌號碼": (plate, (
        "車牌號碼{x}擋在我家門口，請車主移車。", "他騎乘車牌{x}號普通重型機車闖紅燈。", "車號 {x} 的白色休旅車主請到一樓。", "駕駛{x}號自用小客車沿中山路行駛。", "我的車牌是{x}，停在 B2。",
        "違規車輛：{x}，罰單已寄出。", "車牌：{x}", "計程車車號{x}，東西掉在後座。", "遭車號{x}號營業小客車追撞。",
    )),
}  # fmt: skip
ADDRESS_SENTENCES = (
    "我住在{x}，歡迎來玩。", "收件地址：{x}", "聯絡地址為{x}，請寄掛號。", "被告住{x}。", "面交地點{x}樓下。", "房屋坐落{x}，屋齡二十年。", "戶籍設於{x}", "請宅配到 {x}，謝謝",
)  # fmt: skip

NEAR_MISSES = (
    "產品型號 A123456780 已停產。", "序號B234567891請妥善保管。", "民國112年10月25日上午9時30分開會。", "依民法第1138條至第1144條規定辦理。", "刑法第三百三十九條之四第一項第二款。",
    "ISBN 978-957-13-6543-2，定價420元。", "國際書號：9789571365435", "發文字號：府教學字第1120012345號", "院臺法字第1090123456號函", "台內營字第0920087654號令修正發布",
    "訂單編號0912345678，預計三天到貨。", "訂單 202401150912345678 已出貨。", "物流單號 9012345678901 查詢中。", "發票號碼 AB-12345678，金額 1,280 元。", "總價新臺幣12,345,678元整。",
    "座標 25.033964, 121.564468 附近。", "北緯23.5度、東經120.9605度", "2024-01-15 09:12:34.567890 INFO start", "版本 3.10.12 與 2.0.1.1234", "UUID 550e8400-e29b-41d4-a716-446655440000",
    "人口 23,400,000 人，面積 36197 平方公里。", "圓周率 3.14159265358979323846", "時間戳記 1700000000123", "學號 B09901234 的同學請上台。", "統編12345678是錯的。", "身分證字號A123456788是錯的。",
    "卡號 4111 1111 1111 1112 無效。", "客服專線 0800-024-365、0809-091-111", "撥打 110、119、165、1999 都可以。", "電話費 1200 元", "捷運國父紀念館站1號出口集合", "走國道3號接台64線快速道路",
    "國道1號北上23公里處回堵", "省道台9線12號橋施工", "搭乘299號公車", "大法官釋字第748號解釋", "中華路是條大路。", "中山路一段正在鋪路。", "忠孝東路走九遍", "第12號提案交付審查。",
    "本案地號為中正段一小段123-4地號。", "面積 0912.34 公頃", "EMU3000 型電聯車，車號 EMU3001 首度亮相。", "型號 ABC-1234 的螺絲", "波音 747-400 與 A350-900", "零件 SN-1234 已更換", "MH-370 班機",
    "GB-2312 與 UTF-8 編碼", "CPU i7-8700K 搭配 RTX-3080", "ISO-8859-1", "COVID-19 疫情", "RFC 2822 與 RFC 5322", "CNS 11643", "2023-2024 球季", "02-15 公布的資料", "比分 21-19、19-21、21-15",
    "帳號請輸入英文加數字 8 到 12 碼。", "護照效期 2031-05-20", "護照費用 1300 元，工本費另計", "健保卡已於 2024 年換發", "信用卡年費 3000，回饋 2.25 %", "車牌號碼共有 7 碼", "車號選號費 2000 元起", "統一編號共 8 碼",
    "@property 裝飾器與 @staticmethod", "icon@2x.png 解析度不足", "推特帳號 @taiwan_today", "npm install vue@3.4.21", "小明 at 學校", "他在 at the park 拍照", "公路總局第三區養護工程處", "思路一號計畫",
    "颱風路徑：第5號颱風海葵", "編號 0000 0000 0000 0000", "1234567890", "112年度訴字第1234號判決", "基金代號 00878、股票 2330", "郵遞區號 106-409", "條碼 4710088412345", "GTIN 04710088412342",
    "IP 位址 192.168.100.254", "解析度 3840-2160", "每股盈餘 12.34 元、營收 1,234,567,890 元", "資本額新臺幣100000000元", "預算編列 1234567 千元", "溫度 -12.5 度", "電話通知後 30 分鐘內到場",
    "他的電話號碼最後三碼是 678", "民國 38 年 5 月 20 日至 76 年 7 月 15 日戒嚴", "提案第20230912345號", "案號：110-1234567", "統計期間 2019-01-01 至 2023-12-31", "帳戶自 2019-01-15 10:00 起凍結",
    "存摺封面要影印 2 份，期限 2024 12 31", "學位證書字號（112）北大字第001234號", "健保署代碼 1234567890", "衛部醫器製字第001234號", "農地重劃第三期 5 號道路", "他住三樓，我住十二號。",
)  # fmt: skip


def positives(rng: random.Random, each: int) -> Iterator[tuple[str, str, str]]:
    """`each` sentences of every kind."""
    for kind, (make, sentences) in SENTENCES.items():
        for number in range(each):
            value = make(rng)
            yield kind, sentences[number % len(sentences)].replace("{x}", value), value
    for number in range(each):
        whole, door = address(rng)
        yield "地址", ADDRESS_SENTENCES[number % len(ADDRESS_SENTENCES)].replace("{x}", whole), door
