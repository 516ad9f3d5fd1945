"""Shapes of picture encoders: the one that a recipe makes from scratch, and those on the hub that recipes name. No torch."""

from typing import Any

SIZES: dict[str, dict[str, Any]] = {  # from scratch, for recipes that draw their pictures; ours (dev/LOG.md)
    "tiny": {"image_size": 96, "patch_size": 12, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4, "initializer_range": 0.05},
}  # fmt: skip
HUB_ENCODERS: dict[str, dict[str, int]] = {  # from their config.json on the hub, so that a plan needs no download
    "openai/clip-vit-large-patch14-336": {"image_size": 336, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24},
    "openai/clip-vit-base-patch32": {"image_size": 224, "patch_size": 32, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
    "google/siglip-so400m-patch14-384": {"image_size": 384, "patch_size": 14, "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
}  # fmt: skip


def count_encoder(shape: dict[str, Any]) -> int:
    """Parameters of a CLIP vision model of this shape (SigLIP's differ by its pooling head, about 4 %).

    >>> count_encoder(HUB_ENCODERS["openai/clip-vit-base-patch32"])
    87456000
    """
    D, F = shape["hidden_size"], shape["intermediate_size"]
    patches = patch_count(shape)
    ends = 3 * shape["patch_size"] ** 2 * D + D + (patches + 1) * D + 4 * D
    return int(ends + shape["num_hidden_layers"] * (4 * D * D + 2 * D * F + 9 * D + F))


def patch_count(shape: dict[str, Any]) -> int:
    """Features of a picture.

    >>> patch_count(SIZES["tiny"])
    64
    """
    return int((shape["image_size"] // shape["patch_size"]) ** 2)
