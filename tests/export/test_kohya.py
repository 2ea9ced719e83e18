"""kohya, with its reader's rules stated once more, apart from the package.

From kohya-ss/sd-scripts, commit 48d368fa557731ad0488c07304dfeba8c07910eb: `library/config_util.py`
(ConfigSanitizer, generate_params_by_fallbacks, generate_dreambooth_subsets_config_by_subdirs) and
`library/train_util.py` (glob_images, DreamBoothDataset.__init__ and
adjust_min_max_bucket_reso_by_steps).
"""

from __future__ import annotations

import glob
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from export_samples import export, layout, ours, photo_folder
from hypothesis import given
from hypothesis import strategies as st

from regforge.export import kohya

# train_util.py:104, without the plug-ins
EXTENSIONS = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".PNG", ".JPG", ".JPEG", ".WEBP", ".BMP"]
# config_util.py:165-265
SUBSET = {"color_aug": bool, "flip_aug": bool, "num_repeats": int, "random_crop": bool}
SUBSET |= {"shuffle_caption": bool, "keep_tokens": int, "caption_prefix": str}
SUBSET |= {"caption_extension": str, "class_tokens": str, "cache_info": bool}
DATASET = {"batch_size": int, "bucket_no_upscale": bool, "bucket_reso_steps": int}
DATASET |= {"enable_bucket": bool, "max_bucket_reso": int, "min_bucket_reso": int}
DATASET |= {"resolution": int}
REGISTERED = dict[str, tuple[str, bool, int]]


def valid(table: dict[str, Any], schema: dict[str, type]) -> None:
    for key, value in table.items():
        assert key in schema, f"extra keys not allowed: {key}"
        assert type(value) is schema[key], key


def read_config(file: Path) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    config = tomllib.loads(file.read_text(encoding="utf-8"))
    assert set(config) <= {"general", "datasets"}
    general = config["general"]
    valid(general, SUBSET | DATASET)
    found = []
    for dataset in config["datasets"]:
        subsets = dataset.pop("subsets")
        valid(dataset, SUBSET | DATASET)
        for subset in subsets:
            assert "image_dir" in subset
            valid(subset, SUBSET | {"image_dir": str, "is_reg": bool})
        found.append((general | dataset, [general | dataset | subset for subset in subsets]))
    return found


def subsets_by_folders(train: Path, reg: Path) -> list[dict[str, Any]]:
    """config_util.py:607-644"""
    found = []
    for base, is_reg in ((train, False), (reg, True)):
        for folder in base.iterdir() if base.is_dir() else ():
            first, *rest = folder.name.split("_")
            found.append(
                {"image_dir": str(folder), "num_repeats": int(first), "is_reg": is_reg}
                | {"class_tokens": "_".join(rest), "caption_extension": ".txt"}
            )
    return found


def registered(subsets: list[dict[str, Any]]) -> REGISTERED:
    """train_util.py:1946-2184: path -> (caption, whether regularization, repeats)."""
    data: REGISTERED = {}
    waiting: list[tuple[str, str, int]] = []
    train = 0
    for subset in subsets:
        repeats = subset.get("num_repeats", 1)
        paths = set()
        for extension in EXTENSIONS:
            folder = glob.escape(subset["image_dir"])
            paths |= set(glob.glob(os.path.join(folder, "*" + extension)))  # noqa: PTH118, PTH207
        for path in sorted(paths):
            caption_file = Path(os.path.splitext(path)[0] + subset["caption_extension"])  # noqa: PTH122
            caption = subset.get("class_tokens", "")
            if caption_file.is_file():
                with caption_file.open(encoding="utf-8") as stream:
                    lines = stream.readlines()
                assert lines, "caption file is empty"
                caption = lines[0].strip()
            if subset.get("is_reg", False):
                waiting.append((path, caption, repeats))
            else:
                train += repeats
                data[path] = (caption, False, repeats)
    count, first = 0, True
    while waiting and count < train:
        for path, caption, repeats in waiting:
            if first:
                data[path] = (caption, True, repeats)
                count += repeats
            else:
                caption, is_reg, so_far = data[path]
                data[path] = (caption, is_reg, so_far + 1)
                count += 1
            if count >= train:
                break
        first = False
    return data


def as_kohya_sees(out: Path) -> REGISTERED:
    ((_, subsets),) = read_config(out / "kohya.toml")
    return {
        Path(path).relative_to(out).as_posix(): what for path, what in registered(subsets).items()
    }


