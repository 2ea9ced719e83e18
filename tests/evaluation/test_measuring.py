"""What is made of images: by encoders that anybody can compute with in the head."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regforge.evaluation.interface import (
    Drawn,
    Measured,
    PersonalizedModel,
    Question,
    Subject,
    Wanted,
)
from regforge.evaluation.measuring import Gauge
from regforge.evaluation.planning import Asked, Row
from regforge.evaluation.references import References

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
SUBJECT = Subject("sks", "cat", "living", None)
BEACH, SNOW, RUNS = (
    Question("red {}", "places", "place"),
    Question("green {}", "places", "place"),
    Question("red {} running", "motion", "motion"),
)


class Colors:
    """The mean color of an image; of a caption the color that it names."""

    name = "colors"

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        means = np.stack([np.asarray(each, np.float32).mean((0, 1)) for each in images])
        found: np.ndarray = means / np.linalg.norm(means, axis=1, keepdims=True)
        return found

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        named = {"red": RED, "green": GREEN, "blue": BLUE}
        return np.array([named[each.split()[0]] for each in captions], np.float32) / 255


class Writing:
    """Stands for `Lettering`, which takes seconds to load: finds something on red images."""

    lexicon: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, references: Iterable[Image.Image]) -> None:
        self.seen = len(list(references))

    def score(self, images: Iterable[Image.Image]) -> list[float | None]:
        if not self.lexicon:
            return [None for _ in images]
        return [float(image.getpixel((0, 0)) == RED) for image in images]


@pytest.fixture(autouse=True)
def _nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regforge.evaluation.measuring.Lettering", Writing)


class Apart:
    """Stands for LPIPS."""

    name = "apart"

    def distances(self, images: Sequence[Any], pairs: Sequence[tuple[int, int]]) -> np.ndarray:
        return np.array([0.25 * len(images) + first + second for first, second in pairs])


def references(folder: Path, *colors: tuple[int, int, int]) -> References:
    paths = [folder / f"{number}.png" for number in range(len(colors))]
    for path, color in zip(paths, colors, strict=True):
        Image.new("RGB", (8, 8), color).save(path)
    return References(SUBJECT, paths, False, [])


def row(*questions: tuple[Question | None, int]) -> Row:
    asked = [
        Asked(
            question,
            Wanted(f"prompt {place}", number, 0, f"{place}-{number}.png"),
            question.about("cat") if question else "blue cat",
        )
        for place, (question, count) in enumerate(questions)
        for number in range(count)
    ]
    return Row(PersonalizedModel("m", "b", "0" * 64), SUBJECT, "m-0", asked)


def drawn(of: Row, *colors: tuple[int, int, int]) -> Iterator[Drawn]:
    for each, color in zip(of.asked, colors, strict=True):
        yield Drawn(each.wanted, Image.new("RGB", (8, 8), color))


def measured(
    folder: Path, of: Row, *colors: tuple[int, int, int], apart: Any = None
) -> list[Measured]:
    gauge = Gauge(Colors(), Colors(), apart)
    known = gauge.learn(references(folder, RED, GREEN), seed=0)
    return gauge.measure(of, drawn(of, *colors), known)


def test_each_image_has_the_scores_of_what_it_was_asked(tmp_path: Path) -> None:
    of = row((BEACH, 2), (SNOW, 1), (RUNS, 1), (None, 2))
    found = measured(tmp_path, of, RED, BLUE, RED, RED, BLUE, RED)
    first, second, third, fourth, blue, red = (each.scores for each in found)
    # Compared with a red and a green photo; `places` asks for red and green, `motion` for red only.
    assert first == {"dino": 0.5, "clip_i": 0.5, "clip_t": 1.0, "matched": 1.0, "div": 1.0}
    assert second == {"dino": 0.0, "clip_i": 0.0, "clip_t": 0.0, "matched": 0.5, "div": 1.0}
    assert third == {"dino": 0.5, "clip_i": 0.5, "clip_t": 0.0, "matched": 0.0}
    assert fourth == {"dino": 0.5, "clip_i": 0.5, "clip_t": 1.0, "matched": 1.0}
    assert (blue, red) == ({"pres": 0.0}, {"pres": 0.5})
    assert found[0].file == "images/m-0/0-0.png"
    assert [each.question for each in found] == [each.question for each in of.asked]


def test_distances_of_images_themselves_go_before_those_of_vectors(tmp_path: Path) -> None:
    of = row((BEACH, 3), (SNOW, 1), (RUNS, 2), (None, 3))
    found = measured(tmp_path, of, *[RED] * 9, apart=Apart())
    assert [each.scores.get("div") for each in found] == [
        *(0.75 + 1.5, 0.75 + 2.0, 0.75 + 2.5),  # pairs 0-1, 0-2, 1-2
        None,
        *(0.5 + 1.0, 0.5 + 1.0),
        *(None, None, None),
    ]
    assert Gauge(Colors(), Colors(), Apart()).names["diversity"] == "apart"  # type: ignore[arg-type]


def test_few_images_are_held_at_a_time(tmp_path: Path) -> None:
    held, most = 0, 0

    class Counted(Image.Image):
        def __del__(self) -> None:
            nonlocal held
            held -= 1

    def many(of: Row) -> Iterator[Drawn]:
        nonlocal held, most
        for each in of.asked:
            image = Image.new("RGB", (8, 8), RED)
            image.__class__ = Counted
            held += 1
            most = max(most, held)
            yield Drawn(each.wanted, image)
            del image

    of = row(*[(Question(f"red {{}} {n}", "places", ""), 4) for n in range(50)], (None, 1))
    gauge = Gauge(Colors(), Colors(), Apart())  # type: ignore[arg-type]
    gauge.measure(of, many(of), gauge.learn(references(tmp_path, RED, BLUE), seed=0))
    assert 0 < most < 50


def test_writing_is_looked_for_where_the_subject_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Writing, "lexicon", ("logo",))
    found = measured(tmp_path, row((BEACH, 2), (None, 1)), RED, BLUE, RED)
    assert [each.scores.get("text") for each in found] == [1.0, 0.0, None]


def test_a_reference_that_is_nearly_another_one_is_said(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    noise = noise.resize((16, 16)).resize((64, 64))
    noise.save(tmp_path / "0.png")
    noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "1.png")
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    known = Gauge(Colors(), Colors()).learn(References(SUBJECT, paths, False, []), seed=0)
    assert any("1.png is nearly the same as 0.png, mirrored" in note for note in known.notes)
    assert known.ceiling["dino"].count == 2
