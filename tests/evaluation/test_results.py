"""Results: summed up, compared, said in words, written and read again."""

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from made_evaluation import MODELS, SUBJECT, made_evaluation

from regforge.evaluation.metrics import BY_KEY, Comparison, Interval, interval
from regforge.evaluation.results import Evaluation, compare, summarize
from regforge.evaluation.suites import (
    BenchmarkPrompt,
    EvaluationError,
    ImageScores,
    PersonalizedModel,
    Subject,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return made_evaluation(tmp_path_factory.mktemp("evaluation"), samples=2, size=32)


def model(name: str, subject: Subject | None = SUBJECT) -> PersonalizedModel:
    return PersonalizedModel(name=name, base="b", digest="0" * 64, subject=subject)


def images(identifier: str, scores: list[float], key: str = "clip_t") -> list[ImageScores]:
    """Two samples of each question."""
    questions = [
        BenchmarkPrompt(f"a {{}} number {n // 2}", "dreambench", "") for n in range(len(scores))
    ]
    return [
        ImageScores(
            question, question.about(f"{identifier} teapot"), n % 2, f"{n}.png", {key: score}
        )
        for n, (question, score) in enumerate(zip(questions, scores, strict=True))
    ]


def test_scores_are_means_over_clusters_and_parts_of_a_benchmark_apart(made: Evaluation) -> None:
    result = made.results[0]
    asked = [(each.scores["dino"], each.prompt) for each in result.images if each.question]
    assert result.scores["dino"] == interval(*zip(*asked, strict=True), resamples=2000)
    assert len(asked) == 20
    result = made.results[1]
    assert list(result.by_suite) == ["dreambench", "styles"]
    assert list(result.by_group) == ["dreambench/place", "styles/style"]
    assert result.by_suite["dreambench"]["dino"].count == 16
    assert result.by_suite["styles"] == result.by_group["styles/style"]
    assert "pres" not in result.by_suite["dreambench"]


def test_preservation_comes_from_class_images_and_everything_else_from_questions() -> None:
    measured = [
        *images("sks", [0.2, 0.4]),
        ImageScores(None, "a photo of a teapot", 0, "c.png", {"pres": 0.5, "clip_t": 9.0}),
    ]
    measured[0].scores["pres"] = 9.0
    scores = summarize(model("a"), measured).scores
    assert scores["clip_t"].mean == pytest.approx(0.3)
    assert scores["pres"].mean == 0.5


def test_models_are_not_compared_twice_by_pres() -> None:
    scores = {"pres": 0.5, "pres_over_base": 0.25, "class_closeness": 0.9}
    results = [
        summarize(model(name), [ImageScores(None, "a photo of a teapot", 0, "c.png", dict(scores))])
        for name in "ab"
    ]
    assert results[0].scores.keys() == scores.keys()
    assert [each.metric for each in compare(results)] == ["pres", "class_closeness"]


def test_what_was_not_measured_is_left_out_and_a_share_stays_between_nothing_and_all() -> None:
    measured = images("sks", [0.2, math.nan, 0.4, 0.3])
    del measured[3].scores["clip_t"]
    found = summarize(model("a"), measured).scores["clip_t"]
    assert (found.count, found.mean) == (2, pytest.approx(0.3))
    measured = images("sks", [1.0, 1.0, 1.0, 0.0, 0.0, 1.0], key="matched")
    found = summarize(model("a"), measured).scores["matched"]
    assert 0 <= found.low < found.mean < found.high <= 1


def test_models_are_compared_in_pairs_of_images_whatever_their_identifier() -> None:
    photos = Path("photos")
    first = summarize(
        model("first", replace(SUBJECT, images=photos)), images("sks", [0.1, 0.5, 0.9, 0.3])
    )
    # The same images a little higher, in another order, of a model that calls the subject `zxc`.
    better = [0.31 + 0.1, 0.5 + 0.11, 0.9 + 0.1, 0.3 + 0.11]
    theirs = images("zxc", [0.21, better[1], better[2], better[3]])
    subject = replace(SUBJECT, identifier="zxc", images=photos)
    second = summarize(model("second", subject), theirs[::-1])
    (found,) = compare([first, second])
    assert (found.first, found.second, found.metric) == ("first", "second", "clip_t")
    assert found.difference.mean == pytest.approx((0.11 + 0.11 + 0.1 + 0.11) / 4)
    assert found.difference.count == 4
    assert found.difference.low > 0


def test_questions_of_all_suites_are_one_level_of_clusters(made: Evaluation) -> None:
    """Were suites the outer level, two of them would make every interval many times as wide."""
    names = [name for name, *_ in MODELS]
    pairs = {
        (each.first, each.second): each for each in made.comparisons if each.metric == "clip_t"
    }
    assert list(pairs) == list(combinations(names, 2))  # each with each one before it
    found = pairs[names[0], names[2]]
    assert 0 < found.difference.high - found.difference.low < 0.02


def test_what_only_one_of_two_models_drew_is_left_out_of_their_comparison() -> None:
    first = summarize(model("a"), images("sks", [0.1, 0.1, 0.7, 0.7]))
    second = summarize(model("b"), images("sks", [0.2, 0.2]))
    (found,) = compare([first, second])
    assert (found.difference.mean, found.difference.count) == (pytest.approx(0.1), 2)
    of_a_cat = summarize(model("c", replace(SUBJECT, class_noun="cat")), images("sks", [0.1, 0.2]))
    assert compare([first, of_a_cat]) == []


def test_it_is_read_again_as_it_was_written(made: Evaluation) -> None:
    path = made.folder / "evaluation.json"
    made.save(path)
    before = path.read_bytes()
    assert Evaluation.load(path) == made == Evaluation.load(str(made.folder))
    Evaluation.load(path).save(path)
    assert path.read_bytes() == before


def test_the_file_has_what_scripts_need_and_nothing_of_this_machine(
    made: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # files below it are named by their way from there
    inside = replace(made.results[0].model, weights=tmp_path / "runs" / "a.safetensors")
    unsure = ImageScores(None, "p", 0, "f.png", {"pres": math.nan, "dino": 0.5})
    first = replace(made.results[0], model=inside, images=[*made.results[0].images, unsure])
    replace(made, results=[first]).save(tmp_path / "evaluation.json")
    text = (tmp_path / "evaluation.json").read_text(encoding="utf-8")
    found = json.loads(text)
    assert found["format"] == 1
    (of,) = found["models"]
    assert (of["name"], of["weights"]) == ("no regularization", "runs/a.safetensors")
    assert of["subject"] == {
        "identifier": "sks", "class_noun": "teapot", "kind": "object", "images": None
    }  # fmt: skip
    assert set(of["scores"]["dino"]) == {"mean", "low", "high", "count"}
    assert of["images"][0]["file"] == "images/0/0-0.png"
    assert of["images"][-1]["scores"] == {"dino": 0.5}  # NaN was not measured
    assert [metric["key"] for metric in found["metrics"]][:3] == ["dino", "clip_i", "clip_t"]
    assert str(made.folder) not in text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "There is no"),
        ("{", "cannot be read"),
        ("[]", "is not an evaluation"),
        ('{"format": 1, "settings": {}}', "is not an evaluation"),
        ('{"format": 99}', "newer regforge"),
    ],
)
def test_what_is_no_evaluation_is_said(tmp_path: Path, text: str | None, complaint: str) -> None:
    path = tmp_path / "evaluation.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(EvaluationError, match=complaint):
        Evaluation.load(path)


