"""From two records of probes, the demo's and the copy's, to the causes: one finding per cause, not one per symptom.

The order matters. A prompt that is built differently (tokenizer, BOS, template, system text) changes every answer, so what is
then said about answers would be noise: answers are judged only where the prompts agree. Prompts are compared by their numbers of
tokens, which every server tells, by the template's source where it is told, and by what the server does with the reference's
own prompt when it gets it as text.
"""

from collections.abc import Iterator, Mapping
from statistics import mean

from twllm.doctor.findings import Finding
from twllm.doctor.probe import ENDLESS, Answer, Observations, Plan

SAME = 0.03  # mean |Δ log-probability| per token up to which only the order of additions differs: bf16 against fp32 (dev/LOG.md)
OTHER = 0.6  # from which it is another model and not a rounded one; both measured on small models (dev/LOG.md)


def diagnose(seen: Observations, expected: Observations, plan: Plan) -> list[Finding]:
    """Why `seen` answers differently from `expected`; a finding of level ok for what agrees."""
    prompt = list(_prompt(seen, expected, plan))
    if not any(finding.level == "fault" for finding in prompt):
        prompt += _answers(seen, expected)
    return [*prompt, *_sampling(seen, expected), *_limits(seen, expected), *self_checks(seen)]


# -- how the prompt is built -------------------------------------------------------------------------------------


def _prompt(seen: Observations, expected: Observations, plan: Plan) -> Iterator[Finding]:
    different = [text for text, ids in seen.tokens.items() if expected.tokens.get(text, ids) != ids]
    if different:
        why = "同樣的字變成不同的詞元，模型讀到的是別的東西"
        yield Finding(
            "tokenizer",
            "fault",
            f"「{different[0]}」切得不同 (tokenised differently)",
            why,
            "換回原模型的 tokenizer.json",
        )
        return
    if seen.tokens:
        yield Finding("tokenizer", "ok", f"{len(seen.tokens)} 段試驗文字切得相同")
    else:
        yield Finding("tokenizer", "unknown", "伺服器沒有 /tokenize", "只能比提示的詞元數")
    extra = prompt_differences(seen, expected)
    cause = _by_counts(extra, seen, expected) or _by_template(seen, expected) or _by_answers(seen, expected)
    if cause is not None:
        yield cause
    elif not extra:
        yield Finding("template", "unknown", "伺服器不說提示有幾個詞元 (no usage)", "範本只能從回答推測")
    else:
        yield Finding("template", "ok", f"{len(extra)} 種對話的提示都一樣長")
    if cause is None and extra.get("typed"):
        why = "使用者打的 </s> 成了真的控制符：可以偽造對話、截斷系統提示"
        yield Finding(
            "injection",
            "warning",
            f"打出控制符的提示差 {extra['typed']:+} 個詞元",
            why,
            "把訊息當純文字分詞 (encode_special_tokens)",
        )


def prompt_differences(seen: Observations, expected: Observations) -> dict[str, int]:
    """Tokens of the prompt more than expected, by probe."""
    both = {
        name: (seen.answers[name].prompt_tokens, answer.prompt_tokens)
        for name, answer in expected.answers.items()
        if name in seen.answers
    }
    return {name: here - there for name, (here, there) in both.items() if here is not None and there is not None}


