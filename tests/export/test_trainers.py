"""What holds for several trainers, or is asked of each in the same way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from export_samples import (
    CAPTIONS,
    HARD_FOLDERS,
    PHOTO_CAPTIONS,
    export,
    layout,
    material,
    ours,
    photo_folder,
    theirs,
)
from trainer_rules import RULES, Seen, without_spaces_after_commas

from regforge.exporting import Exported
from regforge.exporting.trainer import ExportError, Trainer
from regforge.exporting.writing import TRAINERS

BY_NAME = {trainer.name: trainer for trainer in TRAINERS}
KOHYA, DREAMBOOTH, CUSTOM, SIMPLE, ONE, AI, *_ = TRAINERS

# ------------------------------------------------------------------------------------ reading back

OPTIONS: dict[str, Any] = {"class_noun": "teapot", "family": "sd1", "resolution": 64}


@pytest.fixture(scope="module", params=HARD_FOLDERS)
def hard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An export for every trainer, into a folder with a name that has to be quoted."""
    top = tmp_path_factory.mktemp("hard")
    photos = photo_folder(top / "photos", PHOTO_CAPTIONS)
    return export(
        theirs(CAPTIONS), top / request.param, *RULES, subject=photos, check=True, **OPTIONS
    )


@pytest.mark.parametrize("name", RULES)
def test_each_image_is_read_with_its_caption(hard: Exported, name: str) -> None:
    (target,) = [each for each in hard.targets if each.name == name]
    assert target.checked
    assert not target.checked.differences
    seen = RULES[name](hard.out, target.command)
    captions, photo_captions = (list(layout(hard.out, f).values()) for f in ("images", "subject"))
    assert sorted(captions) == sorted(CAPTIONS)
    if name == "ai-toolkit":
        captions = [without_spaces_after_commas(caption) for caption in captions]
        photo_captions = [without_spaces_after_commas(caption) for caption in photo_captions]
    one_for_all = [None] * 6 if name == "diffusers-dreambooth" else captions
    no_captions = name in ("diffusers-dreambooth", "custom-diffusion")
    ordered = [what for _, what in sorted(seen.items())]
    assert [caption for caption, is_reg, _ in ordered if is_reg] == one_for_all
    assert [caption for caption, is_reg, _ in ordered if not is_reg] == (
        [None] * 2 if no_captions else photo_captions
    )
    assert {shown for _, is_reg, shown in ordered if is_reg} == {1}
    photo_repeats = 1 if name == "ai-toolkit" else 3
    assert {shown for _, is_reg, shown in ordered if not is_reg} == {photo_repeats}
    assert seen == read_back(BY_NAME[name], hard.out)


def read_back(trainer: Trainer, out: Path) -> Seen:
    """What our reader finds, as the rules give it."""
    found = list(trainer.read(out, out))
    assert len({one.path for one in found}) == len(found)
    tidied = without_spaces_after_commas if trainer is AI else str
    captions = [None if one.caption is None else tidied(one.caption) for one in found]
    return {
        one.path: (caption, one.regularization, one.repeats)
        for one, caption in zip(found, captions, strict=True)
        if one.repeats
    }


