"""What image generators write into their files: AUTOMATIC1111's web UI, and regforge."""

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import everywhere, png
from PIL import Image, PngImagePlugin

from regforge.image_files import BrokenImage, read_header

TEXT = (
    "a photo of a man, (smiling:1.2)\nin two lines\n"
    "Negative prompt: blurry\nugly\n"
    "Steps: 30, Sampler: Euler a, CFG scale: 10.5, Seed: 123456789, Size: 1024x1024, "
    'Model hash: 31e35c80fc, Model: sd_xl_base_1.0, Lora hashes: "x: 1, y: 2", Version: v1.6.0'
)
KNOWN = {
    "seed": 123456789,
    "steps": 30,
    "scheduler": "Euler a",
    "guidance_scale": 10.5,
    "model": "sd_xl_base_1.0",
    "model_hash": "31e35c80fc",
    "negative_prompt": "blurry\nugly",
}
PROMPT = "a photo of a man, (smiling:1.2)\nin two lines"


def in_png(text: str) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("parameters", text)
    return png(0, pnginfo=chunks)


def in_exif(comment: bytes, format: str = "JPEG") -> bytes:  # noqa: A002
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    return png(0, format=format, exif=exif)


def by_regforge(text: str) -> bytes:
    from regforge.images.staging import encode_image

    pixels = __import__("numpy").zeros((6, 8, 3), dtype="uint8")
    return encode_image(pixels, format="webp", quality=90, text=text)


FILES = {
    "PNG": in_png(TEXT),
    "big-endian": in_exif(b"UNICODE\0" + TEXT.encode("utf-16-be")),
    "little-endian": in_exif(b"UNICODE\0" + TEXT.encode("utf-16-le")),
    "ASCII": in_exif(b"ASCII\0\0\0" + TEXT.encode()),
    "undefined": in_exif(bytes(8) + TEXT.encode()),
    "WebP": in_exif(b"UNICODE\0" + TEXT.encode("utf-16-be"), "WEBP"),
    "regforge": by_regforge(TEXT),
}


@pytest.mark.parametrize("kind", FILES)
def test_prompt_and_parameters_are_found(kind: str) -> None:
    facts = read_header(io.BytesIO(FILES[kind]))
    assert facts.metadata == KNOWN
    assert facts.prompt == PROMPT


def test_the_prompt_is_the_caption_only_if_nothing_else_is(tmp_path: Path) -> None:
    files = {"a.png": in_png(TEXT), "b.png": in_png(TEXT), "b.txt": b"from a file"}
    files["c.json"], files["c.png"] = b'{"seed": 3}', in_png(TEXT)
    for dataset in everywhere(tmp_path, files):
        a, b, c = dataset.examples()
        assert (a.text, b.text, c.text) == (PROMPT, "from a file", PROMPT)
        assert (a.metadata, b.metadata) == (KNOWN, KNOWN)
        assert c.metadata == {**KNOWN, "seed": 3}  # what stands beside the image counts more
        assert dataset.notes == [
            "2 captions taken from what the image's generator wrote into the file."
        ]


@pytest.mark.parametrize(
    "text", ["", "holiday in Rome", "Steps: 3", '{"prompt": "x"}', "Steps: x, Seed: y", "a\nb: c"]
)
def test_other_texts_say_nothing(text: str) -> None:
    facts = read_header(io.BytesIO(in_png(text)))
    assert facts.metadata == {}
    assert facts.prompt is None


def test_without_prompt_or_negative_prompt() -> None:
    facts = read_header(io.BytesIO(in_png("Steps: 30, Seed: 1")))
    assert (facts.metadata, facts.prompt) == ({"steps": 30, "seed": 1}, None)
    facts = read_header(io.BytesIO(in_png("a cat\nSteps: 30, Seed: 1")))
    assert (facts.metadata, facts.prompt) == ({"steps": 30, "seed": 1}, "a cat")


@settings(max_examples=60)
@given(text=st.text(), comment=st.binary(), cut=st.integers(0, 200))
def test_no_file_makes_it_fail(text: str, comment: bytes, cut: int) -> None:
    read_header(io.BytesIO(in_exif(comment)))
    whole = in_png(text.encode(errors="replace").decode().replace("\0", ""))
    for content in (whole, whole[:cut], comment, whole[:cut] + comment + whole[cut:]):
        try:
            read_header(io.BytesIO(content))
        except BrokenImage:
            continue


def test_long_lines_of_strangers_take_no_time() -> None:
    for line in ("a " * 50_000, '"' * 99_000, "a: " * 30_000, "a" * 99_000 + ","):
        read_header(io.BytesIO(in_png(line)))
