"""A Llama-shaped checkpoint as one GGUF file, for llama.cpp and what is built on it; written tensor by tensor, so memory stays small.

Needs only `gguf` and numpy: llama.cpp's converter is not in any wheel, and it refuses every byte-level vocabulary that was trained or
extended here, because it knows vocabularies by a hash. Query and key rows of the llama architecture are reordered (llama.cpp turns
neighbouring coordinates, transformers halves). Norms and biases stay fp32.
BOS is added by llama.cpp where, and only where, the trained template begins with it; `twllm.template_fingerprint` says which template that
is, for `twllm doctor`. K-quants: kquants.py. Not covered: models that llama_shape.py refuses, splitting into several files, and
byte-level vocabularies whose way of cutting words llama.cpp has no name for.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quant_shape_to_byte_shape, quantize
from numpy.typing import NDArray

from twllm.artifact import explain_os_errors, sync
from twllm.errors import UserError
from twllm.model.llama_shape import LLAMACPP_ROPE, LlamaShape, read_shape
from twllm.model.weights import Weights, to_bf16
from twllm.tokens.contract import require_trained_template, trained_fingerprint
from twllm.tokens.tokenizer import ChatTokenizer

Kind = Literal["f32", "f16", "bf16", "q8_0"]
KINDS = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
NAMES = {  # of a layer: ours → GGUF's
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# How words are cut before byte-level BPE: the expression in tokenizer.json → llama.cpp's name. The first is GPT-2's.
CUTS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt-2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
}
# Our own trainer's (tokens/train.py). llama.cpp has no such expression, but no piece of ours is made of two of its parts, so cutting only at
# digits gives the same ids, if pieces of white space are joined first (they never compete with others where we cut). What stays different: a
# single space left over between longer white space and a word. dev/LOG.md has the counts.
OWN = r"[\r\n]+|\p{Han}+|\p{N}| ?[\p{L}\p{M}&&[^\p{Han}]]+| ?[^\s\p{L}\p{M}\p{N}]+|\s+"
DIGITS = "superbpe"  # llama.cpp's name for cutting at digits only


class Tensor(NamedTuple):
    """One tensor of the file: its name there and where its numbers come from."""

    name: str
    source: str
    heads: int  # of which the rows are reordered, 0: not
    kind: GGMLQuantizationType


def write_gguf(
    folder: str | Path,
    out: str | Path,
    kind: Kind = "f16",
    *,
    vocabulary: bool = True,
    facts: Mapping[str, str] | None = None,
    allow_template_mismatch: bool = False,
) -> Path:
    """Write `out`, whole or not at all. Without `vocabulary` the file takes and gives ids only. `facts`: name, license.

    Raises:
        TemplateMismatch: the folder's chat template is not the trained one; `allow_template_mismatch` warns instead.
        UserError: not Llama-shaped, rows that q8_0 cannot cut in blocks, a vocabulary without a GGUF form, or no space.
    """
    folder, out = Path(folder), Path(out)
    shape, weights = read_shape(folder, LLAMACPP_ROPE), Weights(folder)
    told = {f"general.{key}": value for key, value in (facts or {}).items() if value}
    tokenizer = ChatTokenizer.load(folder) if vocabulary else None
    if tokenizer is not None:
        require_trained_template(folder, tokenizer, allow_mismatch=allow_template_mismatch)
        if tokenizer.template:
            told["twllm.template_fingerprint"] = trained_fingerprint(folder) or tokenizer.template_fingerprint
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    with explain_os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(partial, shape, weights, kind, tokenizer, told)
            sync(partial)
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)
    return out


def _write(
    file: Path,
    shape: LlamaShape,
    weights: Weights,
    kind: Kind,
    tokenizer: ChatTokenizer | None,
    told: Mapping[str, str],
) -> None:
    writer = GGUFWriter(file, ARCHITECTURES[shape.kind])
    _describe(writer, shape, kind)
    for name, value in told.items():
        writer.add_string(name, value)
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        _vocabulary(writer, tokenizer, shape.V)
    tensors = list(_tensors(shape, weights, KINDS[kind][0]))
    stretch = _stretch(shape)
    if stretch is not None:
        writer.add_tensor_info("rope_freqs.weight", stretch.shape, stretch.dtype, stretch.nbytes)
    for tensor in tensors:
        size, dtype = weights[tensor.source].array.shape, np.dtype(np.float32)
        writer.add_tensor_info(tensor.name, size, dtype, _bytes(tensor, size), raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if stretch is not None:
        writer.write_tensor_data(stretch)
    for tensor in tensors:
        writer.write_tensor_data(_numbers(tensor, weights))
        weights.release()
    writer.close()


def _describe(writer: GGUFWriter, shape: LlamaShape, kind: Kind) -> None:
    writer.add_file_type(KINDS[kind][1])
    writer.add_quantization_version(2)
    writer.add_vocab_size(shape.V)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.D)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.F)
    writer.add_head_count(shape.H)
    writer.add_head_count_kv(shape.K)
    writer.add_key_length(shape.E)
    writer.add_value_length(shape.E)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.E)
    writer.add_rope_freq_base(shape.rope["rope_theta"])
    if shape.rope["rope_type"] == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(shape.rope["factor"]))
    if shape.rope["rope_type"] == "yarn":
        _describe_yarn(writer, shape)


def _describe_yarn(writer: GGUFWriter, shape: LlamaShape) -> None:
    """llama.cpp sharpens attention by 1 + 0.1 ln(factor) itself, as transformers does where nothing else is asked for."""
    from gguf import RopeScalingType

    rope = shape.rope
    odd = [key for key in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(key)]
    if odd or rope.get("truncate", True) is not True:
        raise _no_form(f"YaRN {odd[0] if odd else 'truncate = false'}")
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
    writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32))
    writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1))


def _stretch(shape: LlamaShape) -> NDArray[np.float32] | None:
    """llama3's frequencies as divisors of the plain ones, which is how llama.cpp takes them."""
    if shape.rope["rope_type"] != "llama3":
        return None
    steps = np.arange(0, shape.E, 2, dtype=np.float32) / np.float32(shape.E)
    plain = np.float32(1) / np.float32(shape.rope["rope_theta"]) ** steps
    return np.asarray(plain / shape.frequencies(), np.float32)


