"""What holds for each trainer that reads folders of images with a caption beside each."""

from pathlib import Path, PurePosixPath

import pytest
from trainer_layout import captions_of, material, read, write

from regforge.export import ai_toolkit, onetrainer, simpletuner
from regforge.export.trainer import Trainer

TRAINERS = {"simpletuner": simpletuner, "onetrainer": onetrainer, "ai-toolkit": ai_toolkit}
BALANCES = ("simpletuner", "onetrainer")
"""Trainers that are told to repeat the photos; ai-toolkit alternates by itself."""


@pytest.fixture(params=TRAINERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def trainer(name: str) -> Trainer:
    return TRAINERS[name].TRAINER  # type: ignore[no-any-return]


def test_it_is_read_back(tmp_path: Path, name: str, trainer: Trainer) -> None:
    made_from = material(tmp_path)
    write(trainer, made_from)
    regularization, photos = read(trainer, made_from)
    assert [(one.path, one.caption, one.repeats) for one in regularization] == [
        (f"images/{image.name}", image.caption, 1) for image in made_from.images
    ]
    repeats = 3 if name in BALANCES else 1
    assert [(one.path, one.caption, one.repeats) for one in photos] == [
        (f"subject/{photo.name}", photo.caption, repeats) for photo in made_from.photos
    ]


def test_without_photos_and_elsewhere(tmp_path: Path, trainer: Trainer) -> None:
    made_from = material(tmp_path, photos=(), root=PurePosixPath("/mnt/x"))
    assert "/mnt/x/subject" in write(trainer, made_from).notes[-1]
    regularization, photos = read(trainer, made_from)
    assert [one.caption for one in regularization] == captions_of(made_from.images)
    assert photos == []
