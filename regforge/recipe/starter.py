"""The recipe to start from that `regforge init` writes: short, commented, and sound as it is.

It runs on the embedded models with nothing else installed; its comments say what to change for
real images.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from regforge import resources
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import write_atomically
from regforge.recipe.cautions import drawable
from regforge.recipe.checks import class_noun as checked
from regforge.recipe.checks import is_embedded
from regforge.recipe.defaults import LIVING_SLOTS, OBJECT_SLOTS, bank_kind
from regforge.recipe.named_files import is_folder
from regforge.recipe.prompts import Kind
from regforge.recipe.schema import SCHEMA_FILE, SCHEMA_LINE, schema_text
from regforge.recipe.yaml_nodes import Dumper

_PLACES = 8
"""How many of the places that the embedded pipeline can draw a starter lists."""


class StarterError(RegforgeError):
    """A starter recipe that cannot be written as asked."""

    exit_code = EXIT_USAGE


def starter_recipe(
    name: str,
    class_noun: str,
    *,
    kind: Kind | None = None,
    images: str | Path | None = None,
    identifier: str | None = None,
    model: str = "embedded/tinyworld",
    language_model: str | None = None,
) -> str:
    """A commented recipe.

    Args:
        name: Of the dataset.
        class_noun: What the subject is.
        kind: `object` or `living`; what the phrase banks say of the class noun if left out, and
            `object` if they do not know it.
        images: Folder with photos of the subject, from where the recipe will lie; without it,
            the recipe has no `against` set.
        identifier: The subject's rare token; `sks` if left out.
        model: What draws the images.
        language_model: What fills the slots; if left out, nobody needs to be asked.

    Returns:
        YAML with comments, which `load_recipe` takes if `images` is there.
    """
    from regforge.embedded import load_vocabulary

    known = bank_kind(class_noun)
    kind = kind or known or "object"
    embedded = is_embedded(model)
    words = load_vocabulary()
    shown = ("color", "motion", "background", "style")
    slots = {
        slot: words[slot][:_PLACES] if slot == "background" else words[slot]
        for slot in shown
        if slot != "motion" or kind == "living"
    }
    return filled_in(
        "starter.yaml.j2",
        schema_line=SCHEMA_LINE,
        name=name,
        class_noun=class_noun,
        kind=kind,
        kind_is_guessed=known is None,
        images=str(images) if images is not None else None,
        identifier=identifier or "sks",
        model=model,
        embedded=embedded,
        drawable=not embedded or drawable(class_noun),
        language_model=language_model,
        slots=slots,
        slot_names=LIVING_SLOTS if kind == "living" else OBJECT_SLOTS,
    )


def write_starter(
    path: Path,
    *,
    class_noun: str = "teapot",
    kind: Kind | None = None,
    images: Path | None = None,
    identifier: str | None = None,
    force: bool = False,
) -> Path:
    """Write a starter recipe, and beside it the schema that editors complete it from.

    Args:
        path: The recipe: `mug.yaml`, or `mug` for the same; in an existing folder, `recipe.yaml`.
        class_noun: What the subject is.
        kind: See `starter_recipe`.
        images: Folder with photos of the subject, from the current directory.
        identifier: See `starter_recipe`.
        force: Replace a recipe that is there.

    Returns:
        The recipe's path.

    Raises:
        StarterError: There is a file already, or no such folder of photos.
        StorageError: It cannot be written.
    """
    if is_folder(path):
        path = path / "recipe.yaml"
    elif path.suffix not in (".yaml", ".yml"):
        path = path.with_name(f"{path.name}.yaml")
    if path.exists() and not force:
        raise StarterError(
            f"{path} is there already.", hint="Choose another name, or replace it with --force."
        )
    if images is not None and not is_folder(images):
        raise StarterError(f"There is no folder {images}.")
    for finding in checked(class_noun, ("class_noun",)):
        raise StarterError(f"--class-noun: {class_noun!r} {finding.message}.")
    text = starter_recipe(
        _name_for(path, class_noun),
        class_noun,
        kind=kind,
        images=_from_folder(images, path.parent) if images is not None else None,
        identifier=identifier,
    )
    write_atomically(path.with_name(SCHEMA_FILE), schema_text())
    write_atomically(path, text)
    return path


def filled_in(template: str, **values: Any) -> str:
    """A template of templates/recipe with its values; the filter `yaml` quotes where need be."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resources.templates() / "recipe"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # it makes YAML and Markdown, which have other rules than HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["yaml"] = in_yaml
    return environment.get_template(template).render(values)


def in_yaml(value: Any) -> str:
    """A value as YAML in one line."""
    text = yaml.dump(
        value,
        Dumper=Dumper,
        default_flow_style=True,
        allow_unicode=True,
        width=10**6,
        sort_keys=False,
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _name_for(path: Path, class_noun: str) -> str:
    """A dataset name from the file's, or from the class noun where the file's says nothing."""
    name = path.stem if path.stem != "recipe" else f"{class_noun}-reg"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:80] or "my-dataset"


def _from_folder(path: Path, folder: Path) -> Path:
    """A path as one in that folder would write it."""
    if path.is_absolute():
        return path
    return Path(os.path.relpath(path, folder))
