"""How results look in notebooks, and how pandas and datasets take them."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets
    import pandas


class Displayed:
    """A result that is printed as text, and in a notebook with an image if there is one."""

    def as_text(self) -> str:
        """For a terminal."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.as_text()

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        # IPython would take a dataclass's own repr for text.
        return {"text/plain": self.as_text(), "text/html": self._repr_html_()}

    def shown_image(self) -> Path | None:
        """The WebP or PNG that shows it at a glance."""
        return None

    def _repr_html_(self) -> str:
        return f"{self._image_html()}<pre>{html.escape(self.as_text())}</pre>"

    def _image_html(self) -> str:
        image = self.shown_image()
        if image is None or not image.is_file():
            return ""
        content = base64.b64encode(image.read_bytes()).decode()
        source = f"data:image/{image.suffix[1:]};base64,{content}"
        return f'<img src="{source}" style="max-width: 100%">\n'


class Tabular(Displayed):
    """A result that consists of rows; a notebook shows `summary` as a table."""

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """One mapping a row; `image` is the path of a file."""
        raise NotImplementedError

    def summary(self) -> Sequence[Mapping[str, Any]]:
        """Few rows that say the most."""
        return self.rows()

    def dataset(self) -> datasets.Dataset:
        """The rows as a dataset, in which images are images."""
        import datasets

        found = datasets.Dataset.from_pandas(self.to_pandas())
        return found.cast_column("image", datasets.Image()) if "image" in found.features else found

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a data frame, in which images are paths."""
        import pandas

        return pandas.DataFrame(self.rows())

    def _repr_html_(self) -> str:
        import pandas

        with pandas.option_context("display.max_colwidth", None):
            table = pandas.DataFrame(self.summary()).to_html(index=False, border=0, na_rep="")
        return f"{self._image_html()}{table}"
