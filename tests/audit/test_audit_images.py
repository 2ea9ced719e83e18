"""Broken, black, turned, transparent and squeezed files; sizes."""

import io
from typing import Any

import pytest
from audit_samples import audit, checked, closed, example, expect, file_of, make_image
from odd_images import deep_colour, deep_grey, png, turned
from PIL import Image

from regforge.auditing.gathering import inspect_image, jpeg_quality


def bomb() -> bytes:
    """A PNG file of a few bytes that says it has ten thousand million pixels."""
    return png(100_000, 100_000, 8, 2, bytes(1000))


def see_through(alpha: int) -> bytes:
    image = make_image(1).convert("RGBA")
    image.putpixel((3, 3), (1, 2, 3, alpha))
    return file_of(image)


PNG = file_of(make_image(1))

FILES = [
    (b"", ("cannot be read",)),
    (b"<html>not found</html>", ("cannot be read",)),
    (PNG[: len(PNG) // 2], ("cannot be read",)),
    (bomb(), ("too large to open",)),
    (file_of(Image.new("RGB", (32, 32))), ("black",)),
    (file_of(Image.new("RGB", (32, 32), "teal")), ("a single colour",)),
    (turned(), ("turned by EXIF",)),
    (see_through(254), ("transparent",)),
    (see_through(255), ()),
    (file_of(make_image(1), "JPEG", quality=40), ("low JPEG quality",)),
    (file_of(make_image(1), "JPEG", quality=90), ()),
    (file_of(make_image(1).convert("L")), ()),
    (file_of(make_image(1), "WEBP", quality=20), ()),
    (deep_grey(), ("16 bits",)),
    (deep_colour(), ("16 bits",)),
    (file_of(make_image(1).convert("P")), ()),
    (file_of(make_image(1).convert("CMYK"), "JPEG", quality=95), ()),
    (file_of(make_image(1), "GIF", save_all=True, append_images=[make_image(2)]), ("animated",)),
]


@pytest.mark.parametrize(("content", "troubles"), FILES)
def test_what_is_wrong_with_a_file(content: bytes, troubles: tuple[str, ...]) -> None:
    assert inspect_image(content).troubles == troubles


@pytest.mark.parametrize("quality", [30, 50, 75, 90, 95, 100])
def test_jpeg_quality_is_what_the_file_was_saved_with(quality: int) -> None:
    with Image.open(io.BytesIO(file_of(make_image(1), "JPEG", quality=quality))) as image:
        tables: Any = image.quantization
        assert jpeg_quality(tables) == pytest.approx(quality, abs=2)
    assert jpeg_quality({}) is None


def test_troubles_are_counted_and_shown() -> None:
    rows = [example(n) for n in range(200)]
    expect(checked(audit(rows), "image files"), "good")
    rows += [example(200 + n, image=content) for n, (content, _) in enumerate(FILES[3:8])]
    check = checked(audit(rows), "image files")
    said = ("too large to open: 1 of 205 images (under 1 %)", "remove them")
    expect(check, "bad", *said, black=1, turned_by_exif=1)  # three of 205 are of no use
    assert "200.png" in check.examples


def test_a_file_that_is_not_the_one_its_row_speaks_of() -> None:
    rows = [example(n, metadata=closed(n).metadata) for n in range(3)]
    found = audit(rows, thorough=True)
    expect(checked(found, "image files"), "look", changed_since_it_was_made=3)
    own = [example(0, metadata={"image_digest": inspect_image(rows[0].image).digest.upper()})]
    expect(checked(audit(own, thorough=True), "image files"), "good")


def sizes_of(*sizes: tuple[int, int], **more: Any) -> Any:
    rows = [closed(n, width=w, height=h) for n, (w, h) in enumerate(sizes)]
    return checked(audit(rows, **more), "image sizes")


def test_sizes_against_the_trainer_and_those_that_need_a_crop() -> None:
    expect(sizes_of(*[(1024, 1024)] * 3, resolution=1024), "good")
    expect(sizes_of(*[(1344, 768)] * 3, resolution=1024), "good")  # a bucket of SDXL
    expect(sizes_of(*[(512, 512)] * 3, resolution=1024), "bad", "Train at 512", too_small=3)
    expect(sizes_of(*[(96, 96)] * 3, resolution=512), "bad", "Train at 96")
    few = sizes_of(*[(1024, 1024)] * 3, (512, 512), resolution=1024)
    expect(few, "look", too_small=1)
    assert few.examples == ["1024 x 1024: 3", "512 x 512: 1"]
    expect(sizes_of((1024, 1024), (1024, 400)), "look", wide=1)
    expect(sizes_of((1020, 1024), (1020, 1024)), "look", not_multiple_of_8=2)
    expect(sizes_of((96, 96), (96, 96)), "good", not_multiple_of_64=2)
    expect(sizes_of((0, 0)), "unknown")


def test_the_same_pixels_in_two_formats_differ_by_file_alone() -> None:
    one, other = inspect_image(PNG), inspect_image(file_of(make_image(1), "BMP"))
    assert (one.hash, one.pixels) == (other.hash, other.pixels)
    assert one.digest != other.digest
