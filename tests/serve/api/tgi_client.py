"""Run by a Python that has text-generation 0.7.0 (it pins old packages): `tgi_client.py URL` prints what the client makes of us."""

import asyncio
import json
import sys
from typing import Any

from text_generation import AsyncClient, Client  # type: ignore[import-not-found, unused-ignore]
from text_generation.errors import ValidationError  # type: ignore[import-not-found, unused-ignore]


def main(url: str) -> dict[str, Any]:
    """Everything the seed's demo and TC-Eval's inference do, and the rest of the client."""
    client = Client(url)
    prompt = "台灣最高的山是"
    whole = client.generate(prompt, max_new_tokens=300, stop_sequences=["不會有"])
    events = list(client.generate_stream(prompt, max_new_tokens=300, stop_sequences=["</s>"]))
    short = client.generate(prompt, max_new_tokens=300, stop_sequences=["玉山"], return_full_text=True)
    drawn = client.generate(
        prompt, do_sample=True, temperature=0.5, top_p=0.9, top_k=5, typical_p=0.9, seed=3, repetition_penalty=1.1,
        truncate=4, top_n_tokens=2, decoder_input_details=True, max_new_tokens=300,
    )  # fmt: skip
    best = client.generate(prompt, do_sample=True, best_of=2, max_new_tokens=5)
    found: dict[str, Any] = {
        "generated": whole.generated_text, "finish": whole.details.finish_reason.value,
        "streamed": "".join(event.token.text for event in events if not event.token.special),
        "last": events[-1].generated_text, "stopped": short.generated_text, "seed": drawn.details.seed,
        "prefill": len(drawn.details.prefill), "top": len(drawn.details.top_tokens[0]),
        "others": len(best.details.best_of_sequences),
    }  # fmt: skip
    for name, call in (
        ("long", lambda: client.generate("ㄅㄆㄇ" * 300)),
        ("long_stream", lambda: list(client.generate_stream("ㄅㄆㄇ" * 300))),
    ):
        try:
            call()
        except ValidationError as error:
            found[name] = str(error)
    chat = client.chat([{"role": "user", "content": prompt}], max_tokens=300)
    found["chat"] = chat.choices[0].message.content

    async def together() -> list[str]:
        other = AsyncClient(url)
        answers = await asyncio.gather(*(other.generate(prompt, max_new_tokens=300) for _ in range(4)))
        return [answer.generated_text for answer in answers]

    found["async"] = asyncio.run(together())
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1]), ensure_ascii=False))
