"""Parts of a model by name: which parameters `freeze` and `lr_factors` mean.

A pattern is a run of the words between dots in a parameter's name; a word may be a range of numbers. `embed_tokens`, `norm`, `layers.0-7`,
`layers.0-7.mlp`, `q_proj` are patterns of every Llama-shaped model. Tied tables are one parameter: freezing `embed_tokens` freezes the head.
"""

import re
from collections.abc import Iterable, Mapping

from torch import nn

from twllm.errors import UserError, did_you_mean

RANGE = re.compile(r"(\d+)-(\d+)")


def matches(pattern: str, name: str) -> bool:
    """Whether a parameter belongs to the part.

    >>> matches("layers.0-7.mlp", "model.layers.3.mlp.up_proj.weight"), matches("norm", "model.layers.3.input_layernorm.weight")
    (True, False)
    """
    wanted, words = pattern.split("."), name.split(".")
    return any(
        all(_same(word, found) for word, found in zip(wanted, words[at : at + len(wanted)], strict=True))
        for at in range(len(words) - len(wanted) + 1)
    )


def _same(word: str, found: str) -> bool:
    if (match := RANGE.fullmatch(word)) and found.isdigit():
        return int(match[1]) <= int(found) <= int(match[2])
    return word == found


def check_patterns(patterns: Iterable[str], names: Iterable[str], where: str) -> None:
    """Every pattern names something.

    Raises:
        UserError: one does not; the nearest word of the model is suggested.
    """
    names = list(names)
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            words = sorted({word for name in names for word in name.split(".") if not word.isdigit()})
            fix = did_you_mean(pattern.split(".")[-1], words)
            raise UserError("模型沒有這個部分 (no such part of the model)", f"{where}: {pattern}", fix)


def freeze(model: nn.Module, patterns: Iterable[str]) -> int:
    """Take the parts out of training; gives the number of parameters that stay as they are.

    Raises:
        UserError: no such part, or nothing would be left to train.
    """
    patterns = list(patterns)
    check_patterns(patterns, (name for name, _ in model.named_parameters()), "freeze")
    frozen = 0
    for name, parameter in model.named_parameters():
        if any(matches(pattern, name) for pattern in patterns):
            parameter.requires_grad_(False)
            frozen += parameter.numel()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("全部都凍結了，沒有可訓練的參數 (everything is frozen)", "freeze", "從 freeze 拿掉一些部分")
    return frozen


def factor_of(name: str, factors: Mapping[str, float]) -> float:
    """The learning-rate factor of a parameter: that of the longest pattern that names it, else 1."""
    found = [pattern for pattern in factors if matches(pattern, name)]
    return factors[max(found, key=len)] if found else 1.0
