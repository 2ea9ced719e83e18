"""Trainers that train on photos and regularization images alike: musubi-tuner and others."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from export_samples import (
    CAPTIONS,
    HARD_FOLDERS,
    PHOTO_CAPTIONS,
    contents,
    export,
    layout,
    material,
    ours,
    photo_folder,
    theirs,
)
from mixing_rules import MIXING, arguments_of, pipe_config
from trainer_rules import Seen

from regforge.exporting import Exported
from regforge.exporting.trainer import ExportError, Trainer
from regforge.exporting.writing import TRAINERS
from regforge.recipe.pipelines import FAMILIES, NAMED

BY_NAME = {trainer.name: trainer for trainer in TRAINERS}
MUSUBI, PIPE, ZIP, SYNTH, COMFY = (BY_NAME[name] for name in MIXING)
OPTIONS: dict[str, Any] = {"class_noun": "teapot", "resolution": 64}
OPTIONS |= {"base_model": "Tongyi-MAI/Z-Image"}
DATASET, TRAIN, ROWS = "dataset.toml", "diffusion-pipe/train.toml", "diffsynth/metadata.jsonl"


def read_back(trainer: Trainer, out: Path) -> Seen:
    """What our reader finds, as the rules give it."""
    found = list(trainer.read(out, out))
    assert len({one.path for one in found}) == len(found)
    return {one.path: (one.caption, one.regularization, one.repeats) for one in found}


# ------------------------------------------------------------------------------------ reading back


@pytest.fixture(scope="module", params=HARD_FOLDERS)
def hard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    top = tmp_path_factory.mktemp("hard")
    photos = photo_folder(top / "photos", PHOTO_CAPTIONS)
    options = OPTIONS | {"subject": photos, "check": True}
    return export(theirs(CAPTIONS), top / request.param, *MIXING, **options)


@pytest.mark.parametrize("name", MIXING)
def test_each_image_is_read_with_its_caption(hard: Exported, name: str) -> None:
    (target,) = [each for each in hard.targets if each.name == name]
    assert target.checked
    assert not target.checked.differences
    seen = MIXING[name](hard.out, target.command)
    assert seen == read_back(BY_NAME[name], hard.out)
    ordered = [what for _, what in sorted(seen.items())]
    for folder, is_reg, repeats in (("images", True, 1), ("subject", False, 3)):
        expected = [(caption, is_reg, repeats) for caption in layout(hard.out, folder).values()]
        assert [what for what in ordered if what[1] == is_reg] == expected


@pytest.mark.parametrize(
    ("images", "photos", "weight", "whole"),
    [
        (12, 4, 1, (12, 12)),
        (13, 4, 1, (13, 12)),
        (3, 4, 1, (3, 4)),
        (2, 4, 1, (4, 4)),
        (1, 1, 1, (1, 1)),
        (7, 3, 1, (7, 6)),
        (12, 4, 0.5, (12, 24)),
        (4, 4, 2, (8, 4)),
    ],
)
def test_an_epoch_shows_as_many_of_each_as_the_prior_weight_says(
    tmp_path: Path, out: Path, images: int, photos: int, weight: float, whole: tuple[int, int]
) -> None:
    """musubi-tuner and ComfyUI have one whole number of repeats for a folder, the others not."""
    folder = photo_folder(tmp_path / "photos", [f"sks teapot {n}" for n in range(photos)])
    options = OPTIONS | {"subject": folder, "prior_weight": weight, "check": True}
    done = export(ours(images), out, *MIXING, **options)
    assert not done.differs
    for target in done.targets:
        seen = MIXING[target.name](out, target.command)
        assert seen == read_back(BY_NAME[target.name], out)
        assert len(seen) == images + photos
        shown = tuple(
            int(sum(n for _, is_reg, n in seen.values() if is_reg == kind))
            for kind in (True, False)
        )
        if target.name == "diffusion-pipe":  # int(images * num_repeats) of a size
            assert shown[0] == pytest.approx(shown[1] * weight, abs=1)
        elif target.name in ("musubi-tuner", "comfyui"):
            assert shown == whole
        else:
            most = max(images, photos * weight)
            assert shown == (most, most / weight)
            unequal = len({each[1:] for each in seen.values()}) - 2
            assert target.notes[0].count("on average") == unequal
        assert f"mix {shown[1]:,} to {shown[0]:,}" in target.notes[0]
        assert any("Prior weight" in note for note in target.notes) == (weight != 1)


# ------------------------------------------------------------------------------------- base models

TRAINED = [
    (trainer, family)
    for trainer in (MUSUBI, PIPE, SYNTH)
    for family in FAMILIES
    if trainer.trains(family)
]


@pytest.mark.parametrize(
    ("trainer", "family"), TRAINED, ids=lambda value: value.name if hasattr(value, "name") else ""
)
def test_the_scripts_know_all_arguments(trainer: Trainer, family: Any) -> None:
    plan = trainer.plan(material(family=family.name))
    scripts = arguments_of(plan.command)
    assert len(scripts) == (3 if trainer is MUSUBI else 1)
    adapter = family.adapter.rpartition("/")[2]
    merged = adapter in plan.command + "".join(plan.files.values()) if adapter else False
    told = [note for note in plan.notes if "distilled to few steps" in note]
    assert len(told) == family.distilled
    assert any("merge" in note for note in told) == merged
    if trainer is MUSUBI:
        train = scripts[2]
        assert train.network_module.removeprefix("networks.lora_") in plan.command.split("/")[2]
        assert all((train.dit, train.vae, train.text_encoder, train.output_name, train.sdpa))


@pytest.mark.parametrize(
    ("trainer", "family", "base_model", "said"),
    [
        (MUSUBI, "flux2-klein-base-9b", None, ["--model_version=klein-base-9b", "of-00004"]),
        (MUSUBI, "krea2-turbo", None, ["--dit=weights/raw.safetensors"]),
        (MUSUBI, "z-image", "/m/mine.safetensors", ["--dit=/m/mine.safetensors"]),
        (PIPE, "sdxl", None, ['checkpoint_path = "weights/stable-diffusion-xl-base-1.0.safeten']),
        (PIPE, "sdxl", "/m/mine.safetensors", ['checkpoint_path = "/m/mine.safetensors"']),
        (PIPE, "qwen-image", None, ['diffusers_path = "weights/Qwen-Image"']),
        (PIPE, "qwen-image", "/m/qwen", ['diffusers_path = "/m/qwen"']),
        (PIPE, "z-image-turbo", None, ['merge_adapters = ["weights/zimage_turbo_training']),
        (PIPE, "flux1-schnell", None, ['fuse_adapters = [{path = "weights/FLUX.1-schnell-']),
        (PIPE, "chroma", "/m/c.safetensors", ['transformer_path = "/m/c.safetensors"']),
        (SYNTH, "sd1", "me/mine", ["me/mine:unet/", "me/mine:tokenizer/", "=unet"]),
        (SYNTH, "z-image", "/m/mine", ["=Tongyi-MAI/Z-Image:transformer/", "SOURCE=huggingface"]),
        (SYNTH, "z-image-turbo", None, ["--preset_lora_path=weights/zimage_turbo_training"]),
        (SYNTH, "ernie-image", None, ["=PaddlePaddle/ERNIE-Image:transformer/"]),
    ],
)
def test_the_command_and_the_files_go_by_the_base_model(
    trainer: Trainer, family: str, base_model: str | None, said: list[str]
) -> None:
    base = base_model or NAMED[family].repository
    plan = trainer.plan(material(family=family, base_model=base))
    text = plan.command + "".join(plan.files.values())
    assert [each for each in said if each not in text] == []
    if base not in text:  # then a note says what stands for it
        assert any(base in note for note in plan.notes)


def test_what_is_predicted_is_said_or_refused() -> None:
    """NoobAI's SDXL, for one, predicts the velocity."""
    facts = {"family": "sdxl", "base_model": "Laxhar/noobai-XL-Vpred-1.0", "predicts_v": True}
    assert "v_pred = true" in PIPE.plan(material(**facts)).files[TRAIN]
    with pytest.raises(ExportError, match="velocity"):
        SYNTH.plan(material(**facts))


