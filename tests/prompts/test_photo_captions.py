"""`captions: auto`: what a vision model is shown, and what becomes of its answer."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from builders import FakeClient, recipe_of
from odd_images import deep_grey
from PIL import Image

from regforge.errors import EXIT_USAGE
from regforge.prompts.photos import NoVision, PhotoCaptionError, data_url, describe_photos

KITCHEN = {"background": "On a kitchen counter.", "lighting": "in soft daylight"}


def photo(folder: Path, name: str = "1.png", size: tuple[int, int] = (40, 30), **how: Any) -> Path:
    Image.new("RGB", size, "red").save(folder / name, **how)
    return folder / name


def describe(answer: Any, photos: list[Path], **sections: Any) -> tuple[dict[str, str], FakeClient]:
    client = FakeClient(answer if callable(answer) else lambda *_: answer)
    recipe = recipe_of(**sections)
    return describe_photos(photos, recipe, client), client  # type: ignore[arg-type]


def image_in(client: FakeClient) -> Image.Image:
    text, image = client.asked[0].messages[-1]["content"]
    assert text["type"] == "text"
    kind, _, data = image["image_url"]["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_caption_names_subject_place_and_light(tmp_path: Path) -> None:
    captions, _ = describe(KITCHEN, [photo(tmp_path), photo(tmp_path, "2.png")])
    caption = "a photo of a sks ceramic teapot on a kitchen counter, in soft daylight"
    assert captions == {"1.png": caption, "2.png": caption}
    captions, _ = describe(KITCHEN, [photo(tmp_path)], subject={"class_noun": "glasses"})
    assert captions["1.png"].startswith("a photo of glasses on")


def test_a_living_subject_has_a_pose_and_a_caption_may_lack_light(tmp_path: Path) -> None:
    said = {"background": "on a lawn", "pose": "Lying on its side", "lighting": ""}
    captions, client = describe(said, [photo(tmp_path)], subject={"class_noun": "dog"})
    assert captions == {"1.png": "a photo of a dog lying on its side on a lawn"}
    assert "pose" in str(client.asked[0].messages)


def test_a_photo_is_sent_upright_small_and_without_its_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    exif[0x010F] = "somebody's camera"
    _, client = describe(KITCHEN, [photo(tmp_path, "big.jpg", (1600, 800), exif=exif)])
    sent = image_in(client)
    assert sent.size == (384, 768)
    assert not dict(sent.getexif())


def test_a_transparent_photo_is_sent_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "cut.png")
    _, client = describe(KITCHEN, [tmp_path / "cut.png"])
    assert image_in(client).getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("background", "lighting"),
    [("beside an sks", ""), ("behind a ceramic teapot", ""), ("", ""), ("on a mat", "very nice")],
)
def test_a_useless_answer_is_asked_anew(tmp_path: Path, background: str, lighting: str) -> None:
    said = {"background": background, "lighting": lighting}
    captions, client = describe(lambda _, attempt: KITCHEN if attempt else said, [photo(tmp_path)])
    assert "kitchen counter" in captions["1.png"]
    assert client.complaints


def test_a_photo_that_the_model_does_not_describe_is_told(tmp_path: Path) -> None:
    with pytest.raises(PhotoCaptionError, match=r"did not describe 1\.png") as caught:
        describe("I cannot see images.", [photo(tmp_path)])
    assert "1.txt" in str(caught.value)


def test_a_file_that_is_no_photo_is_told_before_any_call(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(PhotoCaptionError, match=r"x\.png cannot be read as an image"):
        describe(KITCHEN, [photo(tmp_path), tmp_path / "x.png"])


def test_the_vision_model_is_asked_and_the_embedded_one_cannot_be(tmp_path: Path) -> None:
    llm = {"model": "embedded/smollm2-135m", "vision_model": "openai/eyes"}
    _, client = describe(KITCHEN, [photo(tmp_path)], prompts={"llm": llm})
    assert client.asked[0].model == "openai/eyes"
    with pytest.raises(NoVision, match="needs a model that sees") as caught:
        describe(KITCHEN, [photo(tmp_path)], prompts={"llm": {"model": llm["model"]}})
    assert caught.value.exit_code == EXIT_USAGE


def test_a_photo_of_16_bits_is_sent_as_a_viewer_shows_it(tmp_path: Path) -> None:
    (tmp_path / "deep.png").write_bytes(deep_grey())
    url = data_url(tmp_path / "deep.png")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        darkest, brightest = image.convert("L").getextrema()
    assert darkest < 20
    assert 110 < brightest < 145