@pytest.mark.parametrize(("images", "photos"), [(40, 4), (41, 4), (3, 4), (1, 1), (4, 4)])
def test_kohya_uses_every_image_with_its_caption(
    tmp_path: Path, out: Path, images: int, photos: int
) -> None:
    folder = photo_folder(tmp_path / "photos", [f"sks teapot {n}" for n in range(photos)])
    done = export(ours(images), out, subject=folder, check=True)
    assert not done.differs
    seen = as_kohya_sees(out)
    assert {name: caption for name, (caption, is_reg, _) in seen.items() if is_reg} == {
        f"images/{name}": caption for name, caption in layout(out).items()
    }
    assert {name: caption for name, (caption, is_reg, _) in seen.items() if not is_reg} == {
        f"subject/{name}": caption for name, caption in layout(out, "subject").items()
    }
    repeats = [times for _, is_reg, times in seen.values() if is_reg]
    assert min(repeats) >= 1
    assert sum(repeats) - images < photos  # hardly more than once each

    # Our reader agrees with the rules above, down to the repeats.
    read_back = {each.path: each for each in kohya.TRAINER.read(out, out)}
    assert {
        name: (each.caption, each.regularization, each.repeats) for name, each in read_back.items()
    } == seen


def test_the_folders_say_the_same_as_the_configuration(photos: Path, out: Path) -> None:
    export(ours(40), out, subject=photos)
    by_folders = registered(subsets_by_folders(out / "kohya" / "train", out / "kohya" / "reg"))
    seen = as_kohya_sees(out)
    assert sorted(by_folders.values()) == sorted(seen.values())
    for name in ("kohya/reg/1_teapot/00001.webp", "kohya/train/10_sks teapot/01.jpg"):
        assert (out / name).stat().st_nlink >= 2


@pytest.mark.parametrize("repeats", [1, 4, 7, 10, 23])
def test_other_repeats_are_read_as_kohya_does(photos: Path, out: Path, repeats: int) -> None:
    export(ours(40), out, subject=photos)
    config = out / "kohya.toml"
    config.write_text(config.read_text().replace("num_repeats = 10", f"num_repeats = {repeats}"))
    seen = as_kohya_sees(out)
    read_back = {each.path: each.repeats for each in kohya.TRAINER.read(out, out) if each.repeats}
    assert read_back == {name: times for name, (_, _, times) in seen.items()}


def test_the_note_says_what_kohya_would_have_left_out(photos: Path, out: Path) -> None:
    done = export(ours(40), out, subject=photos)
    note = done.targets[0].notes[0]
    numbers = re.search(r"num_repeats=(\d+) it would use the first (\d+) of them", note)
    assert numbers
    config = out / "kohya.toml"
    config.write_text(config.read_text().replace("num_repeats = 10", f"num_repeats = {numbers[1]}"))
    seen = as_kohya_sees(out)
    assert sum(is_reg for _, is_reg, _ in seen.values()) == int(numbers[2])
    assert "num_repeats=10 is written for 4 photos" in note


@pytest.mark.parametrize("resolution", [8, 63, 64, 96, 512, 768, 1000, 1024, 1536])
def test_buckets_are_such_as_kohya_takes(out: Path, resolution: int) -> None:
    done = export(ours(4), out, resolution=resolution)
    ((dataset, _),) = read_config(out / "kohya.toml")
    step, side = dataset["bucket_reso_steps"], dataset["resolution"]
    assert dataset["enable_bucket"] is True
    assert step % 64 == 0  # train_network.py:175
    assert dataset["min_bucket_reso"] % step == dataset["max_bucket_reso"] % step == 0
    assert dataset["min_bucket_reso"] <= side <= dataset["max_bucket_reso"]
    assert side == max(resolution, 64)
    (said,) = re.findall(r"trained at (\d+) x", " ".join(done.targets[0].notes)) or [side]
    assert int(said) == int(side // step) * step  # model_util.py:1322


@pytest.mark.parametrize(
    "noun",
    [
        '6" pot',
        "chef's pot",
        "back\\slash",
        "a/b",
        "..",
        "both \" and '",
        "café",
        "茶壶",
        "x" * 300,
    ],
)
def test_any_class_noun_and_folder_survive(tmp_path: Path, photos: Path, noun: str) -> None:
    out = tmp_path / "out \"quoted\" 'dir' [1]"
    done = export(ours(8), out, class_noun=noun, identifier="s'k\"s", subject=photos, check=True)
    assert not done.differs
    ((_, subsets),) = read_config(out / "kohya.toml")
    assert [subset["class_tokens"] for subset in subsets] == [f"s'k\"s {noun}", noun]
    assert len(as_kohya_sees(out)) == 12
    assert {path.name for path in (out / "kohya").iterdir()} == {"train", "reg"}


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_is_a_toml_string(text: str) -> None:
    assert tomllib.loads(f"x = {kohya.toml_string(text)}\ny = 1") == {"x": text, "y": 1}
