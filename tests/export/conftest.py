"""Where an export goes."""

from pathlib import Path

import pytest
from export_samples import photo_folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with four photos of the subject."""
    return photo_folder(tmp_path / "photos")