def _by_counts(extra: Mapping[str, int], seen: Observations, expected: Observations) -> Finding | None:
    honest = {name: count for name, count in extra.items() if name != "typed"}
    if not any(honest.values()):
        return None
    told = "、".join(f"{name} {count:+}" for name, count in honest.items())
    if len(honest) > 2 and set(honest.values()) == {1}:
        why = "提示開頭有兩個起始符；先轉成文字再分詞時會這樣"
        return Finding(
            "bos",
            "fault",
            f"每個提示都多一個詞元 (double BOS): {told}",
            why,
            "分詞時 add_special_tokens=False，或拿掉範本的 bos_token",
        )
    if len(honest) > 2 and set(honest.values()) == {-1}:
        return Finding(
            "bos",
            "fault",
            f"每個提示都少一個詞元 (no BOS): {told}",
            "訓練時每段對話都以起始符開頭",
            "範本開頭加上 bos_token",
        )
    without = {count for name, count in honest.items() if name in ("plain", "turns")}
    given = {count for name, count in honest.items() if name in ("system", "default")}
    if given == {0} and len(without) == 1:
        why = "對話沒有系統訊息時，原模型會放進預設的一段；這份拷貝放的不同或沒有"
        return Finding(
            "system", "fault", f"沒給系統提示時才不同 (default system text): {told}", why, "範本補上原來的預設系統提示"
        )
    if without == {0}:
        why = "給了系統訊息，伺服器卻丟掉或放在別的地方"
        return Finding(
            "system",
            "fault",
            f"給系統提示時才不同 (system message handled differently): {told}",
            why,
            "用原模型的 chat_template.jinja",
        )
    return Finding(
        "template",
        "fault",
        f"提示的長度不同 (another template): {told}",
        "模型沒看過這種提示，會答非所問",
        "用原模型的 chat_template.jinja",
    )


def _by_template(seen: Observations, expected: Observations) -> Finding | None:
    here, there = seen.facts.get("template"), expected.facts.get("template")
    if not here or not there or "".join(here.split()) == "".join(there.split()):
        return None
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    from twllm.doctor.gguf import same_prompts
    from twllm.tokens.contract import default_system
    from twllm.tokens.tokenizer import ChatTokenizer

    bos, eos = expected.facts.get("bos") or "", expected.facts.get("eos") or ""
    one, other = (ChatTokenizer(Tokenizer(WordLevel({"?": 0}, "?")), source, bos, eos) for source in (here, there))
    if same_prompts(one, other):
        return None
    if default_system(one) != default_system(other):
        seen_text = f"預設系統提示是「{default_system(one)[:40]}」"
        return Finding(
            "system",
            "fault",
            seen_text,
            f"原模型是「{default_system(other)[:40]}」",
            "改回原模型的 chat_template.jinja",
        )
    return Finding(
        "template",
        "fault",
        "範本寫出的提示不同 (another template)",
        "模型沒看過這種提示，會答非所問",
        "用原模型的 chat_template.jinja",
    )


def _by_answers(seen: Observations, expected: Observations) -> Finding | None:
    """Prompts of equal length that are not equal: the reference's own prompt, sent as text, is answered as it should be, the chat is not."""
    chat, raw, right = seen.neutral, seen.raw, expected.raw
    if chat is None or raw is None or right is None or not _alike(raw, right) or _alike(chat, raw):
        return None
    default, plain = seen.answers.get("default"), seen.answers["plain"]
    if default is not None and _alike(default, raw) and not _alike(plain, raw):
        return Finding(
            "system",
            "fault",
            "預設系統提示不同（長度相同）",
            "給原來的系統提示就答得一樣",
            "範本改回原來的預設系統提示",
        )
    why = "把原模型的提示當文字送去就答得一樣，走對話介面就不一樣"
    return Finding(
        "template", "fault", "對話介面組出的提示不同 (another prompt)", why, "用原模型的 chat_template.jinja"
    )


def _alike(one: Answer, other: Answer) -> bool:
    """The same text, as far as both go: one may have been cut a little earlier."""
    a, b = one.text.strip(), other.text.strip()
    short = min(len(a), len(b))
    return a[:short] == b[:short] and abs(len(a) - len(b)) <= 2


# -- how it is answered ------------------------------------------------------------------------------------------


