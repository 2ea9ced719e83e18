"""Where the language model keeps what is expensive to compute.

Readers must treat every file there as untrusted: an interrupted or older program may have written
it.
"""

from pathlib import Path

from regforge.files import cache_folder


def cache_directory() -> Path:
    """`language-model` below regforge's cache folder (not created)."""
    return cache_folder() / "language-model"