@pytest.mark.parametrize(("images", "photos"), [(40, 4), (41, 4), (3, 4), (1, 1), (4, 4), (7, 3)])
def test_every_image_is_used_and_about_as_often_as_a_photo(
    tmp_path: Path, out: Path, images: int, photos: int
) -> None:
    folder = photo_folder(tmp_path / "photos", [f"sks teapot {n}" for n in range(photos)])
    done = export(ours(images), out, *RULES, subject=folder, check=True, family="sd1")
    assert not done.differs
    for target in done.targets:
        seen, loaded = RULES[target.name](out, target.command), read_back(BY_NAME[target.name], out)
        shown = [n for _, is_reg, n in seen.values() if is_reg]
        assert len(shown) == images
        if target.name == "diffusers-dreambooth":  # which images come again, nobody knows
            assert sum(n for _, is_reg, n in loaded.values() if is_reg) == sum(shown)
            assert loaded.keys() == seen.keys()
        else:
            assert loaded == seen
        if target.name == "kohya":
            assert sum(shown) - images < photos  # hardly more than once each
        if target.name == "onetrainer":
            others = [n for _, is_reg, n in seen.values() if not is_reg]
            assert sum(shown) == pytest.approx(sum(others))


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        (KOHYA, ["num_repeats = 2", "--prior_loss_weight=0.5", "'--dataset_config=/mnt/x y/ko"]),
        (DREAMBOOTH, ["--prior_loss_weight=0.5", "/mnt/x y/diffusers-dreambooth/class_images"]),
        (CUSTOM, ["--prior_loss_weight=0.5", "\n/mnt/x y/custom-diffusion/images/00002.png\n"]),
        (SIMPLE, ['"repeats": 3', "train 'env=/mnt/x y/simpletuner'"]),
        (
            ONE,
            [
                '"balancing": 2.0',
                '"balancing": 10.0',
                "'/mnt/x y/onetrainer/config.json'",
                '"loss_weight": 0.5',
            ],
        ),
        (AI, ["reg_weight: 0.5", "python run.py '/mnt/x y/ai-toolkit/train.yaml'"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_without_photos_and_elsewhere(out: Path, trainer: Trainer, said: list[str]) -> None:
    """Repeats are computed for 5 photos."""
    options = OPTIONS | {"root": "/mnt/x y", "prior_weight": 0.5}
    done = export(theirs(["a teapot"] * 10), out, trainer.name, check=True, **options)
    assert not done.differs
    (target,) = done.targets
    text = target.command + "".join((out / name).read_text() for name in target.files)
    assert [each for each in said if each not in text] == []
    own_folders = trainer in (DREAMBOOTH, CUSTOM)
    folder = f"{trainer.name}/instance_images" if own_folders else "subject"
    assert f"into /mnt/x y/{folder} " in target.notes[-1]
    found = list(trainer.read(out, PurePosixPath("/mnt/x y")))
    assert [one.regularization for one in found] == [True] * 10


# -------------------------------------------------------------------------- what is edited by hand

MISSING = object()
Change = Callable[[str], str | None]


def replaced(old: str, new: str) -> Change:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change


def entry(key: str, value: object) -> Change:
    """Another value in the entry of the regularization images, in JSON or YAML."""

    def change(text: str) -> str:
        content = yaml.safe_load(text)  # JSON is YAML
        is_job = isinstance(content, dict)
        entries = content["config"]["process"][0]["datasets"] if is_job else content
        if value is MISSING:
            del entries[1][key]
        else:
            entries[1][key] = value
        return json.dumps(content)

    return change


BACKENDS, CONCEPTS = "simpletuner/multidatabackend.json", "onetrainer/concepts.json"
JOB, SCRIPT = "ai-toolkit/train.yaml", "diffusers-dreambooth/train.sh"
CLASS_IMAGES, CUSTOM_CONCEPT = "diffusers-dreambooth/class_images", "custom-diffusion/concepts.json"
CAPTION = "images/00002.txt"

SLIPS: list[tuple[Trainer, str, Change, str]] = [
    *(
        (trainer, file, entry(key, value), rf"\b{key}\b")
        for trainer, file, key, value in (
            (AI, JOB, "is_regularization", True),
            (AI, JOB, "is_reg", "yes please"),
            (AI, JOB, "caption_ext", "caption"),
            (AI, JOB, "num_repeats", 0),
            (AI, JOB, "buckets", True),
            (AI, JOB, "resolution", MISSING),
            (SIMPLE, BACKENDS, "caption_strategy", "textfiles"),
            (SIMPLE, BACKENDS, "caption_strategy", None),
            (SIMPLE, BACKENDS, "is_regularization", True),
            (SIMPLE, BACKENDS, "repeats", -1),
            (SIMPLE, BACKENDS, "repeats", "2"),
            (SIMPLE, BACKENDS, "crop_style", "middle"),
            (SIMPLE, BACKENDS, "dataset_type", "images"),
            (ONE, CONCEPTS, "type", "PRIOR"),
            (ONE, CONCEPTS, "balancing_strategy", "SAMPLE"),
            (ONE, CONCEPTS, "balancing_strategy", MISSING),
            (ONE, CONCEPTS, "balancing", "many"),
            (ONE, CONCEPTS, "loss_weight", None),
            (ONE, CONCEPTS, "__version", 0),
            (ONE, CONCEPTS, "repeats", 3),
            (ONE, CONCEPTS, "text", {"prompt_source": "sample"}),
        )
    ),
    (SIMPLE, BACKENDS, entry("instance_data_dir", "/elsewhere"), "does not lie in"),
    (ONE, CONCEPTS, entry("path", "/elsewhere"), "does not lie in"),
    (SIMPLE, BACKENDS, entry("id", "text-embeds"), "id of its own"),
    (SIMPLE, BACKENDS, replaced('"default": true', '"default": false'), "text_embeds has to be"),
    (SIMPLE, CAPTION, lambda _: "one\ntwo\n", "2 lines"),
    (ONE, CAPTION, lambda _: "one\ntwo\n", "2 lines"),
    (SIMPLE, CAPTION, lambda _: None, r"00002\.txt is missing"),
    (ONE, CAPTION, lambda _: None, r"00002\.txt is missing"),
    (AI, CAPTION, lambda _: "a [trigger] teapot", "would train 'a  teapot' instead"),
    (AI, CAPTION, lambda _: "", "is empty"),
    (AI, JOB, replaced('job: "extension"', 'job: "train"'), "job"),
    (AI, JOB, replaced("  datasets:", "  data:"), "datasets"),
    (AI, JOB, replaced("job:", "\tjob:"), "no job"),
    (DREAMBOOTH, f"{CLASS_IMAGES}/x.txt", lambda _: "a teapot", r"x\.txt is no image"),
    (
        DREAMBOOTH,
        f"{CLASS_IMAGES}/00001.png",
        lambda _: None,
        r"num_class_images=6, but .* holds 5",
    ),
    (DREAMBOOTH, SCRIPT, replaced("--class_prompt", "--klass_prompt"), "class_prompt"),
    (
        CUSTOM,
        "custom-diffusion/caption.txt",
        lambda text: text + "one too many\n",
        r"images\.txt lists 6 and caption\.txt 7",
    ),
    (CUSTOM, "custom-diffusion/images/x.png", lambda _: "", "holds 7 images"),
    (CUSTOM, CUSTOM_CONCEPT, replaced("class_prompt", "klass_prompt"), "class_prompt"),
    (CUSTOM, CUSTOM_CONCEPT, replaced('/data/t/custom-diffusion"', '/else"'), "does not lie in"),
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("pristine")
    photos = photo_folder(top / "photos", PHOTO_CAPTIONS)
    captions = ["a teapot"] * 6
    export(theirs(captions), top / "out", *RULES, subject=photos, root="/data/t", **OPTIONS)
    return top / "out"


@pytest.mark.parametrize(("trainer", "name", "change", "said"), SLIPS)
def test_a_slip_that_the_trainer_would_pass_over_is_found(
    pristine: Path, out: Path, trainer: Trainer, name: str, change: Change, said: str
) -> None:
    shutil.copytree(pristine, out)
    path = out / name
    is_text = path.is_file() and path.suffix != ".png"
    text = change(path.read_text() if is_text else "")
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)
    with pytest.raises(ExportError, match=said):
        list(trainer.read(out, PurePosixPath("/data/t")))


# ------------------------------------------------------------------------------- notes and refusals


@pytest.mark.parametrize(
    ("trainer", "options", "number", "said"),
    [
        (AI, {"images": 100}, 0, ["The 4,000 steps of the job show each image about 20 times"]),
        (
            AI,
            {"images": 100_000},
            0,
            ["show 2,000 of the images", "uses all 100,000 regularization images"],
        ),
        (
            ONE,
            {"images": 2000, "photos": 5},
            0,
            [
                "uses all 2,000 regularization images",
                "balancing 2000, SAMPLES",
                "5 photos 400 times each (balancing 400, REPEATS)",
                "asks for 1 epoch",
            ],
        ),
        (
            DREAMBOOTH,  # two photos of 12.6 MB each, 16 GB
            {"images": 20_000, "family": "flux2-dev", "resolution": 1024},
            0,
            [
                "--repeats=635 makes",
                "uses 1,270 of the 20,000 regularization images",
                "Without --repeats it would use only the first 2",
            ],
        ),
        (
            DREAMBOOTH,
            {"captions": ["a", "b"] * 600},
            0,
            ["uses all 1,200 regularization images"],
        ),
        (
            DREAMBOOTH,
            {"captions": ["a", "b"] * 600},
            1,
            [
                'all 1,200 images share "a photo of a teapot". The 2 different captions',
                "--to custom-diffusion",
            ],
        ),
        (DREAMBOOTH, {"captions": ["a"]}, 1, ["one caption anyway"]),
    ],
)
def test_notes_say_what_is_used_and_what_is_lost(
    trainer: Trainer, options: dict[str, Any], number: int, said: list[str]
) -> None:
    note = trainer.plan(material(**options)).notes[number]
    assert [each for each in said if each not in note] == []


@pytest.mark.parametrize(
    ("trainer", "options", "said"),
    [
        (AI, {"root": Path("/a ${HOME}")}, "would replace"),
        (AI, {"root": Path("/[name]")}, "would replace"),
        *(
            (CUSTOM, {"root": Path(f"/a{separator}b")}, "line separator")
            for separator in ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\n")
        ),
        (SIMPLE, {"prior_weight": 0.0}, "prior weight of 0"),
        (DREAMBOOTH, {"family": "flux1-dev", "resolution": 1000}, "takes multiples of 16"),
        (DREAMBOOTH, {"family": "sana", "resolution": 1008}, "takes multiples of 32"),
    ],
)
def test_what_a_trainer_cannot_do_is_refused(
    trainer: Trainer, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ExportError, match=said):
        trainer.plan(material(**options))


@pytest.mark.parametrize(
    ("trainer", "caption"),
    [
        (AI, "a [name] teapot"),
        (AI, "a [trigger] teapot"),
        *(
            (BY_NAME["imagefolder"], date)
            for date in (
                "2024-01-01",
                "2024-01-01 10:00",
                "2024-01-01T10:00:00.5Z",
                "2024-01-01 10:00:00+01",
            )
        ),
    ],
)
def test_a_caption_that_a_trainer_cannot_keep_is_refused(
    out: Path, trainer: Trainer, caption: str
) -> None:
    with pytest.raises(ExportError, match=r"would (be replaced|read it as a time)"):
        export(theirs(["a teapot", caption]), out, trainer.name, class_noun="teapot")
    assert not out.exists()