def _tensors(shape: LlamaShape, weights: Weights, kind: GGMLQuantizationType) -> Iterator[Tensor]:
    """Everything the checkpoint has, under GGUF's names."""
    reordered = ARCHITECTURES[shape.kind] == "llama"

    def tensor(name: str, source: str, heads: int = 0) -> Tensor:
        flat = weights[source].array.ndim == 1
        return Tensor(name, source, heads, GGMLQuantizationType.F32 if flat else kind)

    yield tensor("token_embd.weight", "model.embed_tokens.weight")
    for layer in range(shape.layers):
        for ours, theirs in NAMES.items():
            for part in ("weight", "bias"):
                source = f"model.layers.{layer}.{ours}.{part}"
                heads = {"attn_q": shape.H, "attn_k": shape.K}.get(theirs, 0) if reordered else 0
                if source in weights:
                    yield tensor(f"blk.{layer}.{theirs}.{part}", source, heads)
    yield tensor("output_norm.weight", "model.norm.weight")
    if "lm_head.weight" in weights:
        yield tensor("output.weight", "lm_head.weight")


def _bytes(tensor: Tensor, size: tuple[int, ...]) -> int:
    """How many bytes the tensor will take."""
    if tensor.kind == GGMLQuantizationType.F32:
        return 4 * int(np.prod(size))
    try:
        return int(np.prod(quant_shape_to_byte_shape(size, tensor.kind)))
    except ValueError as error:
        raise UserError(
            f"這一層的寬度 {size[-1]} 不能用這種量化 (row size does not fit {tensor.kind.name})",
            tensor.source,
            "用 f16 或 bf16",
        ) from error


