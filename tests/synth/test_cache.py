"""Stored before use, found again, locked while in use."""

from pathlib import Path

import pytest

from twllm.errors import UserError
from twllm.synth.cache import FILE, Cache, request_key

BODY = {"model": "m", "messages": [{"role": "user", "content": "嗨\ud83d"}], "seed": 1}


def test_key_covers_the_whole_body_and_the_sample() -> None:
    keys = {
        request_key(BODY, 0),
        request_key(BODY, 1),
        request_key({**BODY, "seed": 2}, 0),
        request_key({**BODY, "model": "n"}, 0),
    }
    assert len(keys) == 4
    assert request_key(dict(reversed(BODY.items())), 0) == request_key(BODY, 0)


def test_answers_and_open_requests_survive(tmp_path: Path) -> None:
    with Cache(tmp_path) as cache:
        first, second = cache.note_sent("a", 10, 20), cache.note_sent("b", 1, 2)
        assert cache.unknown() == (11, 22)
        cache.put("a", {"text": "好\ud83d"}, 3, 4, first)
        assert (cache.unknown(), cache.paid()) == ((1, 2), (3, 4))
        third = cache.note_sent("c", 5, 5)
        cache.settle(third)
        cache.put_failure("c", "太長")
        assert second != first
    with Cache(tmp_path) as cache:
        stored = cache.get("a")
        assert stored is not None
        assert (stored.response, stored.tokens_in, stored.tokens_out) == ({"text": "好\ud83d"}, 3, 4)
        assert (cache.get("b"), cache.failure("c"), cache.unknown()) == (None, "太長", (1, 2))
        cache.forget_failures()
        assert cache.failure("c") is None


def test_one_run_at_a_time_and_damage_is_told(tmp_path: Path) -> None:
    with Cache(tmp_path / "a"), pytest.raises(UserError, match="快取"):
        Cache(tmp_path / "a")
    Cache(tmp_path / "a").close()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / FILE).write_text("不是資料庫" * 500, encoding="utf-8")
    with pytest.raises(UserError, match="損壞"):
        Cache(tmp_path / "b")
