"""LPIPS where it is there (with a stand-in for torchmetrics), and where it is not."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from regforge.evaluation import perceptual


def gray(level: int) -> Image.Image:
    return Image.new("L", (64, 64), level)


@pytest.fixture
def torchmetrics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A torchmetrics whose LPIPS is the mean absolute difference; the cache of its weights."""
    import torch

    class Net(torch.nn.Module):
        def forward(self, first: Any, second: Any, normalize: bool) -> Any:
            assert normalize
            assert 0 <= first.min() <= first.max() <= 1
            assert len(first) <= perceptual._BATCH
            return (first - second).abs().mean(dim=(1, 2, 3), keepdim=True)

    class Metric:
        def __init__(self, net_type: str) -> None:
            assert net_type == "alex"
            assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
            self.net = Net()

    for name in ("torchmetrics", "torchmetrics.image", "torchmetrics.image.lpip"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["torchmetrics.image.lpip"].LearnedPerceptualImagePatchSimilarity = Metric  # type: ignore[attr-defined]
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["torchvision.models"].alexnet = None  # type: ignore[attr-defined]
    monkeypatch.setattr(metadata, "version", lambda name: f"9 of {name}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"


def test_distances_of_pairs(torchmetrics: Path) -> None:
    torchmetrics.parent.mkdir()
    torchmetrics.touch()
    lpips = perceptual.open_lpips(device="cpu")
    assert isinstance(lpips, perceptual.Lpips)
    assert lpips.name == "LPIPS (AlexNet, torchmetrics 9 of torchmetrics)"
    images = [gray(0), gray(51), gray(255)]
    pairs = [(0, 1), (0, 2), (1, 2), *[(2, 2)] * 9]  # more than one batch
    expected = [0.2, 1.0, 0.8, *[0.0] * 9]
    assert lpips.distances(images, pairs) == pytest.approx(expected, abs=1e-6)
    assert lpips.distances(images, []).size == 0
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_nothing_is_downloaded_offline(torchmetrics: Path) -> None:
    why = perceptual.open_lpips()  # the tests set HF_HUB_OFFLINE
    assert isinstance(why, str)
    assert "HF_HUB_OFFLINE is set" in why


def test_without_torchmetrics_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", None)
    assert perceptual.open_lpips() == perceptual.INSTALL
