"""Pictures are opened with limits, and every kind of broken one has a clear error."""

import base64
import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from twllm.tokens.pictures import MAX_SIDE, BadPicture, PictureLimits, decode_data_url, open_picture, read_picture

RED = (200, 20, 20)


def encoded(picture: Image.Image, kind: str = "PNG", **more: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **more)
    return stream.getvalue()


PNG = encoded(Image.new("RGB", (12, 8), RED))
NOISE = encoded(Image.effect_noise((200, 200), 80))


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more than anybody wants; there are hardly any bytes behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_kinds_that_are_opened(kind: str) -> None:
    picture = open_picture(encoded(Image.new("RGB", (12, 8), RED), kind), "x")
    assert picture.mode == "RGB" and picture.size == (12, 8)
    assert all(abs(a - b) < 12 for a, b in zip(picture.getpixel((5, 5)), RED, strict=True))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not a picture"), (b"GIF89a nonsense", "picture"), (PNG[:40], "picture"), (NOISE[: len(NOISE) // 2], "broken picture"),
        (bomb(60_000, 60_000), "too many pixels"), (bomb(1, 30_000), "too many pixels"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"), (encoded(Image.new("L", (4, 4)), "TIFF"), "not a picture"),
        (bytes(2000), "not a picture"),
    ],
)  # fmt: skip
def test_what_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(BadPicture, match=what) as caught:
        open_picture(data, "somewhere")
    assert "somewhere" in str(caught.value.where) and caught.value.fix


def test_too_many_bytes_is_said_before_anything_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(PNG)
    with pytest.raises(BadPicture, match="too many bytes"):
        read_picture("a.png", tmp_path, PictureLimits(max_bytes=10))
    with pytest.raises(BadPicture, match="too many bytes"):
        decode_data_url("data:image/png;base64," + "A" * 100, PictureLimits(max_bytes=10))


def test_references(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    for reference in ("a.png", url, {"bytes": PNG, "path": "b.png"}, {"path": "a.png"}, str(tmp_path / "a.png")):
        assert read_picture(reference, tmp_path).size == (12, 8)
    for reference, what in (
        ("missing.png", "cannot read"), ("data:image/png;base64,@@@@", "broken base64"), ("data:text/html,x", "not a base64"),
        ("https://example.org/a.png", "not fetched"), (7, "not a path"), ({"url": 1}, "not a path"),
    ):  # fmt: skip
        with pytest.raises(BadPicture, match=what):
            read_picture(reference, tmp_path)


def test_upright_opaque_small() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert open_picture(encoded(Image.new("RGB", (12, 8), RED), "JPEG", exif=exif), "x").size == (8, 12)
    clear = open_picture(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0))), "x")
    assert clear.getpixel((1, 1)) == (255, 255, 255)
    assert max(open_picture(encoded(Image.new("L", (5000, 10))), "x").size) == MAX_SIDE
    grey = open_picture(encoded(Image.new("I;16", (4, 4), 32_768)), "x")
    assert abs(grey.getpixel((1, 1))[0] - 128) <= 1
    palette = Image.new("P", (4, 4))
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert open_picture(encoded(palette, "PNG", transparency=0), "x").getpixel((1, 1)) == (255, 255, 255)
    assert open_picture(encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "JPEG"), "x").getpixel((1, 1)) == (
        255,
        255,
        255,
    )
