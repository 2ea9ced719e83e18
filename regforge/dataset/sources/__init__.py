"""Captioned images from anywhere: a run, a folder, an archive, the Hub; ours or somebody else's."""

from regforge.dataset.sources.interface import CannotOpen, CaptionedDataset
from regforge.dataset.sources.opening import open_dataset

__all__ = ["CannotOpen", "CaptionedDataset", "open_dataset"]
