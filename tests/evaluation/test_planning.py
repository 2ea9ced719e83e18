"""What an evaluation refuses, plans and keeps, up to the first image."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trained_models
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from regforge.cli import app
from regforge.errors import RegforgeError
from regforge.evaluation import EvaluationSettings, evaluate
from regforge.evaluation.evaluation_run import EvaluationFolder, default_folder
from regforge.evaluation.metrics import Interval
from regforge.evaluation.models import open_model
from regforge.evaluation.planning import ModelPlan, open_all, plan_evaluation
from regforge.evaluation.references import find_references, references_for
from regforge.evaluation.results import ModelResult, best_steps, over_steps, worth_comparing
from regforge.evaluation.suites import EvaluationError, PersonalizedModel, Subject
from regforge.journal import Reporter

CAT = trained_models.SUBJECTS / "cat"


def cat(images: Path | None = CAT) -> Subject:
    return replace(trained_models.CAT, images=images)


def photos(folder: Path, *names: str) -> Path:
    """Some of the cat's photos, under names of their own, and without captions."""
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / f"{number}-{name}").write_bytes((CAT / name).read_bytes())
    return folder


def refusal(out: Path, *models: Path | str, **settings: Any) -> str:
    with pytest.raises(RegforgeError) as caught:
        evaluate(models, EvaluationSettings(**settings), out=out, reporter=Reporter(quiet=True))
    assert not out.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "models", "settings"),
    [
        ("no model to evaluate", [], {}),
        ("There is no", ["nowhere"], {}),
        ("no weights yet", ["half"], {}),
        ("asked for twice", ["run", "run"], {}),
        ("Nothing says which subject stray", ["stray.safetensors"], {}),
        ("Did you mean 'dreambench'", ["run"], {"suites": ["dreambnch"]}),
        ("Two benchmarks are called mine", ["run"], {"suites": ["a/mine.txt", "b/mine.txt"]}),
        ("There is no prompt", ["run"], {"suites": []}),
        ("There is no folder", ["run"], {"references": "nowhere"}),
        ("samples is 0", ["run"], {"samples": 0}),
        ("lift_samples is -1", ["run"], {"lift_samples": -1}),
        ("limit is 0", ["run"], {"limit": 0}),
        ("samples is 99,999", ["run"], {"samples": 99_999}),
        ("number of steps is 0", ["run"], {"steps": 0}),
        ("has no snapshots", ["run"], {"snapshots": True}),
        ("The seed is -1", ["run"], {"seed": -1}),
        ("dino", ["run"], {"structure_encoder": "dino"}),
        ("the models know 2", ["run", "dog"], {"references": CAT}),
        ("run was trained on embedded/tinyworld, and other on me/sdxl@v1", ["run", "other"], {}),
        ("--base-model", ["run", "other"], {}),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_anything_is_drawn(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    models: list[str],
    settings: dict[str, Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    trained_models.run(tmp_path / "run")
    trained_models.run(tmp_path / "half", finished=None)
    trained_models.run(tmp_path / "other", base_model="me/sdxl", revision="v1")
    dog = {"images": str(trained_models.SUBJECTS / "dog"), "class_noun": "dog"}
    trained_models.run(tmp_path / "dog", subject=dog)
    trained_models.lora(
        tmp_path / "stray.safetensors", metadata={"base_model": "embedded/tinyworld"}
    )
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.txt").write_text("a {} here\n")
    assert words in refusal(tmp_path / "out", *models, **settings)


def test_settings_may_be_keywords_and_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    run = trained_models.run(tmp_path / "run")
    with pytest.raises(EvaluationError, match="limit is 0"):
        evaluate([run], EvaluationSettings(samples=2), limit=0)
    with pytest.raises(EvaluationError, match="nowhere"):  # one model need not be a list
        evaluate(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="sample"):
        evaluate([run], sample=1)
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "nowhere")])
    assert isinstance(result.exception, EvaluationError)
    assert result.exception.exit_code == 2


def test_photos_that_are_gone_are_asked_for(tmp_path: Path) -> None:
    error = refusal(
        tmp_path / "out", trained_models.run(tmp_path / "run", photos=tmp_path / "gone")
    )
    assert f"not in {tmp_path / 'gone'} any more" in error
    assert "--subject" in error


def test_one_name_for_two_subjects_is_refused(tmp_path: Path) -> None:
    folders = [photos(tmp_path / f"{shown}-photos", f"{shown}.png") for shown in ("00", "01")]
    runs = [trained_models.run(tmp_path / folder.name[:2], photos=folder) for folder in folders]
    error = refusal(tmp_path / "out", *runs)
    assert "learned sks cat from other photos" in error
    assert "--references" in error
    # What one of them has seen is not held out.
    learned = [cat(folder) for folder in folders]
    held_out = references_for(learned, photos(tmp_path / "new", "00.png", "03.png"))["sks cat"]
    assert "1 of 2 reference photos were trained on" in held_out.notes[0]
    same = photos(tmp_path / "copy", "00.png")
    assert references_for([learned[0], cat(same)])["sks cat"].photos


