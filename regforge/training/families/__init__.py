"""The kinds of text-to-image models that can be trained, behind one interface."""

from regforge.training.families.opening import open_family

__all__ = ["open_family"]