def _answers(seen: Observations, expected: Observations) -> Iterator[Finding]:
    here, there = seen.neutral or seen.answers["plain"], expected.neutral or expected.answers["plain"]
    distance = logprob_distance(seen, expected)
    if distance is not None and distance > SAME:
        told = f"每個詞元的對數機率平均差 {distance:.3f} (mean difference)"
        if distance > OTHER:
            yield Finding(
                "weights", "fault", told, "這是別的模型，或權重沒有載入完全", "比對 model_fingerprint，重新下載權重"
            )
        else:
            yield Finding("precision", "fault", told, "權重被量化，或算得比較粗略", "用 bf16/fp16 的權重與引擎")
        return
    ended = _end_token(seen, expected)
    if ended is not None:
        yield ended
        return
    same = all(_same(seen.answers[name], answer) for name, answer in expected.answers.items() if name in seen.answers)
    neutral = _same(here, there)
    if distance is not None and (same or neutral):
        yield Finding("weights", "ok", f"每個詞元的對數機率平均差 {distance:.4f}")
    elif same or neutral:
        yield Finding("weights", "ok", "溫度 0 的回答相同")
    elif distance is None:
        share = common_share(here.text, there.text)
        kind = "precision" if share > 0 else "weights"
        why = "開頭相同、後來分岔：量化或精度不同" if share > 0 else "第一個字就不同：多半是別的權重"
        yield Finding(
            kind,
            "fault",
            f"溫度 0 的回答只有前 {share:.0%} 相同；伺服器不給 logprobs，只能推測",
            why,
            "用支援 logprobs 的伺服器再查一次",
        )
    if here.text != there.text and here.text.strip() == there.text.strip():
        why = "範本在回答前放的空白要由伺服器去掉；留著會在下一輪進到提示裡"
        yield Finding("spaces", "fault", f"回答以 {here.text[:1]!r} 開頭或結尾", why, "去掉範本帶頭的空白")


def logprob_distance(seen: Observations, expected: Observations) -> float | None:
    """Mean |Δ log-probability| per token of the same answer; None where one side does not tell."""
    if not seen.logprobs or not expected.logprobs or len(seen.logprobs) != len(expected.logprobs):
        return None
    return mean(abs(a - b) for a, b in zip(seen.logprobs, expected.logprobs, strict=True))


def _same(here: Answer, there: Answer) -> bool:
    return here.text.strip() == there.text.strip()


def _end_token(seen: Observations, expected: Observations) -> Finding | None:
    """One of the answers goes on where the reference ends, or ends where the reference goes on."""
    pairs = [(seen.answers[name], answer) for name, answer in expected.answers.items() if name in seen.answers]
    for here, there in [*pairs, *([(seen.neutral, expected.neutral)] if seen.neutral and expected.neutral else [])]:
        a, b = here.text.strip(), there.text.strip()
        if there.finish == "stop" and len(a) > len(b) and a.startswith(b):
            seen_text = f"該停的地方沒停，接著寫「{a[len(b) : len(b) + 20]}」"
            fix = "generation_config.json 的 eos_token_id 要有範本的結束符；Ollama 加 PARAMETER stop"
            return Finding("end_token", "fault", seen_text, "伺服器不認得結束符", fix)
        if here.finish == "stop" and len(a) < len(b) and b.startswith(a) and there.finish != here.finish:
            why = "把模型常寫的符號當成結束符或停止字串"
            return Finding("end_token", "fault", f"寫到「{a[-10:]}」就停了", why, "拿掉多出來的 stop 或 eos_token_id")
        if here.finish == there.finish == "stop" and b.startswith(a) and len(a) < len(b):
            return Finding(
                "end_token",
                "fault",
                f"太早停：「{a[-10:]}」",
                "多了一個結束符或停止字串",
                "拿掉多出來的 stop 或 eos_token_id",
            )
    return None


def common_share(one: str, other: str) -> float:
    """Share of the longer text up to the first difference."""
    one, other = one.strip(), other.strip()
    longest = max(len(one), len(other), 1)
    return (
        next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        / longest
    )


# -- settings ----------------------------------------------------------------------------------------------------


