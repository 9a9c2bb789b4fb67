"""Images of every kind of pixel against arrays; TIFFs are built tag by tag."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from lightning_merge.core.errors import InputError
from lightning_merge.data.decode import decode
from lightning_merge.data.examples import array_examples

RAMP = np.linspace(0, 1, 12 * 10).reshape(12, 10)
RAMP16 = np.round(RAMP * 65535).astype(np.uint16)
EIGHT = np.floor(RAMP16 * (255 / 65535) + 0.5)  # 255 v / 65535, halves up


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png16(values):
    return encoded(Image.fromarray(values.astype(np.uint16)), "PNG")


def pgm(values, top):
    kind = ">u2" if top > 255 else "u1"
    return b"P5\n10 12\n%d\n" % top + values.astype(kind).tobytes()


def tiff(values, order="<", bits=None, samples=1, **tags):
    """A TIFF of one strip; tags by name replace the defaults."""
    bits = bits or 8 * values.dtype.itemsize
    known = {"kind": 339, "photometric": 262, "planes": 284}
    entries = {256: 10, 257: 12, 258: [bits] * samples, 259: 1, 262: 1 if samples == 1 else 2,
               273: 0, 277: samples, 278: 12, 279: 0}  # fmt: skip
    entries |= {known[name]: value for name, value in tags.items()}
    pixels = (
        values if isinstance(values, bytes) else values.astype(f"{order}{values.dtype.str[1:]}")
    )
    strip = pixels if isinstance(pixels, bytes) else pixels.tobytes()
    end = 8 + 2 + 12 * len(entries) + 4
    lists = b"".join(struct.pack(f"{order}{samples}H", *entries[258]) for _ in range(samples > 2))
    entries[273], entries[279] = end + len(lists), len(strip)
    fields = b""
    for tag, value in sorted(entries.items()):
        if isinstance(value, list) and samples > 2:
            fields += struct.pack(f"{order}HHII", tag, 3, samples, end)
            continue
        short = value[0] if isinstance(value, list) else value
        fields += struct.pack(f"{order}HHIHH", tag, 3, 1, short, 0)
    magic = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return magic + struct.pack(f"{order}H", len(entries)) + fields + bytes(4) + lists + strip


def packed(values):
    """Values of 12 bits, two in three bytes."""
    digits = "".join(f"{value:012b}" for value in values.ravel().tolist())
    return bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))


def grey(data):
    pixels = np.asarray(decode(data, "scan"))
    assert pixels.shape[2] == 3
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].astype(float)


TWELVE = np.round(RAMP * 4095).astype(int)
WIDE = {
    "png": png16(RAMP16),
    "tiff": tiff(RAMP16),
    "tiff, big-endian": tiff(RAMP16, ">"),
    "tiff, white is zero": tiff(65535 - RAMP16, photometric=0),
    "tiff, compressed": encoded(Image.fromarray(RAMP16), "TIFF", compression="tiff_lzw"),
    "pgm": pgm(RAMP16, 65535),
}


@pytest.mark.parametrize("kind", WIDE)
def test_grey_of_16_bits_is_scaled_to_the_nearest_of_8(kind):
    assert np.array_equal(grey(WIDE[kind]), EIGHT)


@pytest.mark.parametrize("top", [1, 15, 100, 255, 300, 1023, 4095, 40000])
@pytest.mark.parametrize("dark", [1, 4, 20])
def test_pgm_is_scaled_by_the_maximum_that_it_names(top, dark):
    values = np.round(RAMP * top / dark).astype(int)
    assert np.abs(grey(pgm(values, top)) - 255 * values / top).max() <= 0.51  # Pillow rounds, too


def test_a_tiff_of_12_bits_is_scaled_by_them():
    # Ten values are 15 bytes, a whole row
    assert np.abs(grey(tiff(packed(TWELVE), bits=12)) - 255 * TWELVE / 4095).max() <= 0.5


def test_a_black_image_is_black_whatever_its_range():
    for data in (png16(0 * RAMP), tiff(0 * RAMP16)):
        assert not grey(data).any()


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("write", [png16, tiff])
def test_unused_upper_bits_leave_the_range_in_doubt(bits, write):
    values = np.round(RAMP * (2**bits - 1)).astype(np.uint16)
    with pytest.raises(InputError, match=rf"^scan has 16 bits .*above {2**bits - 1}.* to 8 bits"):
        decode(write(values), "scan")


UNRANGED = {
    "int32": tiff((RAMP * 4000 - 1000).astype(np.int32), kind=2),
    "uint32": tiff((RAMP * 65535).astype(np.uint32)),
    "int16": tiff((RAMP * 4000 - 1000).astype(np.int16), kind=2),
    "float": tiff(RAMP.astype(np.float32), kind=3),
    "Pillow's mode I": encoded(Image.fromarray((RAMP * 255).astype(np.int32)), "TIFF"),
    "Pillow's mode F": encoded(Image.fromarray((RAMP * 255).astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("kind", UNRANGED)
def test_values_without_a_stated_range_are_refused(kind):
    with pytest.raises(
        InputError, match=r"^scan has values without a stated range.*range that you"
    ):
        decode(UNRANGED[kind], "scan")


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_what_pillow_does_not_read_says_so(dtype):
    with pytest.raises(InputError, match=r"^scan is not a readable image \(a TIFF.*to 8 bits"):
        decode(tiff(RAMP.astype(dtype), kind=3), "scan")


def test_colours_of_16_bits_keep_their_upper_8():
    colours = np.stack([RAMP16, RAMP16[::-1], 65535 - RAMP16], -1)
    for order in "<>":
        read = np.asarray(decode(tiff(colours, order, samples=3), "scan"))
        assert np.array_equal(read, colours >> 8)
    with pytest.raises(InputError, match=r"scan has 16-bit colours in separate planes"):
        decode(tiff(colours.transpose(2, 0, 1).copy(), samples=3, planes=2), "scan")


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, bool])
def test_arrays_that_are_not_bytes_are_refused(dtype):
    with pytest.raises(InputError, match=r"images of .*convert them to uint8"):
        array_examples(["a"], [0], RAMP[None].astype(dtype))


def test_images_of_8_bits_are_pillows_own(picture):
    colour, clear = picture(1, 12, 10, 3), picture(2, 12, 10, 4)
    known = {
        "1": picture(3, 12, 10).convert("1"), "L": picture(4, 12, 10), "P": colour.quantize(7),
        "LA": clear.convert("LA"), "RGB": colour, "RGBA": clear,
    }  # fmt: skip
    kinds = {"JPEG": ("L", "RGB"), "BMP": ("1", "L", "P", "RGB"), "GIF": ("L", "P"),
             "WEBP": ("RGB", "RGBA"), "PPM": ("1", "L", "RGB")}  # fmt: skip
    for kind, modes in ({"PNG": known, "TIFF": known} | kinds).items():
        for mode in modes:
            data = encoded(known[mode], kind)
            expected = Image.open(io.BytesIO(data)).convert("RGB")
            assert np.array_equal(np.asarray(decode(data, "scan")), np.asarray(expected)), (
                kind,
                mode,
            )


def test_transparency_is_dropped_and_the_colour_below_kept(picture):
    clear = picture(1, 12, 10, 4)
    assert np.array_equal(np.asarray(decode(encoded(clear, "PNG"), "")), np.asarray(clear)[..., :3])


def test_cmyk_as_adobe_writes_it():
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[..., 0], ink[8:, :, 2] = 200, 250
    data = encoded(Image.frombytes("CMYK", (16, 16), ink.tobytes()), "JPEG", quality=100)
    assert b"Adobe" in data
    read = np.asarray(decode(data, "")).astype(int)
    assert np.abs(read - (255 - ink[..., :3].astype(int))).max() <= 2


# Orientation

TURNS = {  # EXIF's number -> what the stored picture is made of, for an upright one
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2), 8: lambda a: np.rot90(a, -1),
}  # fmt: skip


def exif(orientation, order="<"):
    magic = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    entry = struct.pack(f"{order}HHIHH", 274, 3, 1, orientation, 0)
    return b"Exif\0\0" + magic + struct.pack(f"{order}H", 1) + entry + bytes(4)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("number", TURNS)
@pytest.mark.parametrize("order", "<>")
def test_images_are_set_upright(picture, kind, number, order):
    upright = np.asarray(picture(number, 12, 20, 3))
    stored = Image.fromarray(np.ascontiguousarray(TURNS[number](upright)))
    if kind == "TIFF":
        data = encoded(stored, kind, tiffinfo={274: number})
    else:
        data = encoded(stored, kind, exif=exif(number, order), lossless=True)
    assert np.array_equal(np.asarray(decode(data, "")), upright)


@pytest.mark.parametrize("number", TURNS)
def test_jpegs_and_grey_of_16_bits_are_set_upright(number):
    step = np.kron([[0, 0, 1], [1, 0, 1]], np.full((16, 16), 40000)).astype(np.uint16)
    stored = np.ascontiguousarray(TURNS[number](step))
    wide = encoded(Image.fromarray(stored), "PNG", exif=exif(number))
    assert np.array_equal(grey(wide), np.floor(step * (255 / 65535) + 0.5))
    small = Image.fromarray((stored >> 8).astype(np.uint8)).convert("RGB")
    jpeg = np.asarray(decode(encoded(small, "JPEG", exif=exif(number), quality=100), ""))
    assert np.abs(jpeg[..., 0].astype(int) - (step >> 8)).max() <= 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's word to the user
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "broken",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\x08\0\0\0",
        exif(6)[:-8],
        exif(9),
        exif(0),
        b"Exif\0\0" + bytes(40),
        b"no",
    ],
)
def test_broken_orientation_turns_nothing(picture, kind, broken):
    data = encoded(picture(1, 12, 20, 3), kind, exif=broken)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(np.asarray(decode(data, "")), expected)