@pytest.mark.parametrize("family", [family for family in FAMILIES if PIPE.trains(family)])
def test_the_model_has_what_diffusion_pipe_reads_of_it(tmp_path: Path, family: Any) -> None:
    """`self.model_config[...]` in its models/."""
    needed = {
        "sdxl": {"checkpoint_path"},
        "sd3": {"diffusers_path"},
        "flux": {"diffusers_path"},
        "qwen_image": {"diffusers_path"},
        "hidream": {"diffusers_path", "llama3_path"},
        "chroma": {"diffusers_path", "transformer_path"},
        "lumina_2": {"transformer_path", "llm_path", "vae_path"},
        "anima": {"transformer_path", "llm_path", "vae_path"},
        "hunyuan_image": {"transformer_path", "vae_path", "text_encoder_path", "byt5_path"},
    }
    comfy = {"diffusion_model", "vae", "text_encoders"}
    needed |= dict.fromkeys(("z_image", "flux2", "krea2", "ernie_image", "ideogram4"), comfy)
    plan = PIPE.plan(material(family=family.name, root=tmp_path))
    for name, text in plan.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    model = pipe_config(plan.command)[0]["model"]
    assert needed[model["type"]] <= model.keys()


# ---------------------------------------------------------------------- what is refused, or changed


