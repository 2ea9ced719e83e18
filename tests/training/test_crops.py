"""Geometry and pixels of crops, and decoding."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_images import file_of
from PIL import Image

from regforge.training.augmentation import Crop, Cropping, Kind, decode, pixels_of
from regforge.training.batches import ExamplesError

SIDES = st.integers(1, 3000)


def cropping(kind: Kind = "random", **changes: Any) -> Cropping:
    values: dict[str, Any] = {"scale": 0.6, "count": 4, "resolution": 512, "multiple": 8, "seed": 0}
    return Cropping(kind, **{**values, **changes})


@given(SIDES, SIDES, st.integers(0, 99), st.floats(0.05, 1), st.integers(0, 2**62))
def test_a_random_crop_is_a_square_within_the_image(
    height: int, width: int, variant: int, scale: float, seed: int
) -> None:
    made = cropping(scale=scale, seed=seed).crop((height, width), "class", "x", variant)
    left, top, right, bottom = made.box
    side = right - left
    assert bottom - top == side >= 1
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert scale * min(height, width) - 0.5 <= side <= min(height, width)
    assert made.target == made.geometry.target == (512, 512)
    assert made.original == made.geometry.original == (height, width)
    assert made.tight == (side < 0.75 * min(height, width))
    # The corner is where it would be had the whole image been resized, and the crop cut out then.
    resized_top, resized_left = made.geometry.top_left
    assert resized_top == pytest.approx(top * 512 / side, abs=0.5)
    assert resized_left == pytest.approx(left * 512 / side, abs=0.5)


def test_random_crops_are_even_and_follow_from_seed_and_name() -> None:
    whole = cropping(scale=1.0).crop((700, 700), "class", "x", 3)
    assert whole == Crop((700, 700), (0, 0, 700, 700), (512, 512))
    of = cropping(count=4000)
    made = [of.crop((1000, 2000), "class", "x", variant) for variant in range(4000)]
    sides = np.array([crop.box[2] - crop.box[0] for crop in made])
    assert sides.min() < 610
    assert sides.max() > 990
    assert sides.mean() == pytest.approx(800, abs=8)
    places = np.array([crop.box[0] / (2000 - side) for crop, side in zip(made, sides, strict=True)])
    assert places.mean() == pytest.approx(0.5, abs=0.02)
    assert np.mean([crop.tight for crop in made]) == pytest.approx(0.375, abs=0.03)
    assert made == [cropping(count=9).crop((1000, 2000), "class", "x", n) for n in range(4000)]
    others = (cropping(seed=1), "class", "x"), (of, "instance", "x"), (of, "class", "y")
    for other, stream, name in others:
        assert other.crop((1000, 2000), stream, name, 0) != made[0]


@given(SIDES, SIDES)
def test_the_middle(height: int, width: int) -> None:
    made = cropping("center").crop((height, width), "class", "x", 0)
    left, top, right, bottom = made.box
    assert right - left == bottom - top == min(height, width)
    assert abs(left - (width - right)) <= 1
    assert abs(top - (height - bottom)) <= 1
    assert not made.tight
    assert cropping("center").variants == cropping("none").variants == 1
    assert cropping().variants == 4


@given(st.integers(100, 3000), st.integers(100, 3000), st.sampled_from([8, 16, 64]))
def test_the_whole_image(height: int, width: int, multiple: int) -> None:
    made = cropping("none", multiple=multiple).crop((height, width), "class", "x", 0)
    left, top, right, bottom = made.box
    assert left == 0 or top == 0
    assert abs(left - (width - right)) <= 1
    assert abs(top - (height - bottom)) <= 1
    down, across = made.target
    assert (bottom - top) / (right - left) == pytest.approx(down / across, rel=0.02)
    assert down % multiple == across % multiple == 0
    assert 256 <= min(made.target) <= max(made.target) <= 1024
    if max(height, width) <= 4 * min(height, width):
        assert (1 - multiple / 256) * 512**2 <= down * across <= 512**2
        cropped = 1 - (right - left) * (bottom - top) / width / height
        assert cropped <= 0.07 + multiple / 256


def gradient(height: int, width: int) -> Image.Image:
    """An image that says in each pixel where it is: red from left to right, green downwards."""
    down, across = np.mgrid[0:height, 0:width]
    values = np.stack([across * 255 / (width - 1), down * 255 / (height - 1), 0 * down], axis=-1)
    return Image.fromarray(values.round().astype(np.uint8))


@pytest.mark.parametrize("flip", [False, True])
def test_the_pixels_are_those_of_the_box(flip: bool) -> None:
    crop = Crop((101, 201), (20, 10, 100, 90), (40, 40), flip)
    pixels = pixels_of(gradient(101, 201), crop)
    assert pixels.shape == (40, 40, 3)
    assert pixels.dtype == np.uint8
    left, right = (20 / 201, 100 / 201)
    if flip:
        left, right = 1 - left, 1 - right
    assert pixels[20, 0, 0] == pytest.approx(255 * left, abs=3)
    assert pixels[20, -1, 0] == pytest.approx(255 * right, abs=3)
    assert pixels[0, 20, 1] == pytest.approx(255 * 10 / 101, abs=3)
    assert pixels[-1, 20, 1] == pytest.approx(255 * 90 / 101, abs=3)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    pixels = pixels_of(Image.fromarray(stripes), Crop((256, 256), (0, 0, 256, 256), (32, 32)))
    assert np.ptp(pixels) < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = Image.new("RGB", (48, 32), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 24, 16))
    # As one turns the image into what is stored; see the Exif standard, 4.6.5.
    names = ("", "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90")
    name = (*names, "TRANSVERSE", "ROTATE_270")[orientation - 1]
    stored = upright.transpose(Image.Transpose[name]) if name else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(file_of(stored, exif=exif), (32, 48), "x")
    assert found.size == (48, 32)
    assert found.getpixel((5, 5)) == (255, 0, 0)
    assert found.getpixel((40, 5)) == found.getpixel((5, 25)) == (0, 0, 255)


def test_transparency_becomes_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((1, 1), (255, 0, 0, 255))
    clear.putpixel((2, 2), (0, 0, 0, 128))
    palette = clear.convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    found = decode(file_of(clear), (4, 4), "x")
    assert found.getpixel((0, 0)) == (255, 255, 255)
    assert found.getpixel((1, 1)) == (255, 0, 0)
    assert found.getpixel((2, 2)) == (127, 127, 127)
    assert decode(file_of(palette), (4, 4), "x").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb_of_eight_bits(mode: str) -> None:
    if mode == "I;16":
        image, color = Image.fromarray(np.full((8, 9), 32768, dtype=np.uint16)), (128, 128, 128)
    else:
        color = (255, 255, 255)
        image = Image.new("RGB", (9, 8), color).convert(mode)
    found = decode(file_of(image, "TIFF"), (8, 9), "x")
    assert (found.mode, found.size) == ("RGB", (9, 8))
    assert found.getpixel((4, 4)) == color


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_image_is_named(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = file_of(Image.fromarray(noise), kind)
    for content in (whole[: len(whole) // 2], b"", b"no image"):
        with pytest.raises(ExamplesError, match=r"07.png cannot be decoded: .*[^.]\.\n"):
            decode(content, (64, 64), "07.png")
    with pytest.raises(ExamplesError, match="64 x 64"):  # its header promised another size
        decode(whole, (63, 64), "07.png")
