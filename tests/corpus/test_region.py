"""Taiwan against Hong Kong, the mainland and converted text, in sentences written for the test."""

import pytest

from twllm.corpus.region import look
from twllm.corpus.region_words import finder, words

TAIWAN = [
    "捷運站出口右轉走三分鐘就到了，老闆人很親切，滷肉飯加一顆滷蛋只要五十元。",
    "我昨天去看牙醫，結果忘了帶健保卡，還好櫃檯小姐說可以先付押金。",
    "依前項規定申請補助者，應檢附下列文件，向所在地主管機關提出申請。",
    "今天心情不太好，想一個人靜一靜，晚點再跟你聯絡。",
    "請問這台筆電可以加記憶體嗎？我想換成 32GB。",
    "水在攝氏一百度沸騰，氣壓降低時沸點也會跟著下降。",
    "民進黨立委在質詢時追問，為什麼預算執行率只有六成。",
    "聯合國氣候變遷會議今年在巴西舉行，各國代表針對減碳目標展開激烈辯論。",
]
HONG_KONG = [
    "立法會財務委員會昨日審議撥款申請，有議員質疑當局未有交代工程超支的原因。",
    "他早上乘港鐵由沙田到中環返工，放工後再轉小巴回屋苑。",
    "警方接報到場，一名男子頭部受傷，由救護車送往伊利沙伯醫院治理，案件交由油尖警區重案組跟進。",
    "中學文憑試今日放榜，全港有逾五萬名考生。",
    "我昨天在茶餐廳吃了一客西多士和凍檸茶，埋單只要四十多塊。",
    "曼聯昨晚作客以二比一擊敗車路士，朗尼射入致勝一球。",
]
MAINLAND = [
    "這款手機的屏幕分辨率很高，性價比也不錯，不過攝像頭的質量一般。",
    "小王是個程序員，天天加班到深夜，週末就窩在出租屋裡刷短視頻。",
    "據新華社報道，國家主席習近平在北京會見來訪的法國總統馬克龍。",
    "意大利總理表示，歐盟應加強與非洲國家的合作。",
    "請各單位高度重視，認真貫徹落實會議精神，確保各項工作落到實處。",
    "你咋還沒吃飯呢？趕緊的，菜都涼了，一會兒還得去地鐵站接你爸。",
]


@pytest.mark.parametrize("text", TAIWAN)
def test_taiwan(text: str) -> None:
    found = look(text)
    assert (found.region, found.score >= 0.5) == ("TW", True)


@pytest.mark.parametrize("text", HONG_KONG)
def test_hong_kong(text: str) -> None:
    found = look(text)
    assert (found.region, found.score < 0.5) == ("HK", True), found.reasons


@pytest.mark.parametrize("text", MAINLAND)
def test_mainland_wording(text: str) -> None:
    found = look(text)
    assert (found.region, found.score < 0.5) == ("CN", True), found.reasons


@pytest.mark.parametrize("config", ["s2t", "s2tw", "s2hk"])
def test_converted_by_opencc(config: str) -> None:
    import opencc

    simplified = opencc.OpenCC("t2s")
    converter = opencc.OpenCC(config)
    for text in MAINLAND:
        assert look(converter.convert(simplified.convert(text))).region != "TW"


def test_converted_with_taiwans_words_by_what_only_a_converter_writes() -> None:
    import opencc

    text = "法律程序已经完成，该项目的设备由政府大力支持，这个循环经济的实例说明，优化配置离不开密切联系群众。"
    found = look(opencc.OpenCC("s2twp").convert(text))
    assert found.region == "CN", found.reasons


def test_forms_of_characters_and_quotes_count() -> None:
    assert look("因爲天氣很好，衆人都喫了午飯。").region == "CN"
    assert look("他説那間屋的衞生很差，路綫也不清楚。").region == "HK"
    plain, curly = "他說「今天休息」，我說「好」。", "他說“今天休息”，我說“好”。"
    assert look(curly).score < look(plain).score


def test_one_foreign_word_does_not_sink_a_long_taiwan_text() -> None:
    text = "台北市政府衛生局提醒民眾，健保卡請隨身攜帶。里長也會在捷運站發放口罩。" * 5
    assert look(text + "他用的是大陸的視頻網站。").region == "TW"


def test_reasons_name_the_words() -> None:
    told = "；".join(look("這個視頻的質量很好").reasons)
    assert "視頻" in told and "CN" in told


def test_host_counts() -> None:
    text = "今天的會議在下午三點開始，請準時出席。"
    assert look(text, "https://www.example.gov.tw/a").score > look(text, "https://www.example.com.hk/a").score


def test_longer_words_hide_the_accident() -> None:
    assert "視頻" not in look("電視頻道很多").found.get("CN", {})
    assert len(words()) > 3000 and len(finder().texts) <= len(words()) * 1.2