MODELS = {"a": "/runs/a", "b": "/runs/b"}
THREE = {"c": "/runs/c", **MODELS}
SETTINGS = {"samples": 2, "limit": 5, "seed": 0, "suites": ["dreambench"]}


def claimed(
    path: Path, models: Any = None, *, fresh: bool = False, unchanged: Any = (), **settings: Any
) -> bool:
    """Claim the folder, and draw something into it."""
    folder = EvaluationFolder(path)
    with folder.locked():
        wanted = SETTINGS | settings
        known = folder.claim(models or MODELS, wanted, fresh=fresh, unchanged=unchanged)
        if fresh:
            assert not list(folder.images.glob("*/*/*.png"))
        folder.images.mkdir(exist_ok=True)
        return known


def test_more_of_the_same_is_the_same_evaluation(tmp_path: Path) -> None:
    assert not claimed(tmp_path)
    assert claimed(tmp_path)
    assert claimed(tmp_path, THREE)
    with pytest.raises(EvaluationError, match="of c, a and b, and c is not asked for now"):
        claimed(tmp_path)
    assert claimed(tmp_path, {**THREE, "b": "/moved/b"}, unchanged=["b"])
    assert claimed(tmp_path, THREE, samples=4, unchanged=["b"])
    assert claimed(tmp_path, THREE, samples=4, limit=None)
    for less in ({"samples": 3, "limit": None}, {"samples": 4, "limit": 5}):
        with pytest.raises(EvaluationError, match="holds another evaluation"):
            claimed(tmp_path, THREE, **less)
    (tmp_path / "images").rmdir()  # a folder without images is still anybody's
    assert claimed(tmp_path, {"c": "/runs/c"}, seed=1)


@pytest.mark.parametrize(
    ("models", "settings", "words"),
    [
        (MODELS, {"seed": 1}, "seed 0, not 1"),
        (MODELS, {"suites": ["motion"]}, "suites dreambench, not motion"),
        ({"a": "/other/a", "b": "/runs/b"}, {}, "its a is /runs/a, not /other/a"),
    ],
)
def test_another_evaluation_is_refused_and_may_be_started_over(
    tmp_path: Path, models: Any, settings: Any, words: str
) -> None:
    claimed(tmp_path)
    (tmp_path / "images" / "a").mkdir()
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(EvaluationError) as caught:
        claimed(tmp_path, models, **settings)
    assert words in caught.value.message
    assert "--fresh" in str(caught.value)
    assert not claimed(tmp_path, models, fresh=True, **settings)
    assert not (tmp_path / "images" / "a").exists()
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_fresh_never_deletes_what_is_no_evaluation(tmp_path: Path) -> None:
    run = trained_models.run(tmp_path / "run")
    with pytest.raises(EvaluationError, match="other files than an evaluation's"):
        claimed(run, fresh=True)
    assert (run / "lora" / trained_models.LORA).is_file()


@pytest.mark.parametrize("state", ["", "{", "\0\0"])
def test_a_damaged_state_locks_no_evaluation(tmp_path: Path, state: str) -> None:
    (tmp_path / ".unfinished-0123456789abcdef").write_text("half")  # killed in the first write
    assert not claimed(tmp_path)
    assert not (tmp_path / ".unfinished-0123456789abcdef").exists()
    drawn = tmp_path / "images" / "a-0123" / "suite" / "01.png"
    drawn.parent.mkdir(parents=True)
    made_from = PngInfo()
    made_from.add_text("regforge", '{"prompt": "a cat"}')
    Image.new("RGB", (8, 8)).save(drawn, pnginfo=made_from)
    for fresh in (False, True):
        (tmp_path / "state.json").write_text(state)
        for mine in (tmp_path / "mine.txt", drawn.parent / "mine.png.txt"):
            mine.write_text("words")
        claimed(tmp_path, fresh=fresh)
        assert drawn.exists() != fresh
        assert (drawn.parent / "mine.png.txt").exists()
        assert (tmp_path / "mine.txt").exists()
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(EvaluationError, match="other files than an evaluation's"):
        claimed(tmp_path)  # nothing says any more that it is one


def test_a_folder_is_named_after_the_models(tmp_path: Path) -> None:
    run = trained_models.run(tmp_path / "teapot")
    lora = run / "lora" / trained_models.LORA
    for where in (run, run / "lora", lora, str(run)):
        assert default_folder([where]) == Path("evaluations/teapot")
    assert default_folder([run, "me/mug-lora"]) == Path("evaluations/teapot-mug-lora")
    many = [f"me/{'x' * 30}-{number}" for number in range(4)]
    assert default_folder(many) == Path(f"evaluations/{'x' * 30}-0-and-3-more")