@pytest.mark.parametrize("trainer", [MUSUBI, PIPE, ZIP, SYNTH, COMFY])
def test_a_prior_weight_of_nothing_is_refused(trainer: Trainer) -> None:
    with pytest.raises(ExportError, match="prior weight of 0"):
        trainer.plan(material(family="z-image", prior_weight=0.0))


@pytest.mark.parametrize("trainer", [MUSUBI, PIPE, SYNTH])
def test_a_side_below_the_smallest_bucket_is_refused(trainer: Trainer) -> None:
    trainer.plan(material(family="z-image", resolution=32))
    with pytest.raises(ExportError, match="24 pixels"):
        trainer.plan(material(family="z-image", resolution=24))


@pytest.mark.parametrize("root", ["/a[1]", "/a*", "/what?"])
def test_a_folder_that_musubi_would_take_for_a_pattern_is_refused(root: str) -> None:
    with pytest.raises(ExportError, match="pattern"):
        MUSUBI.plan(material(family="z-image", root=Path(root)))


@pytest.mark.parametrize(
    ("trainer", "caption"),
    [
        (ZIP, "a [trigger] teapot"),
        (COMFY, "embedding:teapot"),
        (COMFY, "a pot, embedding:x of clay"),
    ],
)
def test_a_caption_that_would_be_another_is_refused(
    out: Path, trainer: Trainer, caption: str
) -> None:
    with pytest.raises(ExportError, match="would be replaced"):
        export(theirs(["a teapot", caption]), out, trainer.name, class_noun="teapot")
    assert not out.exists()


@pytest.mark.parametrize(
    ("identifier", "noun"),
    [
        ("sks", "tea.pot.png"),
        ("sks", "x" * 300),
        ("/", "Pot"),
        ("--help", "pot"),
        ("12_", "7_pot"),
        ("SKS\u2028", "pot\n.webp"),
    ],
)
def test_any_name_makes_two_folders_for_comfyui(
    out: Path, photos: Path, identifier: str, noun: str
) -> None:
    """As many images as photos: the folders may have the same name but for the subject's."""
    options = {"identifier": identifier, "class_noun": noun, "subject": photos, "check": True}
    done = export(theirs(CAPTIONS[:4]), out, "comfyui", **options)
    assert not done.differs
    (target,) = done.targets
    folders = [path.name for path in (out / "comfyui").iterdir()]
    assert len({name.casefold() for name in folders}) == 2
    assert MIXING["comfyui"](out, target.command) == read_back(COMFY, out)


