"""Small real parts that many tests share: a trained byte-level tokenizer and a random two-layer Llama."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from twllm.tokens.tokenizer import ChatTokenizer

SENTENCES = [
    "台灣的首都是臺北。玉山是台灣最高的山，標高三千九百五十二公尺。",
    "請問捷運站怎麼走？往前直走，看到便利商店右轉就到了！",
    "注音符號ㄅㄆㄇㄈ是台灣小學生最先學的。「拍謝」是台語的不好意思。",
    "USER: hello world ASSISTANT: 你好，我是人工智慧助理。2024 年 NTU AI",
]


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """Training on a CPU turns them off for its process (train/machine.py); hypothesis, for one, refuses to work so."""

    def allow() -> None:
        if torch := sys.modules.get("torch"):
            torch.set_flush_denormal(False)

    allow()
    yield
    allow()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> ChatTokenizer:
    """Byte-level BPE of 600 pieces with the taiwan-llm-v2 template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 4, trainer)
    return ChatTokenizer(backend).with_template("taiwan-llm-v2")


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_tokenizer: ChatTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: random Llama (2 layers, 32 wide, fp32) and its tokenizer. Read only: copy before changing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tiny_tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tiny_tokenizer.bos_id,
        eos_token_id=tiny_tokenizer.eos_id,
        pad_token_id=tiny_tokenizer.pad_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data at $TWLLM_SHARED_DATA (default ../shared/data beside the repository); the test is skipped without it."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TWLLM_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set TWLLM_SHARED_DATA)")
    return folder