def test_references_are_the_photos_that_were_trained_on(tmp_path: Path) -> None:
    found = find_references(cat())
    assert [path.name for path in found.photos] == [f"{n:02d}.png" for n in range(5)]
    assert (found.held_out, found.notes) == (False, [])
    assert {image.mode for image in found.images()} == {"RGB"}
    small = found.copy_small(tmp_path / "small")
    assert [path.name for path in small] == [f"{n:02d}.webp" for n in range(5)]
    twice = find_references(cat(photos(tmp_path / "photos", "00.png", "01.png", "00.png")))
    assert [path.name for path in twice.photos] == ["0-00.png", "1-01.png"]
    assert twice.notes == ["2-00.png shows the same as another reference photo and is left out."]
    (tmp_path / "clear").mkdir()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear" / "0.png")
    (image,) = find_references(cat(tmp_path / "clear")).images()
    assert image.getpixel((0, 0)) == (255, 255, 255)  # transparent photos lie on white


def test_held_out_photos_that_were_trained_on_are_named(tmp_path: Path) -> None:
    trained_on = photos(tmp_path / "trained", "00.png", "01.png", "02.png")
    # Saved again by another program: other bytes, the same pixels.
    again = tmp_path / "again"
    again.mkdir()
    Image.open(CAT / "02.png").convert("RGB").save(again / "a.bmp")
    others = photos(tmp_path / "others", "03.png", "04.png")
    some = photos(tmp_path / "some", "03.png", "01.png")
    for known, given, held_out, words in (
        (trained_on, others, True, None),
        (trained_on, some, True, "1 of 2 reference photos were trained on (1-01.png)"),
        (trained_on, again, False, "All reference photos were trained on"),
        (None, again, True, "are not here"),
    ):
        found = find_references(cat(known), given)
        assert found.held_out == held_out
        assert len(found.notes) == (words is not None)
        assert words is None or words in found.notes[0]


def planned(where: Path, **settings: Any) -> tuple[ModelPlan, ModelPlan]:
    """What the base model and the model draw."""
    numbers = {"samples": 2, "class_samples": 3} | settings
    base, tuned = plan_evaluation([where], EvaluationSettings(**numbers)).models
    return base, tuned


def test_all_models_draw_the_same_from_the_same_noise(tmp_path: Path) -> None:
    base, tuned = planned(trained_models.run(tmp_path / "run"))
    assert (base.model.name, tuned.model.name) == ("base model", "run")
    assert len(tuned.images) == (25 + 12) * 2 + 3
    seeds, others = ([each.seed for each in plan.images] for plan in (base, tuned))
    assert seeds == others
    assert len(set(seeds)) == len(seeds)
    assert tuned.images[0].prompt == "a photo of a sks cat on a beach"
    assert base.images[0].prompt == "a photo of a cat on a beach"
    # Encoders know what a cat is, and not what sks is.
    assert {each.caption for each in tuned.images[:2]} == {"a photo of a cat on a beach"}
    of_class = [each for each in tuned.images if each.question is None]
    assert {each.prompt for each in of_class} == {"a photo of a cat"}
    assert len({each.file for each in tuned.images}) == len(tuned.images)


def test_some_samples_are_drawn_without_the_identifier_too(tmp_path: Path) -> None:
    run = trained_models.run(tmp_path / "run")
    base, tuned = planned(run)
    assert list(base.without) == []
    asked = {(each.question, each.number): each for each in tuned.images}
    assert len(tuned.without) == 25 + 12
    for each in tuned.without:
        same = asked[each.question, each.number]
        assert (each.seed, each.caption) == (same.seed, same.caption)
        assert (each.prompt, each.number) == (same.prompt.replace("sks ", ""), 0)
    assert len({each.file for each in tuned.drawn}) == len(tuned.drawn)
    assert list(planned(run, lift_samples=0)[1].without) == []
    assert len(planned(run, lift_samples=9)[1].without) == 2 * (25 + 12)


def test_another_seed_is_other_noise_and_weights_or_settings_other_folders(tmp_path: Path) -> None:
    run = trained_models.run(tmp_path / "run")
    for first, second in zip(planned(run)[1].images, planned(run, seed=1)[1].images, strict=True):
        assert first.seed != second.seed
        assert first.file != second.file
    folders = [planned(run)[1].folder, planned(run, steps=9)[1].folder]
    trained_models.lora(run / "lora" / trained_models.LORA, value=2.0)
    folders.append(planned(run)[1].folder)
    assert len(set(folders)) == 3
    assert planned(run)[1].folder == folders[2]


