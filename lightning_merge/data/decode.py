"""Decoding of images to upright 8-bit RGB, with an error of one line if that is impossible."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from lightning_merge.core.errors import InputError

# Tags of TIFF, and of the EXIF that other formats carry
_BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _PLANES, _KIND = 258, 259, 262, 274, 284, 339
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CARRY_EXIF = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, where: str) -> Image.Image:
    """Decode an image to 8-bit RGB, turned as its EXIF orientation says.

    * 16-bit grey (PNG, TIFF, JPEG 2000) and PGM of any maximum: a value v of a range that ends at
      `top` becomes 255 v / top, rounded to the nearest integer, halves up. `top` is PGM's maximum,
      follows from the bits of a TIFF, and is 65535 otherwise.
    * 16-bit colours: the upper 8 bits, as in Pillow.
    * Transparency is dropped and the colour below it kept, as in torchvision and open_clip.
    * Bilevel images, palettes, CMYK (inverted in JPEGs, as Adobe writes them), YCbCr and LAB:
      Pillow's conversion, without a colour profile.
    * Several frames or pages: the first.

    Args:
        data: The encoded image.
        where: What to call it in messages.

    Raises:
        InputError: The bytes are not a whole image, or the range of its values is unknown: floats,
            signed or 32-bit integers, and 16 bits whose upper two are unused, because a dark image
            cannot be told from one of 14, 12 or 10 bits.

    Examples:
        >>> file = io.BytesIO()
        >>> Image.new("L", (2, 1), color=7).save(file, "PNG")
        >>> decode(file.getvalue(), "grey.png").getpixel((0, 0))
        (7, 7, 7)
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            turn, rgb = _turn(image), _eight_bits(image, where).convert("RGB")
            return rgb if turn is None else rgb.transpose(turn)
    except InputError:
        raise
    except Exception as error:  # Pillow's readers raise errors of many kinds
        reason = str(error)
        if isinstance(error, UnidentifiedImageError):
            kind = "a TIFF of a kind that Pillow does not read: convert it to 8 bits"
            reason = kind if data.startswith(_TIFF) else "unknown format"
        raise InputError(
            f"{where} is not a readable image ({reason}); replace or remove it"
        ) from None


def looks_whole(data: bytes) -> bool:
    """Whether the bytes begin and end like a JPEG, PNG or WebP file; nothing is decoded.

    A truncated file lacks its end marker, or is shorter than its header says.

    Examples:
        >>> looks_whole(bytes.fromhex("ffd8ffe0ffd9")), looks_whole(bytes.fromhex("ffd8ffe0"))
        (True, False)
    """
    if data.startswith(b"\xff\xd8\xff"):
        return data.endswith(b"\xff\xd9")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data.endswith(b"IEND\xaeB`\x82")
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return is_webp and int.from_bytes(data[4:8], "little") + 8 <= len(data)


def _eight_bits(image: Image.Image, where: str) -> Image.Image:
    """Scale an image of more than 8 bits, which Pillow would clip; return any other as it is."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})  # of a TIFF
    bits, kinds = max(tags.get(_BITS, (16,))), tags.get(_KIND, ())
    if bits == 16 and (tags.get(_PLANES), tags.get(_COMPRESSION, 1)) == (2, 1):
        raise _refused(where, "16-bit colours in separate planes, which Pillow takes for others")
    wide = image.mode[:1] in ("I", "F")
    ranged = ("PNG", "PPM") if image.mode == "I" else ("PNG", "PPM", "TIFF", "JPEG2000")
    if image.mode == "F" or (wide and image.format not in ranged) or set(kinds) - {1}:
        raise _refused(where, "values without a stated range: floats, signed or 32-bit integers")
    if not wide:
        return image
    top, values = 2**bits - 1, np.asarray(image).astype(np.uint32)
    if image.format != "PPM" and bits == 16 and 0 < values.max() <= top // 4:
        raise _refused(where, f"16 bits per pixel but no value above {values.max()}: it may be "
                       "dark or have another range")  # fmt: skip
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero, which Pillow minds in 8 bits only
        values = top - values
    return Image.fromarray(((values * 510 + top) // (2 * top)).astype(np.uint8))


def _refused(where: str, what: str) -> InputError:
    return InputError(
        f"{where} has {what}; convert it to 8 bits with the range that you mean, or remove it"
    )


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what sets an image upright by its EXIF data; broken data are ignored."""
    if image.format == "TIFF" or not image.info.keys() & _CARRY_EXIF:  # Pillow has turned a TIFF
        return None
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a user's camera and another library's reader
        return None
