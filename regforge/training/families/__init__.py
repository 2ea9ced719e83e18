"""The kinds of text-to-image models that can be trained, behind one interface."""

from regforge.training.families.opening import find_base_model, open_family

__all__ = ["find_base_model", "open_family"]
