"""The subject among the regularization images, by name, by copy, by content; what is known."""

from pathlib import Path
from typing import Any

import pytest
from audit_samples import (
    KNOWN,
    audit,
    checked,
    closed,
    example,
    expect,
    file_of,
    make_image,
    write_run,
)
from PIL import Image, ImageOps

from regforge.auditing.gathering import inspect_image
from regforge.auditing.images import suggestions
from regforge.errors import RegforgeError

SUBJECTS = Path(__file__).parents[2] / "examples" / "subjects"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in (500, 501):
        (folder / f"my owl {number}.png").write_bytes(file_of(make_image(number, (64, 64))))
    (folder / "notes.txt").write_text("not a photo")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no")
    return folder


def rows_with(*images: Image.Image) -> list[Any]:
    rows = [example(n) for n in range(20)]
    return rows + [example(20 + n, image=file_of(image)) for n, image in enumerate(images)]


def test_no_copies_and_photos_of_others_are_not_compared_by_content(photos: Path) -> None:
    check = checked(audit(rows_with(), subject=photos), "subject copies")
    expect(check, "good", "any of 2 photos", photos=2)  # the broken one is none
    expect(checked(audit(rows_with(), subject=photos), "subject likeness"), "unknown")
    expect(checked(audit(rows_with()), "subject copies"), "unknown")


@pytest.mark.parametrize("how", ["the same", "smaller", "mirrored", "paler"])
def test_copies_of_a_photo(photos: Path, how: str) -> None:
    original = make_image(500, (64, 64))
    copy = {
        "the same": original,
        "smaller": original.resize((48, 48)),
        "mirrored": ImageOps.mirror(original),
        "paler": original.point(lambda value: 0.9 * value + 20),
    }[how]
    check = checked(audit(rows_with(copy), subject=photos), "subject copies")
    expect(check, "bad", copies=1)
    assert check.examples[0].startswith("020.png my_owl_500.png (")
    assert check.numbers["nearest"][0]["id"] == "020.png"


def test_a_photo_turned_by_exif_is_found_upright_and_as_stored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 90 degrees to the right
    upright = make_image(500, (64, 64))
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    (tmp_path / "photo.jpg").write_bytes(file_of(stored, "JPEG", quality=98, exif=exif))
    for copy in (upright, stored):
        expect(checked(audit(rows_with(copy), subject=tmp_path), "subject copies"), "bad")


def test_an_image_much_like_a_photo_is_worth_a_look(photos: Path) -> None:
    near = inspect_image((photos / "my owl 501.png").read_bytes()).hash
    assert near is not None
    rows = [closed(n) for n in range(5)]
    rows.append(closed(5, data={"perceptual_hash": f"{near ^ 0b11111111:016x}"}))
    check = checked(audit(rows, subject=photos), "subject copies")
    expect(check, "look", similar=1)
    assert check.examples == ["005.png my_owl_501.png (8 bits)"]


@pytest.mark.slow
def test_images_of_the_embedded_pipeline_are_compared_by_content() -> None:
    """A photo of the subject in another place is no copy, and yet is found."""
    drawn = {"metadata": {"model": "embedded/tinyworld"}}
    others = [p for name in ("owl", "robot") for p in sorted((SUBJECTS / name).glob("*.png"))]
    rows = [example(n, image=p.read_bytes(), **drawn) for n, p in enumerate(others)]
    expect(checked(audit(rows, subject=SUBJECTS / "duck"), "subject likeness"), "good")
    rows.append(example(90, image=(SUBJECTS / "owl" / "00.png").read_bytes(), **drawn))
    rows.append(example(91, image=b"broken", **drawn))
    check = checked(audit(rows, subject=SUBJECTS / "owl"), "subject likeness")
    expect(check, "bad", shows_subject=6)  # the five owls, and one of them again
    assert check.numbers["nearest"][0]["cosine"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_folder_without_photos_is_wrong_usage(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RegforgeError, match=r"photos|read") as error:
        audit(rows_with(), subject=tmp_path / folder)
    assert error.value.exit_code == 2


def test_the_run_knows_the_identifier_the_licence_and_what_was_refused(tmp_path: Path) -> None:
    recipe = "subject: {identifier: zqk}\ndataset: {license: mit}\ncurate: {constant: true}\n"
    run = write_run(tmp_path / "run", recipe)
    found = audit([closed(0, "a zqk owl"), closed(1)], dataset={"run": run})
    expect(checked(found, "identifier"), "bad")
    expect(checked(found, "licence"), "good", "mit.")
    expect(checked(found, "image files"), "good")


@pytest.mark.parametrize("recipe", ["", "- a list", "subject: 7\ncurate: []", "{", "a: !!python/x"])
def test_a_damaged_recipe_says_nothing(tmp_path: Path, recipe: str) -> None:
    run = write_run(tmp_path / "run", recipe)
    (run / "vocabulary.json").write_text("[1]")
    found = audit([closed(0)], dataset={"run": run})
    expect(checked(found, "identifier"), "unknown")
    expect(checked(found, "licence"), "look")


def test_what_is_not_known_about_the_images() -> None:
    known = KNOWN | {"model": "a/b"}
    expect(checked(audit([closed(n, data=known) for n in range(4)]), "metadata"), "good")
    partly = audit([closed(0, data=known), closed(1, data=known | {"seed": None, "model": "x/y"})])
    check = checked(partly, "metadata")
    expect(check, "look", models=["a/b", "x/y"])
    assert check.numbers["without"]["seed"] == 0.5
    nothing = checked(audit([example(0)]), "metadata")
    expect(nothing, "look", "No image says how it was made.")
    assert set(nothing.numbers["without"].values()) == {1.0}


@pytest.mark.parametrize(
    ("name", "grade"), [("mit", "good"), ("unknown", "look"), ("Other", "look"), (None, "look")]
)
def test_licences(name: str | None, grade: str) -> None:
    expect(checked(audit([closed(0)], dataset={"license": name}), "licence"), grade)


@pytest.mark.parametrize(("photos", "repeats"), [(5, 400), (4, 500), (3, 667), (5000, 1)])
def test_repeats_use_all_images(photos: int, repeats: int) -> None:
    check = suggestions(2000, photos, {})
    expect(check, "good", repeats=repeats, prior_weight=1.0, steps_to_see_all=2000)


def test_photos_are_counted_in_their_folder_unless_said(photos: Path) -> None:
    for options, count in (
        ({"subject": photos}, 2),
        ({"subject": photos, "photos": 7}, 7),
        ({}, 5),
    ):
        expect(checked(audit(rows_with(), **options), "size and repeats"), "look", photos=count)
