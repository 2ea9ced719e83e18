"""How different two images look: LPIPS, where torchmetrics and its backbone's weights are there.

DreamBooth measures diversity by it. It is optional, because its backbone is no transformers model
and is downloaded by torchvision; without it `measures.diversity` takes the structure encoder's
vectors. The two scales cannot be compared, so results say which it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regforge.devices import pick_device
from regforge.evaluation.measures import Scores
from regforge.words import first_line

INSTALL = "DIV is not LPIPS: that needs `pip install torchmetrics torchvision`."

_WEIGHTS = "alexnet-owt-7be5be79.pth"
_BATCH = 8
_SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class Lpips:
    """Distances of pairs of images (https://arxiv.org/abs/1801.03924), backbone AlexNet.

    Attributes:
        name: What it is, and the version of what computes it.
    """

    def __init__(self, metric: Any, version: str, device: str | None) -> None:
        """Take over the loaded metric of torchmetrics; `open_lpips` makes it."""
        self.name = f"LPIPS (AlexNet, torchmetrics {version})"
        self._device = pick_device(device)
        self._net = metric.net.to(self._device).eval()

    def distances(self, images: Sequence[Image.Image], pairs: Sequence[tuple[int, int]]) -> Scores:
        """The distance of each pair.

        Args:
            images: All of one size, at least 64 pixels on each side.
            pairs: Places of those that are compared; of `measures.pairs_within`.

        Returns:
            [P], from 0 for equal images to about 1.
        """
        import torch

        found: list[float] = []
        for start in range(0, len(pairs), _BATCH):
            some = pairs[start : start + _BATCH]
            with torch.inference_mode():
                values = self._net(
                    self._pixels([images[first] for first, _ in some]),
                    self._pixels([images[second] for _, second in some]),
                    normalize=True,
                )
            found += values.flatten().tolist()
        return np.array(found, dtype=np.float64)

    def _pixels(self, images: Sequence[Image.Image]) -> Any:
        """Float32 [N, 3, H, W], 0 to 1."""
        import torch

        rows = np.stack([np.asarray(image.convert("RGB")) for image in images])
        values = torch.from_numpy(rows).to(self._device)
        return values.permute(0, 3, 1, 2).float() / 255


def open_lpips(*, device: str | None = None) -> Lpips | str:
    """Load LPIPS.

    Args:
        device: Where to compute; the best there is by default.

    Returns:
        LPIPS, or one sentence that says why it cannot be had. Its backbone (233 MB) is downloaded
        once, unless HF_HUB_OFFLINE is set.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import alexnet  # noqa: F401
    except ImportError:
        return INSTALL
    except RuntimeError as error:  # a torchvision that was built for another torch
        return f"DIV is not LPIPS: torchvision cannot be used ({first_line(error)})."
    import torch

    there = Path(torch.hub.get_dir(), "checkpoints", _WEIGHTS).is_file()
    if not there and os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return (
            f"DIV is not LPIPS: {_WEIGHTS} is not in torch.hub's cache, and HF_HUB_OFFLINE is set."
        )
    try:
        with _weights_only():
            metric = LearnedPerceptualImagePatchSimilarity(net_type="alex")
    except Exception as error:  # no network, a cut or broken download
        return f"DIV is not LPIPS: its backbone cannot be loaded ({first_line(error)})."
    return Lpips(metric, metadata.version("torchmetrics"), device)


@contextmanager
def _weights_only() -> Iterator[None]:
    """Have torch refuse code in the files it loads, which torchvision does not ask it for."""
    before = os.environ.get(_SAFE)
    os.environ[_SAFE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE]
        else:
            os.environ[_SAFE] = before
