"""Shares of tokens: the paper's, caps, replay, what is told; and that training uses them."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from twllm.corpus.config import CorpusConfig, CorpusSource, MixConfig
from twllm.corpus.mix import PAPER_SHARES, Mix, plan_mix
from twllm.errors import UserError


def plan(
    tokens: dict[str, int], groups: dict[str, str] | None = None, caps: dict[str, float] | None = None, /, **mix: object
) -> Mix:
    sources = tuple(
        CorpusSource(path=f"{name}.jsonl", group=(groups or {}).get(name), max_epochs=(caps or {}).get(name))
        for name in tokens
    )
    return plan_mix(CorpusConfig(sources=sources, mix=MixConfig.model_validate(mix)), tokens)


def shown(found: Mix, tokens: dict[str, int]) -> dict[str, int]:
    return {name: round(found.weights[name] * count) for name, count in tokens.items()}


def test_the_papers_shares() -> None:
    tokens = {"social": 900, "news": 800, "knowledge": 300, "books": 100}
    found = plan(tokens, shares=PAPER_SHARES)
    assert found.tokens == 2100
    assert [round(group.achieved, 3) for group in found.groups] == [0.473, 0.296, 0.163, 0.068]
    assert [group.planned for group in found.groups] == [group.achieved for group in found.groups]
    assert found.weights["social"] == pytest.approx(2100 * 0.4732 / 900)


def test_a_small_group_is_capped_and_the_others_take_over() -> None:
    tokens = {"social": 5000, "news": 5000, "books": 10}
    found = plan(tokens, shares={"social": 0.5, "news": 0.25, "books": 0.25}, tokens=1000, max_epochs=4)
    assert shown(found, tokens) == {"social": 640, "news": 320, "books": 40}
    assert [group.capped for group in found.groups] == [False, False, True]
    assert [group.achieved for group in found.groups] == [0.64, 0.32, 0.04]


def test_the_epoch_shrinks_until_the_shares_hold() -> None:
    tokens = {"social": 5000, "news": 5000, "books": 10}
    found = plan(tokens, shares={"social": 0.5, "news": 0.25, "books": 0.25}, tokens=1000, when_short="shrink")
    assert shown(found, tokens) == {"social": 80, "news": 40, "books": 40}
    assert found.tokens == 160


def test_replay_is_taken_off_the_others() -> None:
    tokens = {"taiwan": 700, "news": 700, "english": 10_000}
    found = plan(tokens, shares={"taiwan": 3, "news": 1}, replay={"english": 0.2}, tokens=1000)
    assert shown(found, tokens) == {"taiwan": 600, "news": 200, "english": 200}


def test_sources_of_a_group_share_it_by_size() -> None:
    tokens = {"ptt": 300, "dcard": 100, "news": 400}
    groups = {"ptt": "social", "dcard": "social"}
    found = plan(tokens, groups, shares={"social": 0.5, "news": 0.5}, tokens=1600)
    assert shown(found, tokens) == {"ptt": 600, "dcard": 200, "news": 800}
    found = plan(tokens, groups, {"ptt": 1}, shares={"social": 0.5, "news": 0.5}, tokens=1200)
    assert shown(found, tokens) == {"ptt": 300, "dcard": 300, "news": 600}  # ptt once, dcard gives the rest


def test_everything_capped_gives_what_there_is() -> None:
    tokens = {"a": 10, "b": 20}
    found = plan(tokens, shares={"a": 0.5, "b": 0.5}, tokens=10_000, max_epochs=2)
    assert shown(found, tokens) == {"a": 20, "b": 40}
    assert found.tokens == 60


def test_without_shares_the_weights_of_the_sources() -> None:
    sources = (CorpusSource(path="a.jsonl", weight=2), CorpusSource(path="b.jsonl"))
    found = plan_mix(CorpusConfig(sources=sources), {"a": 10, "b": 20})
    assert found.weights == {"a": 2.0, "b": 1.0}
    assert found.list_weights(sources) == [2.0, 1.0]


@pytest.mark.parametrize(
    ("mix", "what"),
    [
        ({"shares": {"x": 1.0}}, "no source in the group"),
        ({"shares": {"a": 1.0}}, "group without a share"),
        ({"shares": {"a": 1.0, "b": -1.0}}, "positive"),
        ({"shares": {"a": 1.0}, "replay": {"b": 1.0}}, "less than 1"),
        ({"shares": {"a": 1.0, "b": 1.0}, "replay": {"b": 0.1}}, "in both"),
        ({"replay": {"b": 0.1}}, "replay needs shares"),
    ],
)
def test_a_mix_that_makes_no_sense(mix: dict[str, object], what: str) -> None:
    sources = (CorpusSource(path="a.jsonl"), CorpusSource(path="b.jsonl"))
    with pytest.raises(ValidationError, match=what):
        CorpusConfig(sources=sources, mix=MixConfig.model_validate(mix))


def test_an_empty_group_is_an_error() -> None:
    with pytest.raises(UserError, match="empty group"):
        plan({"a": 0, "b": 10}, shares={"a": 0.5, "b": 0.5})


def test_an_epoch_of_training_has_the_shares_and_its_order_comes_from_the_manifest(tmp_path: Path) -> None:
    from twllm.tokens.build import tokens_by_source
    from twllm.tokens.pack import epoch_documents
    from twllm.tokens.shards import TokenShard, write_shard

    sizes = {"social": 400, "news": 300, "books": 20}
    for number, count in enumerate(sizes.values()):
        documents = ((f"{number}-{n}", list(range(5 + n % 13)), None) for n in range(count))
        write_shard(tmp_path / f"{number:03}", documents, 100)
    tokens = tokens_by_source(tmp_path, list(sizes))
    found = plan(tokens, shares={"social": 0.5, "news": 0.3, "books": 0.2})
    manifest = json.loads(json.dumps({"mix": found.to_row(), "seed": 7}))
    shards = [TokenShard(tmp_path / f"{number:03}") for number in range(3)]
    counts, lengths = [len(shard) for shard in shards], np.concatenate([shard.lengths for shard in shards])

    def order(epoch: int) -> list[int]:
        weights = [manifest["mix"]["weights"][name] for name in sizes]
        return epoch_documents(counts, weights, manifest["seed"], epoch).tolist()  # type: ignore[no-any-return]

    assert order(0) == order(0) != order(1)
    shown = np.bincount(np.searchsorted(np.cumsum(counts), order(0), "right"), lengths[order(0)])
    assert shown / shown.sum() == pytest.approx([group.achieved for group in found.groups], abs=0.01)
    assert shown.sum() == pytest.approx(found.tokens, rel=0.01)


def test_other_shares_make_training_stale_and_nothing_before_it(tmp_path: Path) -> None:
    from twllm.pipeline.stages import build_stages
    from twllm.recipe import load_recipe

    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'name = "r"\n[base]\nsize = "tiny"\n[corpus]\n[[corpus.sources]]\npath = "twllm:knowledge"\ngroup = "a"\n'
        "[corpus.mix]\nshares = { a = 1.0 }\n[sft]\nenabled = false\n[feedback]\nenabled = false\n",
        encoding="utf-8",
    )
    before = build_stages(load_recipe(recipe))
    after = build_stages(load_recipe(recipe, ["corpus.mix.max_epochs=2"]))
    stale = [name for name in before if before[name].fingerprint != after[name].fingerprint]
    assert stale[0] == "pretrain" and "corpus" not in stale and "tokens-pretrain" not in stale
