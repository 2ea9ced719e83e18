"""Going through images by eye: what is looked at, what is decided, and the page to do it on."""

from regforge.reviewing.deciding import Reviewed, apply_decisions, copy_cleaned, export_decisions
from regforge.reviewing.material import Material, open_material

__all__ = [
    "Material",
    "Reviewed",
    "apply_decisions",
    "copy_cleaned",
    "export_decisions",
    "open_material",
]
