"""Pictures from files, data URLs and bytes: opened with limits, RGB, upright, never larger than an encoder has use for.

Only PNG, JPEG, WebP, GIF and BMP are decoded (a GIF's first frame). Size in pixels is read from the header before anything is unpacked, so
that a decompression bomb costs nothing; a very long strip is refused, because padded to a square it would be one.
Transparent places become white. Not covered: HEIC, SVG, PDF, animation.
"""

import base64
import binascii
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twllm.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_SIDE = 2048  # a longer side is made this long: more than any encoder reads; chosen


@dataclass(frozen=True)
class PictureLimits:
    """What is still opened; chosen."""

    max_bytes: int = 20_000_000
    max_pixels: int = 40_000_000
    max_side: int = 16_384


LIMITS = PictureLimits()


class BadPicture(UserError):
    """A picture that cannot be used."""


def read_picture(reference: Any, root: Path | None, limits: PictureLimits = LIMITS) -> "Image":
    """The picture of a data URL, of a file (relative to `root`), or of {"bytes": …, "path": …} as parquet files have it.

    Raises:
        BadPicture: no such file, not a picture, too large; http(s) addresses are not fetched.
    """
    if isinstance(reference, dict):
        data = reference.get("bytes")
        if data:
            return open_picture(data, str(reference.get("path") or "bytes"), limits)
        reference = reference.get("path")
    if not isinstance(reference, str) or not reference:
        raise BadPicture("圖片要是檔案路徑或 data: 網址 (not a path or a data URL)", repr(reference)[:80], "修正這一列")
    if reference.startswith("data:"):
        return open_picture(decode_data_url(reference, limits), "data:", limits)
    if reference.startswith(("http://", "https://")):
        raise BadPicture("不會下載圖片 (pictures are not fetched)", reference, "先下載到資料檔旁邊，改寫成相對路徑")
    path = Path(reference) if root is None else root / reference
    try:
        size = path.stat().st_size
        if size > limits.max_bytes:
            raise _too_large(size, limits, path)
        return open_picture(path.read_bytes(), str(path), limits)
    except OSError as error:
        raise BadPicture("讀不到圖片檔 (cannot read the picture)", path, "圖片路徑要相對於資料檔；檢查檔名") from error


def decode_data_url(url: str, limits: PictureLimits = LIMITS) -> bytes:
    """The bytes of `data:image/…;base64,…`.

    Raises:
        BadPicture: another kind of data URL, broken base64, or too large.
    """
    head, comma, body = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise BadPicture("data: 網址要是 base64 的圖片 (not a base64 picture)", head[:60], "data:image/png;base64,…")
    if len(body) * 3 // 4 > limits.max_bytes + 3:
        raise _too_large(len(body) * 3 // 4, limits, head)
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadPicture("base64 壞了 (broken base64)", head, "重新編碼這張圖片") from error


def open_picture(data: bytes, where: str, limits: PictureLimits = LIMITS) -> "Image":
    """Decode: RGB, upright (EXIF), longest side at most MAX_SIDE.

    Raises:
        BadPicture: too many bytes or pixels, a kind we do not decode, or damaged.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if len(data) > limits.max_bytes:
        raise _too_large(len(data), limits, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what it mends; its bomb warning is ours below
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = picture.size
            if width * height > limits.max_pixels or max(width, height) > limits.max_side:
                what = f"圖片太大 (too many pixels): {width} × {height}"
                raise BadPicture(what, where, f"最多 {limits.max_pixels:,} 像素、邊長 {limits.max_side:,}；先縮小")
            picture.draft("RGB", (MAX_SIDE, MAX_SIDE))  # a JPEG is read smaller, which is faster
            picture.load()
            turned = ImageOps.exif_transpose(picture)
            turned.thumbnail((MAX_SIDE, MAX_SIDE))
            return _rgb(turned)
    except UnidentifiedImageError as error:
        known = "、".join(FORMATS)
        raise BadPicture("不是認得的圖片 (not a picture we know)", where, f"用 {known} 格式") from error
    except Image.DecompressionBombError as error:
        raise BadPicture("圖片太大 (too many pixels)", where, "先縮小") from error
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, EOFError) as error:
        raise BadPicture(f"圖片壞了 (broken picture): {str(error)[:100]}", where, "重新存一次這張圖片") from error


def _rgb(picture: "Image") -> "Image":
    """RGB; transparent places white, 16-bit grey scaled down."""
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits a pixel, which `convert` would clip
        picture = picture.point(lambda value: value / 256).convert("L")
    if picture.has_transparency_data:
        ground = Image.new("RGBA", picture.size, "white")
        ground.alpha_composite(picture.convert("RGBA"))
        picture = ground
    return picture.convert("RGB")


def _too_large(size: int, limits: PictureLimits, where: object) -> BadPicture:
    return BadPicture(f"圖片檔太大 (too many bytes): {size:,}", where, f"最多 {limits.max_bytes:,} 位元組；先縮小")
