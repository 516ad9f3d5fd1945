"""Chinese names of stages and drop reasons, for people who read the funnel."""

# fmt: off
STAGES = {
    "read": "讀入", "normalize": "正規化", "quality": "品質", "script": "正體", "dedup": "去重", "near_dedup": "近似去重",
    "dedup_paragraphs": "段落去重", "dedup_lines": "行去重", "boilerplate": "網站樣板", "decontaminate": "除汙", "taiwan": "臺灣用語",
    "language": "語言", "region": "地區", "sites": "網站", "privacy": "個資", "quality_model": "品質模型", "convert": "轉換",
}
REASONS = {
    "too_short": "太短", "garbled": "亂碼", "symbols": "符號過多", "few_han": "漢字太少", "repeated_lines": "重複行",
    "no_sentence_end": "沒有句子", "simplified": "簡體字", "mixed_script": "繁簡混雜", "mixed_page": "混雜的網頁",
    "duplicate": "重複文件", "near_duplicate": "近似重複", "repeated_paragraph": "重複段落", "repeated_line": "重複行",
    "adult": "色情廣告", "gambling": "賭博廣告", "loan": "借貸廣告", "navigation": "選單", "cookies": "Cookie 告示",
    "link_farm": "連結堆", "short_lines": "短行", "ellipsis_lines": "截斷的行", "bullet_lines": "條列", "no_sentences": "幾乎沒有句子",
    "few_characters": "字種太少", "repeated_grams": "片段重複", "repeated_sentence": "整句重複", "translated": "機器翻譯腔",
    "low_quality": "品質分數低", "leak_rate": "外地用語過多", "site_dropped": "標為丟棄的網站", "site_unreviewed": "沒審過的網站",
    "cut_paragraphs": "剪掉的段落", "cut_repeated_paragraph": "剪掉的重複段落", "cut_repeated_line": "剪掉的重複行", "cut_boilerplate": "剪掉的樣板行",
    "evaluation_question": "評測題目", "evaluation_context": "評測短文", "evaluation_reference": "評測答案",
    "evaluation_choices": "評測選項", "evaluation_text": "評測文字",
    "broken_line": "壞行", "long_line": "過長的行", "broken_file": "壞檔", "broken_record": "壞紀錄", "too_large": "過大",
    "too_deep": "標籤過多過深", "too_slow": "太花時間", "no_text": "沒有文字", "missing": "抓不到",
    "pii_identity": "身分證字號", "pii_permit": "居留證號", "pii_company": "統一編號", "pii_health_card": "健保卡號", "pii_passport": "護照號碼",
    "pii_mobile": "手機號碼", "pii_phone": "電話號碼", "pii_email": "電子郵件", "pii_card": "信用卡號", "pii_account": "銀行帳號",
    "pii_plate": "車牌號碼", "pii_address": "地址",
}
LANGUAGES = {
    "zh": "華語", "lzh": "文言", "yue": "粵語", "nan": "臺灣台語", "hak": "客語", "ja": "日語", "ko": "韓語", "en": "英語", "vi": "越南語",
    "th": "泰語", "ru": "俄語", "ar": "阿拉伯語", "de": "德語", "fr": "法語", "es": "西班牙語", "pt": "葡萄牙語", "it": "義大利語",
    "id": "印尼語", "tl": "塔加洛語", "und": "不明",
}
REGIONS = {"CN": "中國大陸", "HK": "香港", "TW": "臺灣", "unsure": "地區不明"}
# fmt: on


def named(name: str) -> str:
    """The name in Chinese and as it is written in files.

    >>> named("language_yue"), named("region_CN"), named("cut_evaluation_text"), named("夜市")
    ('語言：粵語 language_yue', '地區：中國大陸 region_CN', '剪掉的評測文字 cut_evaluation_text', '夜市')
    """
    if name in STAGES or name in REASONS:
        return f"{STAGES.get(name) or REASONS[name]} {name}"
    for prefix, word, names in (
        ("language_", "語言：", LANGUAGES), ("region_", "地區：", REGIONS), ("variety_", "變體：", {}), ("cut_", "剪掉的", REASONS),
        ("has_", "含有", REASONS),
    ):  # fmt: skip
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            return f"{word}{names.get(rest, rest)} {name}"
    return name
