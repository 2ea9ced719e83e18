"""Writes a dataset the way a third-party trainer wants it, and reads it back the way it would."""

from regforge.exporting.checking import Exported
from regforge.exporting.writing import export_dataset

__all__ = ["Exported", "export_dataset"]
