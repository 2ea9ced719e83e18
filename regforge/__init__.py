"""Structured-caption regularization datasets for personalizing text-to-image models.

This module knows the version and nothing else: importing `regforge` costs nothing. The package's
layers, and which of them may import which, are in docs/architecture.md.
"""

__version__ = "0.1.0"