def _sampling(seen: Observations, expected: Observations) -> Iterator[Finding]:
    if len({*seen.again, seen.answers["plain"].text}) > 1:
        return  # self_checks tells it
    here, there = len(set(seen.unasked)) > 1, len(set(expected.unasked)) > 1
    if here and not there:
        why = "沒寫 temperature 的請求，原模型每次答得一樣，這份拷貝會抽樣"
        yield Finding(
            "sampling",
            "fault",
            f"沒給溫度時 {len(seen.unasked)} 次回答不同",
            why,
            "請求寫 temperature: 0，或改 generation_config.json",
        )
    elif there and not here:
        why = "沒寫 temperature 的請求，原模型會抽樣，這份拷貝每次都一樣"
        yield Finding(
            "sampling",
            "fault",
            "沒給溫度時每次都一樣",
            why,
            "generation_config.json 的 do_sample、temperature 改回原來的",
        )
    elif _penalised(seen, expected):
        why = "伺服器預設加了重複懲罰之類的設定"
        yield Finding(
            "sampling",
            "fault",
            "明寫中性的抽樣設定，回答才相同",
            why,
            "請求寫 repetition_penalty: 1.0，或改伺服器的預設",
        )
    else:
        yield Finding("sampling", "ok", "預設" + ("會抽樣" if here else "每次都一樣 (greedy)"))


def _penalised(seen: Observations, expected: Observations) -> bool:
    """Greedy with the server's default penalties differs, with neutral ones it does not."""
    if seen.neutral is None or expected.neutral is None or not _same(seen.neutral, expected.neutral):
        return False
    return not _same(seen.answers["plain"], expected.answers["plain"])


def _limits(seen: Observations, expected: Observations) -> Iterator[Finding]:
    here, there = seen.facts.get("context"), expected.facts.get("context")
    if here and there and here < there:
        yield Finding(
            "context",
            "fault",
            f"只有 {here:,} 個詞元，原模型 {there:,}",
            "長對話會被拒絕或截斷",
            "啟動時加大 --max-model-len / num_ctx",
        )
    elif here:
        yield Finding("context", "ok", f"{here:,} 個詞元")
    else:
        yield Finding("context", "unknown", "伺服器不說上下文多長")
    a, b = seen.unlimited, expected.unlimited
    if a is None or b is None:
        return
    if a.finish == "length" and len(a.text) < len(b.text) and (a.completion_tokens or 0) < ENDLESS:
        why = "沒寫 max_tokens 的請求會在句子中間斷掉"
        yield Finding(
            "max_tokens",
            "fault",
            f"不寫 max_tokens 時只回 {len(a.text)} 字",
            why,
            "請求寫 max_tokens，或改伺服器的預設",
        )


# -- what can be told from one record ----------------------------------------------------------------------------


def self_checks(seen: Observations) -> Iterator[Finding]:
    """Faults that need no reference: temperature 0 that is not greedy, streams that differ, stop strings that do not stop."""
    plain = seen.answers["plain"]
    if len({*seen.again, plain.text}) > 1:
        yield Finding(
            "temperature",
            "fault",
            "溫度 0 問同一句，回答不同",
            "伺服器沒有照 temperature: 0 做",
            "升級伺服器，或改用 top_k: 1",
        )
        return
    if seen.streamed is None:
        yield Finding("stream", "unknown", "沒有串流")
    elif "\ufffd" in seen.streamed and "\ufffd" not in plain.text:
        yield Finding(
            "stream", "fault", "串流裡有 \ufffd：中文字被切開了", "一個字跨兩個詞元，要等位元組到齊才送", "升級伺服器"
        )
    elif seen.streamed != plain.text:
        yield Finding("stream", "fault", "串流接起來和整段回答不同", "使用者看到的和記錄的不一樣", "升級伺服器")
    else:
        yield Finding("stream", "ok", "和整段回答逐字相同")
    if seen.stopped is None:
        return
    text, before = seen.stopped.text, plain.text[: plain.text.find(seen.stop)]
    if text.strip() == before.strip():
        yield Finding("stop", "ok", "停在停止字串之前")
    elif text == plain.text:
        yield Finding(
            "stop",
            "fault",
            "停止字串沒有作用 (ignored)",
            "會把範本的下一輪也寫出來",
            "升級伺服器，或在客戶端截斷",
        )
    elif text.startswith(before):
        why = "TGI 的行為；OpenAI 的規格會去掉"
        yield Finding("stop", "fault", "停止字串留在回答裡 (not trimmed)", why, "客戶端去掉結尾的停止字串")
