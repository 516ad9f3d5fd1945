"""Dense → mixture of experts: the same logits before training, a loss that spreads tokens, and every consumer reads it."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.conftest import SENTENCES
from twllm.errors import UserError
from twllm.model.build import load, save
from twllm.model.moe import balance_loss, expert_use, write_use
from twllm.model.moe_config import MoeShape
from twllm.model.upcycle import count_active, upcycle
from twllm.tokens.shards import TokenShard, write_shard
from twllm.tokens.tokenizer import ChatTokenizer

SHAPES = {
    "copies": MoeShape(),
    "as many active": MoeShape(granularity=2),
    "two copies of two": MoeShape(experts=8, top_k=4, granularity=2),
    "top 1": MoeShape(experts=4, top_k=1),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def dense(*, tied: bool = True, kind: str = "llama") -> PreTrainedModel:
    torch.manual_seed(0)
    config = (LlamaConfig if kind == "llama" else Qwen2Config)(
        vocab_size=600, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, tie_word_embeddings=tied, initializer_range=0.2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return (LlamaForCausalLM if kind == "llama" else Qwen2ForCausalLM)(config).eval()


IDS = torch.arange(2, 62).reshape(2, 30) * 7 % 600


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model.eval()(IDS).logits


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_the_dense_models(name: str, tied: bool, tmp_path: Path) -> None:
    before = logits(model := dense(tied=tied))
    mixture = upcycle(model, SHAPES[name])
    assert float((logits(mixture) - before).abs().max()) < 1e-5
    assert [p.shape[0] for n, p in mixture.named_parameters() if "down_proj" in n] == [SHAPES[name].experts] * 2
    mixture.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(read).__name__ == "MixtralForCausalLM" and torch.equal(logits(read), logits(mixture))


def test_names_on_disk_are_mixtrals(tmp_path: Path) -> None:
    """vLLM and llama.cpp look for these."""
    from safetensors import safe_open

    upcycle(dense(), MoeShape(experts=4)).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert names["model.layers.1.block_sparse_moe.experts.3.w1.weight"] == (64, 32)
    assert names["model.layers.0.block_sparse_moe.experts.0.w2.weight"] == (32, 64)
    assert names["model.layers.0.block_sparse_moe.gate.weight"] == (4, 32)


def test_active_parameters() -> None:
    """Of the experts in top_k = granularity, as many as the dense model has; the routers come on top."""
    model = dense()
    total, active = count_active(upcycle(model, MoeShape(experts=8, top_k=2, granularity=2)))
    parameters, routers = count_active(model)[0], 2 * 8 * 32
    assert active == parameters + routers
    assert total == parameters + routers + 2 * 3 * 3 * 32 * 64  # three more copies in two layers


def test_noise_and_reinit_change_a_share() -> None:
    model, before = dense(), logits(dense())
    for shape in (MoeShape(reinit=0.5), MoeShape(noise=0.1)):
        assert float((logits(upcycle(model, shape)) - before).abs().max()) > 1e-2
    gate = model.model.layers[0].mlp.gate_proj.weight
    found = upcycle(model, MoeShape(reinit=0.5)).model.layers[0].mlp.experts.gate_up_proj[:, :64]
    kept = (found == gate).all(-1).float().mean(1)  # of each expert's inner units
    assert float(kept.min()) > 0.25 and float(kept.max()) < 0.75 and len(set(kept.tolist())) > 1
    again = upcycle(model, MoeShape(reinit=0.5)).model.layers[0].mlp.experts.gate_up_proj
    assert torch.equal(found, again[:, :64])


def test_balance_loss() -> None:
    """Even use is 1, all on k experts is X / k; for one layer transformers' loss, which counts each of the k choices, is k times ours."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    valid = torch.ones(64, dtype=torch.bool)
    one = torch.full((64, 8), -20.0)
    one[:, :2] = 20
    assert float(balance_loss([one], 2, valid)) == pytest.approx(4)
    even = torch.eye(8).repeat(8, 1) * 20
    assert float(balance_loss([even], 1, valid)) == pytest.approx(1, abs=1e-3)
    torch.manual_seed(0)
    some = torch.randn(64, 8)
    theirs = load_balancing_loss_func((some,), 8, 2)
    assert float(balance_loss([some], 2, valid)) == pytest.approx(float(theirs) / 2, rel=1e-5)
    half = torch.arange(64) < 32
    assert float(balance_loss([some], 2, half)) == pytest.approx(float(balance_loss([some[:32]], 2, half[:32])))
    lean, other = one, one.roll(2, dims=1)  # layers that lean to different sides do not make up for each other
    assert float(balance_loss([lean, other], 2, valid)) == pytest.approx(4)


