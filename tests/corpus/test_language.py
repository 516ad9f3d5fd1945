"""Languages and scripts, in sentences written for the test."""

import pytest

from twllm.corpus.codes import count
from twllm.corpus.language import script_of
from twllm.corpus.region import look

LANGUAGES = {
    "今天下班後我們去夜市吃蚵仔煎，你要一起來嗎？": "zh",
    "這個 component 的 state 更新之後，畫面沒有重新 render，請問要怎麼 debug？": "zh",
    "ㄅㄨˋ ㄓ ㄉㄠˋ ㄏㄨㄟˋ ㄅㄨˋ ㄏㄨㄟˋ ㄒㄧㄚˋ ㄩˇ": "zh",
    "佢哋尋日去咗旺角買嘢，我就喺屋企瞓覺。": "yue",
    "點解你成日都遲到㗎？老細好嬲呀。": "yue",
    "阮兜的囡仔今仔日毋是欲去學校，伊講欲佮同學去看電影。": "nan",
    "伊逐工攏透早就起床，食飽才去做工課。": "nan",
    "Guá kin-á-ji̍t beh khì Tâi-pak, lí kám beh tsò-hué khì?": "nan",
    "𠊎等今晡日愛去河壩洗衫，恁多人在該位尞。": "hak",
    "子曰：「學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？人不知而不慍，不亦君子乎？」": "lzh",
    "今日は天気がいいので、友達と公園へ行きました。": "ja",
    "오늘은 날씨가 좋아서 친구와 공원에 갔습니다.": "ko",
    "The night market is open until midnight, and it is one of the best in the city.": "en",
    "Hôm nay trời đẹp quá, chúng tôi đi chợ đêm ăn phở với bạn bè.": "vi",
    "วันนี้อากาศดีมาก เราไปตลาดกลางคืนกับเพื่อน": "th",
    "Сегодня хорошая погода, мы идём на ночной рынок с друзьями.": "ru",
    "Der Nachtmarkt ist bis Mitternacht geöffnet, und die Stadt ist nicht weit von hier.": "de",
    "12345 —— ★★": "und",
}


@pytest.mark.parametrize(("text", "lang"), LANGUAGES.items())
def test_language(text: str, lang: str) -> None:
    assert look(text).language.lang == lang


def test_words_shared_with_mandarin_are_no_taigi_or_cantonese() -> None:
    texts = (
        "該案毋庸再議，兩黨拉攏中間選民，毋須大費周章。",
        "本條所稱代理人，係指依法受委任之人；其關係應以書面證明之。",
        "阮小姐咧嘴一笑，把收攏的傘放在門邊。",
    )
    assert [look(text).language.lang for text in texts] == ["zh"] * 3


@pytest.mark.parametrize(
    ("text", "script"),
    [("這裡有軟體", "Hant"), ("这里有软件", "Hans"), ("你好，天天上班", "Hani"), ("這裡有这个軟體，软体也有", "Mixed")],
)
def test_script(text: str, script: str) -> None:
    assert script_of(count(text)) == script
