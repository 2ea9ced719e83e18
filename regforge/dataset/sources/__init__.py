"""Captioned images from anywhere: a run, a folder, an archive, the Hub; ours or somebody else's."""

from regforge.dataset.sources.opened import CaptionedDataset, open_dataset
from regforge.dataset.sources.trees import CannotOpen

__all__ = ["CannotOpen", "CaptionedDataset", "open_dataset"]