def test_parentheses_keep_their_place_in_captions(out: Path) -> None:
    captions = ["a (white) teapot", "(a:1.3) b)", "a \\( b \\) c\\", "plain"]
    done = export(theirs(captions), out, "comfyui", class_noun="teapot", check=True)
    assert not done.differs
    seen = MIXING["comfyui"](out, done.targets[0].command)
    assert sorted(str(caption) for caption, _, _ in seen.values()) == sorted(captions)
    assert sorted(layout(out).values()) == sorted(captions)
    assert "| `comfyui/1_teapot/" in (out / "README-comfyui.md").read_text()
    (out / "comfyui/1_teapot/00001.txt").unlink()
    again = export(theirs(captions), out, "comfyui", class_noun="teapot", check=True)
    assert "has caption ''" in "".join(again.targets[0].checked.differences)  # type: ignore[union-attr]


def test_the_zip_has_the_same_bytes_each_time_and_photos_when_they_come(
    tmp_path: Path, out: Path, photos: Path
) -> None:
    found = []
    for folder in (out, tmp_path / "again"):
        done = export(ours(8), folder, "zip", check=True)
        assert not done.differs
        (name,) = done.targets[0].files
        found.append((folder / name).read_bytes())
    assert name == "zip/regularization-only.zip"
    assert found[0] == found[1]
    done = export(ours(8), out, "zip", subject=photos, check=True)
    assert not done.differs
    with zipfile.ZipFile(out / "zip/dataset.zip") as archive:
        names = archive.namelist()
    assert len(names) == 2 * (8 + 4 * 2)
    assert {name.split("-")[0] for name in names} == {"regularization", "subject"}
    assert any("trigger word empty" in note for note in done.targets[0].notes)