def train(folder: Path, work: Path, balance: float) -> tuple[PreTrainedModel, list[dict[str, float]], float]:
    from twllm.train.config import MachineConfig, SftConfig
    from twllm.train.data import PackedData
    from twllm.train.loop import Trainer
    from twllm.train.rows import read_rows

    write_shard(
        work / "shard",
        [(f"d{i}", [2 + (i * 31 + j * (3 + i % 7)) % 300 for j in range(30)], None) for i in range(40)],
        600,
    )
    data = PackedData([TokenShard(work / "shard")], [1.0], 64, 5)
    config = SftConfig(lr=1e-2, epochs=6, batch_tokens=128, context=64, seed=5)
    machine = MachineConfig(threads=1, precision="fp32", compile="off", tensorboard=False, micro_batch_tokens=64)
    torch.manual_seed(0)
    model = load(folder)
    model.config.router_aux_loss_coef = balance
    trainer = Trainer("sft", model, data, config, machine, work, held_out=data)
    facts = trainer.run()
    return trainer.model, read_rows(work / "metrics.jsonl"), facts["held_out_loss"]


def test_training_lowers_the_loss_and_spreads_tokens(tmp_path: Path, tiny_tokenizer: ChatTokenizer) -> None:
    model = upcycle(dense(), MoeShape(experts=4, top_k=2))
    with torch.no_grad():
        for layer in model.model.layers:  # a lazy router, which only the balance loss mends
            layer.mlp.gate.weight[2:] = 0
    save(model, tiny_tokenizer, tmp_path / "moe")
    ends = {}
    for balance in (0.0, 0.5):
        work = tmp_path / str(balance)
        work.mkdir()
        _, rows, held_out = train(tmp_path / "moe", work, balance)
        losses = [row["loss"] for row in rows if "loss" in row]
        assert losses[-1] < 0.7 * losses[0]
        assert ("balance" in rows[-1]) == (balance > 0)
        if balance:
            found = [row["balance"] for row in rows if "balance" in row]
            assert found[-1] < 1.1 and found[-1] < found[0]
            assert held_out == pytest.approx(
                losses[-1] - balance * found[-1], abs=0.5
            )  # the held-out loss is cross entropy alone
        ends[balance] = held_out
    assert ends[0.0] < 4 and ends[0.5] < 4


def test_expert_use(tmp_path: Path, tiny_tokenizer: ChatTokenizer) -> None:
    torch.manual_seed(0)
    model = upcycle(dense(), MoeShape(experts=4, top_k=2))
    use = expert_use(model, tiny_tokenizer, {"一": SENTENCES, "en": ["hello world"] * 3})
    domain = use["domains"]["一"]
    assert domain["tokens"] == sum(len(tiny_tokenizer.encode(text, bos=True)) for text in SENTENCES)
    assert all(sum(row) == pytest.approx(1, abs=1e-3) and max(row) <= 0.5 for row in domain["shares"])
    assert all(2 <= count <= 4 for count in domain["effective_experts"])
    write_use(use, tmp_path)
    assert (tmp_path / "experts.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "experts.json").exists()
    with pytest.raises(UserError, match="no text"):
        expert_use(model, tiny_tokenizer, {"空": [""]})
    with pytest.raises(UserError, match="not a mixture"):
        expert_use(dense(), tiny_tokenizer, {"一": SENTENCES})


@pytest.mark.filterwarnings("ignore:.*")  # the picture's font
def test_commands(tmp_path: Path, tiny_tokenizer: ChatTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    from twllm.model.commands import experts_report, upcycle_model

    save(dense(), tiny_tokenizer, tmp_path / "dense")
    upcycle_model(str(tmp_path / "dense"), tmp_path / "moe", experts=4, top_k=2, granularity=2)
    assert torch.equal(logits(load(tmp_path / "moe")), logits(upcycle(dense(), MoeShape(experts=4, granularity=2))))
    (tmp_path / "a.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    experts_report(str(tmp_path / "moe"), [f"一={tmp_path / 'a.txt'}"], tmp_path / "use")
    assert (tmp_path / "use" / "experts.png").exists()
    assert "一" in capsys.readouterr().out
    with pytest.raises(UserError, match="no multiple"):
        upcycle_model(str(tmp_path / "dense"), tmp_path / "bad", experts=3, top_k=2, granularity=2)
    assert not (tmp_path / "bad").exists()


def test_the_torch_engine_serves_it() -> None:
    from twllm.serve.engines.batching.runner import Work
    from twllm.serve.engines.torch.runner import TorchRunner, open_runner

    model = upcycle(dense(), MoeShape(granularity=2)).eval()
    runner = open_runner(model, slots=4)
    assert isinstance(runner, TorchRunner)  # continuous batches, not one answer at a time
    found = runner.step([Work(0, IDS[0].tolist(), True), Work(1, IDS[1].tolist(), True)])
    assert torch.allclose(torch.stack([torch.from_numpy(row) for row in found]), logits(model)[:, -1], atol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="cannot upcycle"):
        upcycle(dense(kind="qwen"), MoeShape())
    with pytest.raises(UserError, match="not divisible"):
        upcycle(dense(), MoeShape(experts=6, top_k=3, granularity=3))
    for bad in ({"experts": 8, "top_k": 3, "granularity": 2}, {"experts": 2, "top_k": 3}):
        with pytest.raises(ValidationError):
            MoeShape(**bad)
