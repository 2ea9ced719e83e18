"""ai-toolkit.

`Job` restates, at commit 27a03a9 of ostris/ai-toolkit: `get_config` (toolkit/config.py, with its
own rule for numbers), `preprocess_dataset_raw_config` and `DatasetConfig` (config_modules.py,
911-1113), the walk of `AiToolkitDataset.__init__` (data_loader.py, 428-450),
`CaptionProcessingDTOMixin` (dataloader_mixins.py, 317-457) and `inject_trigger_into_prompt`
(prompt_utils.py, 715-748).
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainer_layout import (
    CAPTIONS,
    HARD_FOLDERS,
    PHOTO_CAPTIONS,
    material,
    read,
    write,
)

from regforge.export.ai_toolkit import JOB, TRAINER, trained
from regforge.export.trainer import ExportError

DEFAULTS = {"caption_ext": ".txt", "is_reg": False, "num_repeats": 1, "trigger_word": None}


class Loader(yaml.SafeLoader):
    """Takes `1e5` for a number, as ai-toolkit does."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)|\.[0-9_]+(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


class Job:
    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\$\{[^}]+\}", text)  # would be looked up in the environment
        job: dict[str, Any] = yaml.load(text, Loader=Loader)
        assert job["job"] == "extension"
        name = job["config"]["name"]
        self.job = json.loads(json.dumps(job).replace("[name]", name))
        self.process = self.job["config"]["process"][0]
        self.datasets = [
            DEFAULTS | dataset | {"resolution": resolution}
            for dataset in self.process["datasets"]
            for resolution in dataset.get("resolution", [512])
        ]

    def files(self, dataset: dict[str, Any]) -> list[Path]:
        found = [
            path
            for path in Path(dataset["folder_path"]).rglob("*")
            if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"}
            and not any(part.startswith(".") for part in path.parts)
        ]
        return sorted(found) * dataset["num_repeats"]

    def captions(self, dataset: dict[str, Any]) -> list[str]:
        extension = "." + dataset["caption_ext"].lstrip(".")
        found = []
        for path in self.files(dataset):
            with path.with_suffix(extension).open(encoding="utf-8") as file:
                caption = ", ".join(file.read().split(","))
            for word in ("[name]", "[trigger]"):
                caption = caption.replace(word, "")
            found.append(caption)
        return found


@pytest.mark.parametrize("folder", HARD_FOLDERS)
def test_ai_toolkit_reads_each_image_with_its_caption(tmp_path: Path, folder: str) -> None:
    made_from = material(tmp_path / folder, prior_weight=0.5, identifier="1e5")
    write(TRAINER, made_from)
    job = Job(made_from.out / JOB)
    photos, images = job.datasets
    assert job.files(images) == [
        made_from.out / "images" / image.name for image in made_from.images
    ]
    assert job.captions(images) == [trained(caption) for caption in CAPTIONS]
    assert job.captions(photos) == [trained(caption) for caption in PHOTO_CAPTIONS]
    assert (images["is_reg"], photos["is_reg"]) == (True, False)
    assert (images["resolution"], photos["resolution"]) == (64, 64)
    assert job.process["train"]["reg_weight"] == 0.5
    assert job.process["model"]["name_or_path"] == made_from.base_model
    assert job.job["config"]["name"] == "1e5-teapot-lora"


def captions_in(out: Path) -> list[str]:
    """Those of the regularization images, but for the spaces after commas."""
    job = Job(out / JOB)
    return [re.sub(r",\s*", ",", caption) for caption in job.captions(job.datasets[1])]


@pytest.mark.parametrize(
    ("old", "new"),
    [('job: "extension"', 'job: "train"'), ("  datasets:", "  data:"), ("job:", "\tjob:")],
)
def test_what_is_no_job_is_refused(tmp_path: Path, old: str, new: str) -> None:
    made_from = material(tmp_path)
    write(TRAINER, made_from)
    text = (tmp_path / JOB).read_text()
    (tmp_path / JOB).write_text(text.replace(old, new))
    with pytest.raises(ExportError, match=r"job|datasets"):
        read(TRAINER, made_from)


def test_a_space_comes_after_every_comma() -> None:
    assert trained("a, b,c") == "a,  b, c"
    assert trained("a [name] b[trigger]") == "a  b"


def test_the_notes_say_how_many_images_are_seen(tmp_path: Path) -> None:
    few = TRAINER.plan(material(tmp_path, captions=["a"] * 100)).notes[0]
    many = TRAINER.plan(material(tmp_path, captions=["a"] * 100_000)).notes[0]
    assert "The 4,000 steps of the job show each image about 20 times" in few
    assert "show 2,000 of the images" in many
    assert "uses all 100,000 regularization images" in many


@pytest.mark.parametrize("name", ["a ${HOME}", "[name]"])
def test_a_folder_whose_name_would_be_replaced_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match="would replace"):
        TRAINER.plan(material(tmp_path / name))


def test_a_caption_that_would_be_changed_is_found(tmp_path: Path) -> None:
    made_from = material(tmp_path)
    write(TRAINER, made_from)
    (tmp_path / "images" / "00001.txt").write_text("a [trigger] teapot")
    with pytest.raises(ExportError, match="would train 'a  teapot' instead"):
        read(TRAINER, made_from)
    (tmp_path / "images" / "00001.txt").write_text("")
    with pytest.raises(ExportError, match="is empty"):
        read(TRAINER, made_from)