def test_more_images_than_civitai_takes_are_said() -> None:
    few, many = (ZIP.plan(material(number)).notes for number in (500, 501))
    assert [any("--limit 498" in note for note in notes) for notes in (few, many)] == [False, True]


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        (MUSUBI, ["num_repeats = 4", "'--dataset_config=/mnt/x y/musubi-tuner/dataset.toml'"]),
        (PIPE, ["num_repeats = 4.0", "'--config=/mnt/x y/diffusion-pipe/train.toml'"]),
        (ZIP, ["/mnt/x y/zip/regularization-only.zip"]),
        (SYNTH, ["'--dataset_base_path=/mnt/x y'", "--dataset_repeat=400"]),
        (COMFY, ["cp -r '/mnt/x y/comfyui' "]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_without_photos_and_elsewhere(out: Path, trainer: Trainer, said: list[str]) -> None:
    """Repeats are computed for 5 photos."""
    options = OPTIONS | {"root": "/mnt/x y", "prior_weight": 0.5}
    done = export(theirs(["a teapot"] * 10), out, trainer.name, check=True, **options)
    assert not done.differs
    (target,) = done.targets
    texts = [(out / name).read_text() for name in target.files if not name.endswith(".zip")]
    assert [each for each in said if each not in target.command + "".join(texts)] == []
    assert "--subject" in target.notes[-1]
    found = list(trainer.read(out, PurePosixPath("/mnt/x y")))
    assert [one.regularization for one in found] == [True] * 10


# -------------------------------------------------------------------------- what is edited by hand

Edit = Callable[[Path], object]


def replaced(name: str, old: str, new: str) -> Edit:
    def edit(out: Path) -> None:
        text = (out / name).read_text()
        assert old in text
        (out / name).write_text(text.replace(old, new))

    return edit


def removed(name: str) -> Edit:
    return lambda out: (out / name).unlink()


SLIPS: list[tuple[Trainer, Edit, str]] = [
    (MUSUBI, replaced(f"musubi-tuner/{DATASET}", "num_r", "is_reg = true\nnum_r"), "is_reg"),
    (MUSUBI, replaced(f"musubi-tuner/{DATASET}", "= 3", "= 3.5"), "num_repeats"),
    (MUSUBI, replaced(f"musubi-tuner/{DATASET}", "batch", "image_dir = 1\nbatch"), "image_dir"),
    (MUSUBI, replaced(f"musubi-tuner/{DATASET}", "cache/subject", "cache/regularization"), "cache"),
    (MUSUBI, replaced(f"musubi-tuner/{DATASET}", 'caption_extension = ".txt"', ""), "caption_ext"),
    (MUSUBI, replaced(f"musubi-tuner/{DATASET}", "/data/t/images", "/else"), "does not lie in"),
    (MUSUBI, replaced(f"musubi-tuner/{DATASET}", "[general]", "[general"), "no TOML"),
    (PIPE, replaced(f"diffusion-pipe/{DATASET}", "num_repeats = 3.0", "repeats = 3"), "repeats"),
    (PIPE, replaced(f"diffusion-pipe/{DATASET}", "num_repeats = 3.0", "num_repeats = 0"), "num_r"),
    (PIPE, replaced(f"diffusion-pipe/{DATASET}", "[1]", "[1, 33]"), "frame_buckets"),
    (PIPE, replaced(TRAIN, "save_every_n_steps", "save_every"), "save_every_n_steps"),
    (PIPE, replaced(TRAIN, "/data/t/diffusion-pipe/dataset", "/else/dataset"), "does not lie in"),
    (PIPE, lambda out: (out / "images/captions.json").write_text("{}"), "captions.json"),
    (ZIP, lambda out: (out / "zip/dataset.zip").write_bytes(b"PK"), "cannot be read"),
    (SYNTH, replaced(ROWS, '"prompt"', '"text"'), "prompt"),
    (SYNTH, replaced(ROWS, "images/00002.png", "images/00009.png"), "00009.png is missing"),
    (SYNTH, replaced(ROWS, '{"image": "images/00003', "images/00003"), "no JSON"),
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("pristine")
    photos = photo_folder(top / "photos", PHOTO_CAPTIONS)
    options = OPTIONS | {"subject": photos, "root": "/data/t"}
    export(theirs(["a teapot"] * 6), top / "out", *MIXING, **options)
    return top / "out"


@pytest.mark.parametrize(("trainer", "edit", "said"), SLIPS)
def test_a_slip_that_the_trainer_would_stop_at_or_pass_over_is_found(
    pristine: Path, out: Path, trainer: Trainer, edit: Edit, said: str
) -> None:
    shutil.copytree(pristine, out)
    edit(out)
    with pytest.raises(ExportError, match=said):
        list(trainer.read(out, PurePosixPath("/data/t")))


def without(members: set[str]) -> Edit:
    """The zip without some of its members."""

    def edit(out: Path) -> None:
        with zipfile.ZipFile(out / "zip/dataset.zip") as archive:
            held = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(out / "zip/dataset.zip", "w") as archive:
            for name in held.keys() - members:
                archive.writestr(name, held[name])

    return edit


CHANGES: list[tuple[str, Edit, str]] = [
    ("musubi-tuner", removed("images/00002.txt"), "images/00002.png: musubi-tuner would not load"),
    ("diffusion-pipe", removed("subject/01.txt"), "subject/01.jpg: diffusion-pipe would not load"),
    ("zip", removed("zip/dataset.zip"), "zip/dataset.zip: missing"),
    ("zip", without({"subject-01-2.txt"}), "refuse it"),
    (
        "zip",
        without({"subject-01-1.txt", "subject-01-1.jpg"}),
        "subject-01-1.jpg is not in it as it should be",
    ),
    ("comfyui", removed("comfyui/1_teapot/00002.png"), "images/00002.png: ComfyUI would not load"),
    (
        "comfyui",
        lambda out: (out / "comfyui/1_teapot").rename(out / "comfyui/teapot"),
        "comfyui/teapot/00001.png: is loaded, but was not exported",
    ),
]


@pytest.mark.parametrize(("name", "edit", "said"), CHANGES)
def test_the_check_finds_what_is_no_longer_there(
    pristine: Path, out: Path, name: str, edit: Edit, said: str
) -> None:
    shutil.copytree(pristine, out)
    edit(out)
    before = contents(out)
    options = OPTIONS | {"subject": pristine.parent / "photos", "root": "/data/t", "check": True}
    done = export(theirs(["a teapot"] * 6), out, name, **options)
    assert contents(out) == before
    checked = done.targets[0].checked
    assert checked
    assert said in "\n".join(checked.differences)
