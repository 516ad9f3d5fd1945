"""The torch engine on a real (tiny, random) model, against transformers and against itself."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from twllm.errors import UserError
from twllm.serve.engines.interface import ContextLengthError, Sampling
from twllm.serve.engines.torch.engine import TorchEngine
from twllm.tokens.tokenizer import ChatTokenizer

QUESTIONS = ["台灣最高的山是哪一座？", "「拍謝」是什麼意思？", "hello 你好", "注音ㄅㄆㄇ怎麼念？請一個一個說明。"]


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Iterator[TorchEngine]:
    engine = TorchEngine(tiny_checkpoint, threads=1, precision="fp32")
    yield engine
    engine.close()


def prompt(engine: TorchEngine, question: str) -> list[int]:
    return engine.tokenizer.encode_chat([{"role": "user", "content": question}], add_generation_prompt=True).ids


def answer(engine: TorchEngine, question: str, **sampling: object) -> list[int]:
    events = engine.generate(prompt(engine, question), Sampling(**{"max_tokens": 24, **sampling}))  # type: ignore[arg-type]
    return [event.id for event in events]


def test_greedy_ids_are_those_of_transformers(engine: TorchEngine) -> None:
    for question in QUESTIONS:
        ids = torch.tensor([prompt(engine, question)])
        expected = engine.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0
        )
        assert answer(engine, question) == expected[0, ids.shape[1] :].tolist()


def test_prompt_in_slices_gives_the_same_answer(engine: TorchEngine, tiny_checkpoint: Path) -> None:
    whole = answer(engine, QUESTIONS[3])
    other = TorchEngine(tiny_checkpoint, threads=1, precision="fp32")
    other._runner.step_tokens = 7
    assert answer(other, QUESTIONS[3]) == whole
    assert other.counts["steps"] > len(prompt(engine, QUESTIONS[3])) / 7 + 20
    other.close()


def test_a_chat_goes_on_where_it_was(tiny_checkpoint: Path) -> None:
    """The second turn reads only what is new, and its answer is the one a fresh engine gives."""
    engine, fresh = (TorchEngine(tiny_checkpoint, threads=1, precision="fp32") for _ in range(2))
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    ids = engine.tokenizer.encode_chat(messages, add_generation_prompt=True).ids
    said = [event.id for event in engine.generate(ids, Sampling(max_tokens=20, ignore_eos=True))]
    longer = [*ids, *said, *engine.tokenizer.encode("然後呢？")]
    assert answer_ids(engine, longer) == answer_ids(fresh, longer)
    assert engine.counts["reused"] == len(ids) + 19
    several = [engine.generate(longer, Sampling(temperature=1.0, seed=n, max_tokens=8)) for n in range(3)]
    assert [[e.id for e in one] for one in several] == [
        [e.id for e in fresh.generate(longer, Sampling(temperature=1.0, seed=n, max_tokens=8))] for n in range(3)
    ]
    engine.close()
    fresh.close()


def answer_ids(engine: TorchEngine, ids: list[int]) -> list[int]:
    return [event.id for event in engine.generate(ids, Sampling(max_tokens=12))]


def test_stop_strings_limits_and_log_probabilities(engine: TorchEngine) -> None:
    free = list(engine.generate(prompt(engine, QUESTIONS[0]), Sampling(max_tokens=24, ignore_eos=True, logprobs=2)))
    assert [event.top[0][0] for event in free] == [event.id for event in free]  # greedy: the best one
    assert all(event.logprob == event.top[0][1] for event in free)
    text = "".join(event.text for event in free)
    stop = text[len(text) // 2 :][:2]
    for keep in (False, True):
        sampling = Sampling(max_tokens=24, ignore_eos=True, stop=("沒有這個", stop), keep_stop=keep)
        events = list(engine.generate(prompt(engine, QUESTIONS[0]), sampling))
        expected = text[: text.index(stop) + (len(stop) if keep else 0)]
        assert "".join(event.text for event in events) == expected
        assert (events[-1].finish_reason, events[-1].matched) == ("stop", stop)
    assert len(free) == 24
    assert (free[-1].finish_reason, free[-1].matched) == ("length", None)


def test_text_is_the_decoded_ids_and_the_last_event_says_why(engine: TorchEngine) -> None:
    events = list(engine.generate(prompt(engine, QUESTIONS[0]), Sampling(max_tokens=40)))
    ids = [event.id for event in events if event.id not in engine.end_ids]
    assert "".join(event.text for event in events) == engine.tokenizer.decode(ids).removeprefix(" ")
    assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1].finish_reason == ("stop" if events[-1].id in engine.end_ids else "length")


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_others_do_not_change_an_answer(engine: TorchEngine, temperature: float) -> None:
    settings = {"temperature": temperature, "seed": 7}
    alone = [answer(engine, question, **settings) for question in QUESTIONS]
    together: dict[int, list[int]] = {}

    def run(number: int) -> None:
        together[number] = answer(engine, QUESTIONS[number % 4], **settings)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [together[number] for number in range(24)] == alone * 6


def test_a_short_answer_overtakes_a_long_one(engine: TorchEngine) -> None:
    long = engine.generate(prompt(engine, QUESTIONS[0]), Sampling(max_tokens=150, temperature=5.0, seed=1))
    next(long)
    answer(engine, QUESTIONS[1], max_tokens=2)
    assert len(list(long)) > 20  # the long one was still being written


def test_seed_decides_sampled_answers(engine: TorchEngine) -> None:
    sampled = [answer(engine, QUESTIONS[0], temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_batch_equals_single_answers(engine: TorchEngine) -> None:
    prompts = [prompt(engine, question) for question in QUESTIONS] * 10  # more rows than one batch holds
    single = [[id for id in answer(engine, question) if id not in engine.end_ids] for question in QUESTIONS] * 10
    assert engine.generate_batch(prompts, Sampling(max_tokens=24)) == single
    assert engine.generate_batch([], Sampling(max_tokens=24)) == []
    with pytest.raises(ValueError, match="greedy"):
        engine.generate_batch(prompts, Sampling(temperature=1.0))


def test_any_end_id_of_the_generation_config_ends_an_answer(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    plain = TorchEngine(folder, threads=1)
    free = answer(plain, QUESTIONS[0])
    end = free[5]
    first = free.index(end)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": [1, end]}))
    engine = TorchEngine(folder, threads=1)
    events = list(engine.generate(prompt(engine, QUESTIONS[0]), Sampling(max_tokens=24)))
    assert [event.id for event in events] == free[: first + 1]
    assert events[-1].finish_reason == "stop"
    assert engine.generate_batch([prompt(engine, QUESTIONS[0])], Sampling(max_tokens=24)) == [free[:first]]
    plain.close()
    engine.close()


def test_cancel_ends_an_answer_without_a_reason(engine: TorchEngine) -> None:
    cancel = threading.Event()
    events = engine.generate(prompt(engine, QUESTIONS[0]), Sampling(temperature=5.0, seed=1, max_tokens=200), cancel)
    seen = [next(events)]
    cancel.set()
    seen += list(events)
    assert len(seen) < 150
    assert seen[-1].finish_reason is None


def test_closing_the_iterator_frees_the_engine(engine: TorchEngine) -> None:
    events = engine.generate(prompt(engine, QUESTIONS[0]), Sampling(temperature=5.0, seed=1, max_tokens=200))
    next(events)
    events.close()  # type: ignore[attr-defined]
    for _ in range(1000):
        if engine.load() == (0, 0):
            return
        threading.Event().wait(0.005)
    pytest.fail("the request still runs")


def test_a_full_context_is_refused_and_a_nearly_full_one_answered(engine: TorchEngine) -> None:
    assert engine.context == 256
    with pytest.raises(ContextLengthError, match="256"):
        engine.generate([5] * 256, Sampling())
    with pytest.raises(ContextLengthError):
        engine.generate_batch([[5], [5] * 300], Sampling(max_tokens=3))
    events = list(engine.generate([5] * 254, Sampling(max_tokens=50, temperature=5.0, seed=3)))
    assert 1 <= len(events) <= 2
    assert events[-1].finish_reason is not None


def test_a_failing_request_does_not_hurt_the_others(engine: TorchEngine) -> None:
    with pytest.raises(UserError, match="ids are 0 to"):
        engine.generate([10**6], Sampling(max_tokens=2))
    with pytest.raises(UserError, match="empty"):
        engine.generate([], Sampling(max_tokens=2))
    assert engine.alive()
    assert answer(engine, QUESTIONS[0])


def test_close_ends_running_requests(tiny_checkpoint: Path) -> None:
    engine = TorchEngine(tiny_checkpoint, threads=1)
    events = engine.generate(prompt(engine, QUESTIONS[0]), Sampling(temperature=5.0, seed=1, max_tokens=200))
    next(events)
    engine.close()
    assert len(list(events)) < 200
    assert not engine.alive()


def test_defaults_come_from_the_generation_config(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    assert TorchEngine(folder).defaults == Sampling()
    config = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(config))
    assert TorchEngine(folder).defaults == Sampling(temperature=0.6, top_p=0.9)
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match="JSON"):
        TorchEngine(folder)


def test_fingerprint_follows_the_weights_and_the_manifest(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    first = TorchEngine(folder).model_fingerprint
    assert TorchEngine(tiny_checkpoint).model_fingerprint == first
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert TorchEngine(folder).model_fingerprint != first
    (folder / "manifest.json").write_text(json.dumps({"fingerprint": "0123456789abcdef"}))
    assert TorchEngine(folder).model_fingerprint == "0123456789abcdef"


def test_another_template_than_the_trained_one_is_refused(
    tiny_checkpoint: Path, tiny_tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    manifest = {"metrics": {"template_fingerprint": tiny_tokenizer.template_fingerprint}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    TorchEngine(folder)
    tiny_tokenizer.with_template("taiwan-llm-v1").save(folder)
    with pytest.raises(UserError, match="template mismatch") as refused:
        TorchEngine(folder)
    assert "--allow-template-mismatch" in refused.value.fix
    TorchEngine(folder, allow_template_mismatch=True)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer"),
        ("chat_template.jinja", "no chat template"),
        ("model.safetensors", "cannot load"),
    ],
)
def test_half_a_checkpoint_is_explained(tiny_checkpoint: Path, tmp_path: Path, missing: str, words: str) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (folder / missing).unlink()
    with pytest.raises(UserError, match=words):
        TorchEngine(folder)


def test_no_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        TorchEngine(tmp_path / "nichts")