def _numbers(tensor: Tensor, weights: Weights) -> NDArray[Any]:
    array, stored = weights[tensor.source]
    same = (tensor.kind, stored) in ((GGMLQuantizationType.BF16, "BF16"), (GGMLQuantizationType.F16, "F16"))
    array = array if same else weights.f32(tensor.source)
    if tensor.heads:  # halves → neighbours
        rows = array.reshape(tensor.heads, 2, array.shape[0] // tensor.heads // 2, -1)
        array = rows.swapaxes(1, 2).reshape(array.shape)
    if same:
        return np.ascontiguousarray(array)
    if tensor.kind == GGMLQuantizationType.BF16:
        return to_bf16(array)
    return np.ascontiguousarray(quantize(array, tensor.kind))


# -- vocabulary ---------------------------------------------------------------------------------------------------


def _vocabulary(writer: GGUFWriter, tokenizer: ChatTokenizer, size: int) -> None:
    """Tokens, their kinds and order, the control tokens and the chat template."""
    file = json.loads(tokenizer.backend.to_str())
    model = file["model"]
    if model["type"] != "BPE":
        raise _no_form(f"{model['type']} vocabulary")
    pieces = bool(model.get("byte_fallback"))
    tokens, kinds = _tokens(tokenizer, model, size, pieces)
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if pieces:
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix(_begins_with_space(file))
    else:
        cut = _cut(file)
        writer.add_token_merges(white_first(merges) if cut == DIGITS else merges)
        writer.add_tokenizer_pre(cut)
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
        writer.add_add_bos_token(
            begins_with_bos(tokenizer)
        )  # llama.cpp takes a template's own away, so that there is one
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    if tokenizer.template:
        writer.add_chat_template(tokenizer.template)


def begins_with_bos(tokenizer: ChatTokenizer) -> bool:
    """Whether what the model was trained on begins with the begin token: its chats, or where there is no template, its texts."""
    if not tokenizer.template or tokenizer.bos_id is None:
        return tokenizer.bos_id is not None
    return tokenizer.encode_chat([{"role": "user", "content": "問"}], add_generation_prompt=True).ids[:1] == [
        tokenizer.bos_id
    ]


def _tokens(
    tokenizer: ChatTokenizer, model: dict[str, Any], size: int, pieces: bool
) -> tuple[list[str], list[TokenType]]:
    """Token texts by id, and what each is; ids without a token are filled up to the embedding's size."""
    tokens = [f"[PAD{id}]" for id in range(size)]
    kinds = [TokenType.UNUSED] * size
    for text, id in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if id < size:
            tokens[id], kinds[id] = text, TokenType.BYTE if pieces and BYTE.fullmatch(text) else TokenType.NORMAL
    for id, token in tokenizer.backend.get_added_tokens_decoder().items():
        if id < size:
            kinds[id] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    unknown = model["vocab"].get(model.get("unk_token") or "")
    if pieces and unknown is not None:
        kinds[unknown] = TokenType.UNKNOWN
    return tokens, kinds


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """llama.cpp joins the pair whose token has the highest score: the earlier a merge, the higher."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges, 1):
        rank.setdefault(pair.replace(" ", "", 1), number)
    return [-float(rank.get(token, 0)) for token in tokens]


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """A pre-tokenizer or normalizer and all it is made of."""
    if isinstance(value, dict):
        yield value
        for part in (*value.get("pretokenizers", ()), *value.get("normalizers", ())):
            yield from _parts(part)


def _begins_with_space(file: dict[str, Any]) -> bool:
    """Whether text gets a space in front, as Llama-2's tokenizer does."""
    if any(part["type"] == "Prepend" for part in _parts(file.get("normalizer"))):
        return True
    return any(
        part.get("prepend_scheme", "never") != "never"
        for part in _parts(file.get("pre_tokenizer"))
        if part["type"] == "Metaspace"
    )


def _cut(file: dict[str, Any]) -> str:
    """llama.cpp's name for how words are cut."""
    found = []
    for part in _parts(file.get("pre_tokenizer")):
        if part["type"] == "Split":
            found.append(part["pattern"].get("Regex") or part["pattern"].get("String"))
        elif part["type"] == "ByteLevel" and part.get("use_regex", True):
            found.append(next(iter(CUTS)))
        elif part["type"] not in {"ByteLevel", "Sequence"}:
            found.append(part["type"])
    if found == [OWN]:
        return DIGITS
    if len(found) != 1 or found[0] not in CUTS:
        raise _no_form(f"pre_tokenizer {'、'.join(map(str, found)) or '-'}")
    return CUTS[found[0]]


def white_first(merges: list[str]) -> list[str]:
    """The merges with those of ASCII white space in front, both parts in their order."""
    white = set(
        "ĠĊĉčċČ "
    )  # space, newline, tab, carriage return, vertical tab, form feed as byte-level BPE writes them
    return sorted(merges, key=lambda pair: not set(pair) <= white)


def _no_form(what: str) -> UserError:
    return UserError(
        f"llama.cpp 沒有這種分詞方式 (no GGUF form): {what}",
        "tokenizer.json",
        "改用 Hugging Face 格式，或 --engine torch",
    )