def test_the_text_fits_a_terminal_and_names_every_model_and_score(made: Evaluation) -> None:
    text = made.as_text()
    assert max(map(len, text.splitlines())) < 100
    for result in made.results:
        row = next(line for line in text.splitlines() if line.startswith(result.model.name))
        assert f"{result.scores['dino'].mean:.3f}" in row
        for found in result.scores.values():
            assert f"{found.mean:.3f}" in text
    assert "(the photos themselves)  0.774" in text
    assert made.notes[0] in text


def test_the_best_of_each_column_is_marked_in_its_direction(made: Evaluation) -> None:
    lines = made.as_text().splitlines()
    rows = {name: next(line for line in lines if line.startswith(name)) for name, *_ in MODELS}
    marked = {name: row.count("*") for name, row in rows.items()}
    assert marked == {"no regularization": 2, "naive": 0, "against + amplify": 3}
    assert "PRES ↓" in lines[0]
    assert rows["against + amplify"].endswith("*"), "the lowest PRES is the best one"
    pres = BY_KEY["pres"]
    assert pres.best_of({"a": 0.1, "b": 0.0, "c": 0.0}) == ["b", "c"]
    assert pres.best_of({"a": 0.0, "b": 0.0}) == []
    assert pres.best_of({"a": 0.0}) == pres.best_of({}) == []


@pytest.mark.parametrize(
    ("metric", "mean", "low", "high", "sentence"),
    [
        ("clip_t", 0.031, 0.012, 0.05,
         "B follows prompts better than A: CLIP-T +0.031 (0.012 to 0.050)."),
        ("dino", -0.02, -0.03, -0.01,
         "A looks more like the subject than B: DINO +0.020 (0.010 to 0.030)."),
        ("pres", -0.05, -0.08, -0.02,
         "B keeps the rest of the class apart from the subject better than A: "
         "PRES -0.050 (-0.080 to -0.020)."),
        ("div", 0.01, -0.01, 0.03, "No clear difference in DIV."),
    ],
)  # fmt: skip
def test_differences_are_said_in_words(
    made: Evaluation, metric: str, mean: float, low: float, high: float, sentence: str
) -> None:
    found = Comparison("A", "B", metric, Interval(mean, low, high, 100))
    text = replace(made, results=[], comparisons=[found]).as_text()
    assert sentence in " ".join(text.split())


def test_no_name_steers_the_terminal_and_many_comparisons_are_warned_of(made: Evaluation) -> None:
    hostile = replace(made.results[0].model, name="\x1b[2Jevil\nname")
    text = replace(made, results=[replace(made.results[0], model=hostile)]).as_text()
    assert "\x1b" not in text
    assert "?[2Jevil?name" in text
    assert "by chance" not in made.as_text()
    many = replace(made, comparisons=made.comparisons * 3)
    assert "Of 54 comparisons about 3 would look clear by chance" in many.as_text()
