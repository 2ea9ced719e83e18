"""Image files: the pixels come back, and web UIs find the prompt in them."""

import io
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from regforge.images.renderer import ModelIdentity, Pixels, RenderError
from regforge.images.staging import Format, encode_image, parameters_text, size_of
from regforge.recipe.rendering import Render
from regforge.records import ImageJob, Prompt

FORMATS: tuple[Format, ...] = ("webp", "png", "jpeg")
EXIF_DIRECTORY, USER_COMMENT, UNDEFINED = 0x8769, 0x9286, 7
IDENTITY = ModelIdentity("org/model", "0123abc", "euler_ancestral", "bfloat16", 96, 64)


def noise(height: int = 40, width: int = 56) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def job(text: str, **prompt: Any) -> ImageJob:
    return ImageJob(7, "3f2a-000007", Prompt(7, text, "teapot", "object", "amplify", **prompt), 42)


def text_in(file: bytes) -> str:
    """What a web UI finds in an image file: stable-diffusion-webui, `read_info_from_image`."""
    image = Image.open(io.BytesIO(file))
    if "parameters" in image.info:
        return str(image.info["parameters"])
    comment = image.getexif().get_ifd(EXIF_DIRECTORY)[USER_COMMENT]
    assert isinstance(comment, bytes)
    assert comment[:8] == b"UNICODE\0"
    return comment[8:].decode("utf-16-be")


def parse(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and parameters, by the rules of stable-diffusion-webui."""
    pair = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    *lines, last = text.strip().split("\n")
    if len(pair.findall(last)) < 3:
        lines, last = [*lines, last], ""
    prompt: list[str] = []
    negative: list[str] = []
    where = prompt
    for line in (line.strip() for line in lines):
        if line.startswith("Negative prompt:"):
            where = negative
            line = line.removeprefix("Negative prompt:").strip()
        where.append(line)
    values = {name: json.loads(v) if v[:1] == '"' else v for name, v in pair.findall(last)}
    return "\n".join(prompt), "\n".join(negative), values


@pytest.mark.parametrize("format_", FORMATS)
def test_pixels_come_back(format_: Format) -> None:
    pixels = noise()
    file = encode_image(pixels, format=format_, quality=95, text="a")
    with Image.open(io.BytesIO(file)) as image:
        assert image.format == format_.upper()
        back = np.asarray(image.convert("RGB"))
    assert size_of(file) == (56, 40)
    if format_ == "jpeg":
        assert 0 < np.abs(back.astype(int) - pixels).mean() < 12
    else:
        assert np.array_equal(back, pixels)


@pytest.mark.parametrize("format_", FORMATS)
def test_equal_input_gives_equal_bytes(format_: Format) -> None:
    first, second, other = (
        encode_image(noise(), format=format_, quality=90, text=text) for text in ("a", "a", "b")
    )
    assert first == second != other
    bare = Image.open(io.BytesIO(encode_image(noise(), format=format_, quality=95, text=None)))
    assert not {"parameters", "exif"} & bare.info.keys()
    odd = encode_image(noise(), format=format_, quality=95, text="a \ud83d cat\0!")
    assert text_in(odd) == "a ? cat!"


def test_jpeg_quality_is_obeyed_and_a_text_that_no_jpeg_can_hold_refused() -> None:
    low, high = (encode_image(noise(), format="jpeg", quality=q, text=None) for q in (30, 95))
    assert len(low) < len(high)
    with pytest.raises(RenderError, match="longer than a JPEG can hold"):
        encode_image(noise(), format="jpeg", quality=95, text="x" * 40_000)
    file = encode_image(noise(), format="webp", quality=95, text="x" * 40_000)
    assert len(text_in(file)) == 40_000


def test_the_user_comment_has_the_type_that_readers_expect() -> None:
    file = encode_image(noise(), format="webp", quality=95, text="hello")
    exif = Image.open(io.BytesIO(file)).info["exif"].removeprefix(b"Exif\0\0")
    stream = io.BytesIO(exif)
    directory = TiffImagePlugin.ImageFileDirectory_v2(stream.read(8), group=None)
    stream.seek(directory.next)
    directory.load(stream)
    inner = TiffImagePlugin.ImageFileDirectory_v2(exif[:8], group=EXIF_DIRECTORY)
    stream.seek(directory[EXIF_DIRECTORY])
    inner.load(stream)
    assert inner.tagtype[USER_COMMENT] == UNDEFINED


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    "caption",
    [
        "a photo of a red teapot",
        'a red, round, shiny teapot: on a beach, "golden" hour',
        "eine Kanne für Ærø, 赤い急須 🫖",
        "first line\nsecond line, third thing: yes",
        "a teapot, " * 1000 + "at last",
    ],
)
def test_a_web_ui_finds_all_that_made_an_image(format_: Format, caption: str) -> None:
    render = Render(model="org/model", steps=25, guidance_scale=7.5, negative_prompt="blurry, ugly")
    text = parameters_text(job(caption), render, IDENTITY)
    file = encode_image(noise(), format=format_, quality=95, text=text)
    prompt, negative, values = parse(text_in(file))
    assert (prompt, negative) == (caption, "blurry, ugly")
    expected = {"Steps": "25", "Sampler": "Euler a", "CFG scale": "7.5", "Seed": "42"}
    expected |= {"Size": "96x64", "Model": "org/model", "Revision": "0123abc"}
    assert values.items() >= (expected | {"Generator": "regforge"}).items()


def lines_of(text: str) -> str:
    """What a reader can give back: it strips each line, and the whole."""
    return "\n".join(line.strip() for line in text.strip().split("\n"))


@settings(max_examples=300)
@given(
    caption=st.text(min_size=1, max_size=200),
    negative=st.text(max_size=60),
    model=st.text(min_size=1, max_size=30).filter(lambda text: text.strip() == text),
)
def test_any_caption_and_model_can_be_read_back(caption: str, negative: str, model: str) -> None:
    identity = ModelIdentity(model, None, "ddim", "float32", 96, 96)
    render = Render(negative_prompt=negative)
    text = parameters_text(job(caption), render, identity)
    prompt, negative_prompt, values = parse(text)
    assert prompt == lines_of(caption)
    assert negative_prompt == lines_of(negative)
    assert values["Model"] == model
    assert values["Seed"] == "42"


def test_a_caption_cannot_pass_for_the_negative_prompt_and_a_size_of_its_own_is_said() -> None:
    text = parameters_text(job("a cat\nNegative prompt: dogs"), Render(), IDENTITY)
    assert parse(text)[:2] == ("a cat Negative prompt: dogs", "")
    text = parameters_text(job("a", width=32, height=48), Render(), IDENTITY)
    assert parse(text)[2]["Size"] == "32x48"
