"""How results look: in notebooks, to pandas and datasets, and as pages for a browser."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.files import templates_folder

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


def html_page(folder: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> bytes:
    """The page of a folder of templates, in UTF-8: FOLDER.html.j2, FOLDER.css and FOLDER.js in one.

    Values are escaped, but for `Markup`. The template gets the digests of style and script, for its
    Content-Security-Policy to allow nothing else.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    source = templates_folder() / folder
    environment = Environment(
        loader=FileSystemLoader(source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    for name, suffix in (("css", "css"), ("script", "js")):
        text = (source / f"{folder}.{suffix}").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        values |= {name: Markup(text), f"{name}_digest": f"sha256-{digest}"}
    page = environment.get_template(f"{folder}.html.j2").render(**values)
    # Captions can hold what UTF-8 cannot, such as half of a surrogate pair.
    return page.encode("utf-8", errors="replace")
