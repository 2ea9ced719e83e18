"""Scores by hand, what must hold of them for any images, and what a model's images get."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps

from regforge.evaluation import metrics, scoring
from regforge.evaluation.planning import ModelPlan
from regforge.evaluation.references import References
from regforge.evaluation.scoring import Scorer
from regforge.evaluation.suites import (
    BenchmarkPrompt,
    ImageRequest,
    ImageScores,
    PersonalizedModel,
    Subject,
)

X, Y = np.float32([1, 0]), np.float32([0, 1])
BETWEEN = np.float32([0.6, 0.8])  # 0.6 of X, 0.8 of Y


def rows(*vectors: np.ndarray) -> np.ndarray:
    return np.stack(vectors)


def units(count: int) -> st.SearchStrategy[np.ndarray]:
    numbers = st.floats(-1, 1, width=32).filter(lambda number: abs(number) > 1e-3)
    return arrays.arrays(np.float32, (count, 3), elements=numbers).map(
        lambda found: (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    )


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (lambda: scoring.identity(rows(X, BETWEEN, -X), rows(X, Y)), [0.5, 0.7, -0.5]),
        (lambda: scoring.identity(np.zeros((0, 2), np.float32), rows(X)), []),
        # Each photo is left out of its own comparison.
        (lambda: scoring.ceiling(rows(X, Y, BETWEEN)), [0.3, 0.4, 0.7]),
        (lambda: scoring.ceiling(rows(X, X)), [1, 1]),
        (lambda: scoring.ceiling(rows(X)), []),
        # Neither 2.5 times the cosine, nor cut off at zero.
        (lambda: scoring.cosine_of_pairs(rows(X, X, BETWEEN), rows(X, -X, Y)), [1, -1, 0.8]),
        (lambda: scoring.matched(rows(X, X, BETWEEN), rows(X, Y, BETWEEN), [0, 1, 2]), [1, 0, 1]),
        # An encoder that sees no difference matches by chance.
        (lambda: scoring.matched(rows(X, X, X, X), rows(X, X, X, X), range(4)), [0.25] * 4),
        (
            lambda: scoring.diversity(
                rows(X, Y, Y, Y, BETWEEN, X), [(0, 2), (0, 4), (2, 4), (1, 3)]
            ),
            [1, 0.4, 0.2, 0],
        ),
        (lambda: scoring.diversity(rows(X), []), []),
    ],
)
def test_scores_by_hand(score: Callable[[], np.ndarray], expected: list[float]) -> None:
    assert score() == pytest.approx(expected)
    assert scoring.pairs_within("abaBac") == [(0, 2), (0, 4), (2, 4)]  # images of one prompt


def test_the_mean_of_identity_is_that_of_the_whole_matrix_and_of_nothing_refused() -> None:
    found = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    whole = found[:6] @ found[6:].T
    assert scoring.identity(found[:6], found[6:]).mean() == pytest.approx(whole.mean(), abs=1e-6)
    with pytest.raises(ValueError, match="nothing to compare"):
        scoring.identity(rows(X), np.zeros((0, 2), dtype=np.float32))
    with pytest.raises(ValueError, match="2 captions"):
        scoring.cosine_of_pairs(rows(X), rows(X, Y))


def unit(*vectors: Sequence[float]) -> np.ndarray:
    found = np.array(vectors, np.float32)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


BASE = unit([1, 0, 0.1], [1, 0.5, 0], [0, 1, 0.2], [0.2, 1, 0])
PROMPTS = ("a", "a", "b", "b")


def test_an_unchanged_class_has_exactly_what_the_base_model_has() -> None:
    """Though its images of the same noise are the same images."""
    assert metrics.class_closeness(BASE, BASE, PROMPTS).tolist() == [1.0] * 4
    assert metrics.class_diversity(BASE, BASE, PROMPTS).tolist() == [1.0] * 4
    assert metrics.pres_over_base(BASE, BASE, rows(*BASE[:2])).tolist() == [0.0] * 4


def test_lift_closeness_and_diversity_by_hand() -> None:
    lift = metrics.identity_lift(rows(X, BETWEEN), rows(Y, BETWEEN), rows(X))
    assert lift == pytest.approx([1, 0])
    assert metrics.pres_over_base(rows(X, X), rows(Y, BETWEEN), rows(X)) == pytest.approx([1, 0.4])
    # The base model drew X and BETWEEN, 0.6 from one another; this one BETWEEN and Y.
    found = metrics.class_closeness(rows(BETWEEN, Y), rows(X, BETWEEN), "aa")
    assert found == pytest.approx([1 / 0.6, 0 / 0.6])  # to BETWEEN 1, to X 0
    found = metrics.class_diversity(rows(BETWEEN, Y), rows(X, BETWEEN), "aa")
    assert found == pytest.approx([0.2 / 0.4] * 2)
    # Collapsed: all of a prompt alike. An image that is alone in its prompt says nothing.
    same = metrics.class_diversity(rows(X, X, Y), rows(X, Y, X), "aab")
    assert same[:2] == pytest.approx([0, 0])
    assert np.isnan(same[2])
    # Nothing to be a share of.
    assert np.isnan(metrics.class_diversity(rows(X, Y), rows(X, X), "aa")).all()
    assert np.isnan(metrics.class_closeness(rows(X), rows(X), "a")).all()


@settings(max_examples=30)
@given(units(6), units(6))
def test_means_are_ratios_of_means(images: np.ndarray, base: np.ndarray) -> None:
    def mean(left: np.ndarray, right: np.ndarray) -> float:
        cosines = left.astype(np.float64) @ right.T.astype(np.float64)
        return float(np.mean([cosines[a, b] for a in range(6) for b in range(6)
                              if a != b and a // 3 == b // 3]))  # fmt: skip

    prompts = [0, 0, 0, 1, 1, 1]
    for found, above, below in (
        (metrics.class_closeness, mean(images, base), mean(base, base)),
        (metrics.class_diversity, 1 - mean(images, images), 1 - mean(base, base)),
    ):
        if below > 1e-3:
            values = found(images, base, prompts)
            assert values.mean() == pytest.approx(above / below, rel=1e-4, abs=1e-4)
        elif below < 0:
            assert np.isnan(found(images, base, prompts)).all()


def test_the_interval_of_a_ratio_is_that_of_both_means() -> None:
    random = np.random.default_rng(0)
    base = random.normal(1.0, 0.2, 60)
    values = 0.8 * base + random.normal(0, 0.05, 60)
    drawn = random.integers(60, size=(4000, 60))
    ratios = values[drawn].mean(1) / base[drawn].mean(1)
    spread = metrics.relative(values, base).std() / np.sqrt(60)
    assert spread == pytest.approx(ratios.std(), rel=0.05)
    assert spread < 0.5 * values.std() / base.mean() / np.sqrt(60)  # as if the level were known


@settings(max_examples=30)
@given(units(5), units(3), st.permutations(range(5)), st.permutations(range(3)))
def test_scores_do_not_depend_on_the_order(
    images: np.ndarray, references: np.ndarray, order: list[int], other: list[int]
) -> None:
    found = scoring.identity(images, references)
    assert scoring.identity(images[order], references[other]) == pytest.approx(found[order])
    own = [place % 3 for place in range(5)]
    matched = scoring.matched(images, references, own)
    moved = [other.index(own[place]) for place in order]
    assert scoring.matched(images[order], references[other], moved) == pytest.approx(matched[order])
    ceiling = scoring.ceiling(references)
    assert scoring.ceiling(references[other]) == pytest.approx(ceiling[other])
    pairs = scoring.pairs_within(own)
    turned = [(second, first) for first, second in pairs]
    assert scoring.diversity(images, pairs) == pytest.approx(scoring.diversity(images, turned))


@settings(max_examples=30)
@given(units(4), units(4))
def test_scores_stay_within_their_bounds(images: np.ndarray, captions: np.ndarray) -> None:
    cosines = [
        scoring.identity(images, captions),
        scoring.cosine_of_pairs(images, captions),
        scoring.cosine_of_pairs(images, images),
        scoring.ceiling(captions),
    ]
    assert all((np.abs(found) <= 1).all() and found.shape == (4,) for found in cosines)
    shares = scoring.matched(images, captions, range(4))
    assert ((shares >= 0) & (shares <= 1)).all()
    assert scoring.matched(captions, captions, range(4)).min() > 0  # each is nearest to itself
    distances = scoring.diversity(images, scoring.pairs_within([0, 0, 1, 1]))
    assert ((distances >= 0) & (distances <= 2)).all()


def test_near_duplicates_are_found_and_shipped_subjects_have_none(repo: Path) -> None:
    for folder in (repo / "examples" / "subjects").iterdir():
        photos = [Image.open(file).convert("RGB") for file in sorted(folder.glob("*.png"))]
        assert scoring.near_duplicates(photos) == [], folder.name
    folder = repo / "examples" / "subjects" / "cat"
    photos = [Image.open(folder / f"{number:02d}.png").convert("RGB") for number in range(4)]
    larger = photos[1].resize((200, 200), Image.Resampling.BICUBIC)
    found = scoring.near_duplicates([*photos, larger, ImageOps.mirror(photos[2]), photos[1]])
    assert found == [(1, 4, False), (2, 5, True), (1, 6, False)]


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
BEACH, SNOW, RUNS = (
    BenchmarkPrompt("red {}", "places", "place"),
    BenchmarkPrompt("green {}", "places", "place"),
    BenchmarkPrompt("red {} running", "motion", "motion"),
)


class Colors:
    """Encodes an image as its mean color, a caption as the color that it names."""

    name = "colors"
    notes: tuple[str, ...] = ()

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        means = np.stack([np.asarray(each, np.float32).mean((0, 1)) for each in images])
        found: np.ndarray = means / np.linalg.norm(means, axis=1, keepdims=True)
        return found

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        named = {"red": RED, "green": GREEN, "blue": BLUE}
        return np.array([named[each.split()[0]] for each in captions], np.float32) / 255


class Writing:
    """Stands for `SubjectText`, which takes seconds to load: finds something on red images."""

    lexicon: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, references: Iterable[Image.Image]) -> None:
        self.read = len(list(references))

    def scores(self, images: Iterable[Image.Image]) -> list[float | None]:
        if not self.lexicon:
            return [None for _ in images]
        return [float(image.getpixel((0, 0)) == RED) for image in images]


@pytest.fixture(autouse=True)
def _nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regforge.evaluation.scoring.SubjectText", Writing)


class Apart:
    """Stands for LPIPS."""

    name = "apart"

    def distances(self, images: Sequence[Any], pairs: Sequence[tuple[int, int]]) -> np.ndarray:
        return np.array([0.25 * len(images) + first + second for first, second in pairs])


def references(folder: Path, *colors: tuple[int, int, int]) -> References:
    paths = [folder / f"{number}.png" for number in range(len(colors))]
    for path, color in zip(paths, colors, strict=True):
        Image.new("RGB", (8, 8), color).save(path)
    return References(paths, False, [])


def plan(*questions: tuple[BenchmarkPrompt | None, int]) -> ModelPlan:
    requests = [
        ImageRequest(f"prompt {place}", number, 0, f"{place}-{number}.png", question, caption)
        for place, (question, count) in enumerate(questions)
        for caption in [question.about("cat") if question else "blue cat"]
        for number in range(count)
    ]
    subject = Subject("sks", "cat", "living", None)
    return ModelPlan(PersonalizedModel("m", "b", "0" * 64), subject, "m-0", requests)


def scored(
    folder: Path, of: ModelPlan, *colors: tuple[int, int, int], apart: Any = None
) -> list[ImageScores]:
    scorer = Scorer(Colors(), Colors(), apart)
    features = scorer.learn(references(folder, RED, GREEN), seed=0)
    return scorer.score(of, (Image.new("RGB", (8, 8), color) for color in colors), features)


def test_each_image_has_the_scores_of_what_it_was_asked(tmp_path: Path) -> None:
    of = plan((BEACH, 2), (SNOW, 1), (RUNS, 1), (None, 2))
    found = scored(tmp_path, of, RED, BLUE, RED, RED, BLUE, RED)
    first, second, third, fourth, blue, red = (each.scores for each in found)
    # Compared with a red and a green photo; `places` asks for red and green, `motion` for red only.
    assert first == {"dino": 0.5, "clip_i": 0.5, "clip_t": 1.0, "matched": 1.0, "div": 1.0}
    assert second == {"dino": 0.0, "clip_i": 0.0, "clip_t": 0.0, "matched": 0.5, "div": 1.0}
    assert third == {"dino": 0.5, "clip_i": 0.5, "clip_t": 0.0, "matched": 0.0}
    assert fourth == {"dino": 0.5, "clip_i": 0.5, "clip_t": 1.0, "matched": 1.0}
    assert (blue, red) == ({"pres": 0.0}, {"pres": 0.5})
    assert found[0].file == "images/m-0/0-0.png"
    assert [each.question for each in found] == [each.question for each in of.images]


def test_a_model_is_held_against_the_base_model_and_against_itself_without_identifier(
    tmp_path: Path,
) -> None:
    scorer = Scorer(Colors(), Colors())
    features = scorer.learn(references(tmp_path, RED), seed=0)
    of = plan((BEACH, 1), (SNOW, 2), (None, 2))
    tuned = replace(of, without=[of.images[0], of.images[2]])
    base = replace(of, model=replace(of.model, steps=0))

    def scored(of: ModelPlan, *colors: tuple[int, int, int]) -> list[dict[str, float]]:
        images = (Image.new("RGB", (8, 8), color) for color in colors)
        return [each.scores for each in scorer.score(of, images, features)]

    purple = (255, 0, 255)
    alone = scored(tuned, RED, RED, RED, BLUE, purple, GREEN, purple)
    assert "class_closeness" not in alone[3]  # no base model yet
    before = scored(base, GREEN, GREEN, GREEN, BLUE, purple)
    level = 0.5**0.5
    for each in before[3:]:
        assert each["class_closeness"] == each["class_diversity"] == pytest.approx(1)
        assert each["pres_over_base"] == 0
    assert "lift" not in before[0]
    after = scored(tuned, RED, RED, RED, RED, purple, GREEN, purple)
    assert [each.get("lift") for each in after] == pytest.approx([1, None, 1 - level, None, None])
    assert [each["pres_over_base"] for each in after[3:]] == pytest.approx([1, 0])
    closeness = np.mean([each["class_closeness"] for each in after[3:]])
    assert closeness == pytest.approx((level + level) / (2 * level))
    assert len(after) == 5  # what was drawn without the identifier is no row of its own


def test_distances_of_images_themselves_go_before_those_of_vectors(tmp_path: Path) -> None:
    of = plan((BEACH, 3), (SNOW, 1), (RUNS, 2), (None, 3))
    found = scored(tmp_path, of, *[RED] * 9, apart=Apart())
    assert [each.scores.get("div") for each in found] == [
        *(0.75 + 1.5, 0.75 + 2.0, 0.75 + 2.5),  # pairs 0-1, 0-2, 1-2
        None,
        *(0.5 + 1.0, 0.5 + 1.0),
        *(None, None, None),
    ]
    assert Scorer(Colors(), Colors(), Apart()).names["diversity"] == "apart"


def test_few_images_are_held_at_a_time(tmp_path: Path) -> None:
    held, most = 0, 0

    class Counted(Image.Image):
        def __del__(self) -> None:
            nonlocal held
            held -= 1

    def many(count: int) -> Iterator[Image.Image]:
        nonlocal held, most
        for _ in range(count):
            image = Image.new("RGB", (8, 8), RED)
            image.__class__ = Counted
            held += 1
            most = max(most, held)
            yield image
            del image

    of = plan(*[(BenchmarkPrompt(f"red {{}} {n}", "places", ""), 4) for n in range(50)], (None, 1))
    scorer = Scorer(Colors(), Colors(), Apart())
    features = scorer.learn(references(tmp_path, RED, BLUE), seed=0)
    scorer.score(of, many(len(of.images)), features)
    assert 0 < most < 50


def test_text_is_looked_for_in_the_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writing, "lexicon", ("logo",))
    found = scored(tmp_path, plan((BEACH, 2), (None, 1)), RED, BLUE, RED)
    assert [each.scores.get("text") for each in found] == [1.0, 0.0, None]


def test_a_reference_that_is_nearly_another_one_is_said(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    noise = noise.resize((16, 16)).resize((64, 64))
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    noise.save(paths[0])
    noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(paths[1])
    features = Scorer(Colors(), Colors()).learn(References(paths, False, []), seed=0)
    assert any("1.png is nearly the same as 0.png, mirrored" in note for note in features.notes)
    assert features.ceiling["dino"].count == 2