def test_images_of_the_class_are_spread_over_the_prompts_that_ask_for_it(tmp_path: Path) -> None:
    run, mine = trained_models.run(tmp_path / "run"), tmp_path / "mine.yaml"
    mine.write_text("prompts: ['a {} on ice']\nclass_prompts: ['a {} in the rain', 'an old {}']\n")

    def of_class(suites: list[Any], count: int) -> list[str]:
        images = planned(run, suites=suites, class_samples=count)[1].images
        return [each.prompt for each in images if each.question is None]

    assert of_class([mine], 3) == ["a cat in the rain", "a cat in the rain", "an old cat"]
    assert of_class([mine], 1) == ["a cat in the rain"]
    # Benchmarks that are asked together share the images.
    shared = ["a photo of a cat", "a cat in the rain", "an old cat"]
    assert of_class(["tinyworld", mine], 3) == shared
    # A limit takes the first prompts of each benchmark.
    images = planned(run, limit=2, samples=1)[1].images
    suites = [each.question.suite for each in images if each.question]
    assert suites == ["tinyworld"] * 2 + ["tinyworld-motion"] * 2


def test_one_guidance_scale_for_all_and_a_note_on_other_sizes(tmp_path: Path) -> None:
    runs = [
        trained_models.run(tmp_path / name, validation={"guidance_scale": scale})
        for name, scale in (("a", 4.0), ("b", 7.5))
    ]
    plan = plan_evaluation(runs, EvaluationSettings())
    assert (plan.settings["guidance_scale"], plan.pool.guidance_scale) == (4.0, 4.0)
    assert "the recipe of b names another one" in plan.notes[0]
    for models, given, scale in ((runs, 3.0, 3.0), (runs[:1], None, 4.0)):
        plan = plan_evaluation(models, EvaluationSettings(guidance_scale=given))
        assert (plan.settings["guidance_scale"], plan.notes) == (scale, [])
    runs = [
        trained_models.run(tmp_path / str(size), data={"resolution": size})
        for size in (64, 96, None)
    ]
    (note,) = plan_evaluation(runs, EvaluationSettings()).notes
    assert "64 at 64, 96 at 96 and None at its own size" in note


def snapshot(run: Path, step: int, value: float) -> None:
    folder = run / "snapshots" / f"step-{step:06d}"
    trained_models.lora(folder / "lora" / trained_models.LORA, value=value)


def opened(run: Path) -> list[PersonalizedModel]:
    return open_all([run], EvaluationSettings(snapshots=True))


def test_snapshots_come_before_what_the_run_became(tmp_path: Path) -> None:
    run = trained_models.run(tmp_path / "run")
    for step in (40, 5, 20):
        snapshot(run, step, value=step)
    (run / "snapshots" / "step-000050").mkdir()  # not whole
    names = [model.name for model in opened(run)]
    assert names == ["run-step-5", "run-step-20", "run-step-40", "run"]
    snapshot(run, 60, value=1.0)  # the same weights as the result's
    assert [model.name for model in opened(run)] == names
    going_on = trained_models.run(tmp_path / "going on", finished=None)
    snapshot(going_on, 5, value=5)
    assert [model.steps for model in opened(going_on)] == [5]


def test_scores_of_snapshots_are_ordered_by_step(tmp_path: Path) -> None:
    run = trained_models.run(tmp_path / "run")
    for step in (20, 40):
        snapshot(run, step, value=step)
    plans = plan_evaluation([run], EvaluationSettings(snapshots=True)).models
    dino = {"base model": 0.1, "run-step-20": 0.3, "run-step-40": 0.5, "run": 0.4}
    results = [
        ModelResult(each.model, [], {"dino": Interval(dino[each.model.name], 0, 1, 4)})
        for each in plans
    ]
    assert [each.model.steps for each in over_steps(results)["run"]] == [0, 20, 40, 60]
    assert "DINO after 40 (0.500)" in best_steps(results)[0]
    # Each pair of twenty snapshots would be 190 tables.
    assert [each.model.name for each in worth_comparing(results)] == ["base model", "run"]
    names = [each.model.name for each in worth_comparing(results[:-1])]
    assert names == ["base model", "run-step-40"]
    only_runs = [each for each in results if each.model.name in ("base model", "run")]
    assert over_steps(only_runs) == {}
    assert best_steps(only_runs) == []


def test_a_lora_in_the_hubs_cache_is_no_snapshot(tmp_path: Path) -> None:
    cache = tmp_path / "models--her--mug" / "snapshots"
    files = [trained_models.lora(cache / name / "mug.safetensors") for name in ("a" * 40, "b" * 40)]
    results = [
        ModelResult(open_model(file, base="embedded/tinyworld", name=file.parent.name), [])
        for file in files
    ]
    assert worth_comparing(results) == results
    assert over_steps(results) == {}
