"""Reads recipes: what is peculiar to dataset recipes and to training recipes, and nothing else.

`reading` does the work. Here is which keys each kind has, and which of their values are paths.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from regforge.files import expanded
from regforge.hub.address import HubAddress
from regforge.recipe.checks import findings, is_embedded
from regforge.recipe.defaults import is_benchmark, shipped_template
from regforge.recipe.models import Recipe
from regforge.recipe.named_files import is_file, is_folder, names_recipe
from regforge.recipe.reading import Form, child, read_any_recipe, read_recipe
from regforge.recipe.training import TrainingRecipe
from regforge.recipe.training_checks import training_findings, uses_regularization
from regforge.recipe.yaml_nodes import Entry, Node

SECTIONS = ("subject", "prompts", "render", "curate", "dataset")
TRAINING_SECTIONS = (
    "subject",
    "regularization",
    "method",
    "data",
    "optimizer",
    "validation",
    "checkpoint",
    "hub",
)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a dataset recipe and check all of it.

    Args:
        path: The YAML file.
        overrides: Settings such as `prompts.count=50`, laid over the file one after the other.
            Their values are YAML, and relative paths in them start at the current directory.

    Returns:
        The recipe, with what it extends carried out and all paths absolute.

    Raises:
        RecipeError: Something is wrong; the error names everything that is, and where.
    """
    return read_recipe(_DATASET, Path(path), overrides, [_TRAINING])


def load_training_recipe(path: str | Path, overrides: Sequence[str] = ()) -> TrainingRecipe:
    """Read a training recipe and check all of it.

    Args:
        path: The YAML file.
        overrides: Settings such as `optimizer.steps=50`; see `load_recipe`.

    Returns:
        The recipe, with what it extends carried out and all paths absolute.

    Raises:
        RecipeError: Something is wrong; the error names everything that is, and where. Where
            `regularization.dataset` is a recipe, what is wrong with that comes afterwards.
    """
    recipe = read_recipe(_TRAINING, Path(path), overrides, [_DATASET])
    dataset_recipe_of(recipe)
    return recipe


def load_any_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe | TrainingRecipe:
    """Read a recipe of either kind, by the keys that it has; see `load_recipe`.

    Raises:
        RecipeError: Something is wrong; the error names everything that is, and where.
    """
    recipe = read_any_recipe([_DATASET, _TRAINING], Path(path), overrides)
    if isinstance(recipe, TrainingRecipe):
        dataset_recipe_of(recipe)
    assert isinstance(recipe, Recipe | TrainingRecipe)
    return recipe


def dataset_recipe_of(recipe: TrainingRecipe) -> Recipe | None:
    """The dataset recipe that `regularization.dataset` names; None if it names a dataset.

    Raises:
        RecipeError: Something is wrong with it; the places are those in its own file.
    """
    named = recipe.regularization.dataset
    if named is None or not uses_regularization(recipe) or not names_recipe(named):
        return None
    return load_recipe(named)


# ------------------------------------------------------------------------------- dataset recipes


def _spell_out_slots(root: Node) -> None:
    """Make `color` into `{name: color}`, so that `--set prompts.slots.0.values=...` works."""
    for slot in _items(child(root, "prompts", "slots")):
        if isinstance(slot.content, str):
            slot.content = {"name": Entry(slot.place, Node(slot.place, slot.content))}


def _resolve_paths(root: Node) -> None:
    for location in (("subject", "images"), ("prompts", "messages"), ("prompts", "vocabulary")):
        _make_absolute(child(root, *location))
    template = child(root, "prompts", "template")
    if template and isinstance(template.content, str) and not shipped_template(template.content):
        _make_absolute(template)
    for slot in _items(child(root, "prompts", "slots")):
        _make_absolute(child(slot, "file"))
    for entry in _items(child(root, "prompts", "exclude")):
        if not is_benchmark(str(entry.content)):
            _make_absolute(entry)
    _resolve_dataset(child(root, "prompts", "import", "dataset"))
    _resolve_model(child(root, "curate", "alignment", "model"))
    _resolve_model(child(root, "render", "vae"))
    renderer = child(root, "render", "renderer")
    if renderer is None or renderer.content != "hosted":
        _resolve_model(child(root, "render", "model"))
    for lora in _loras(child(root, "render", "lora")):
        _resolve_model(child(lora, "path"))


def _loras(node: Node | None) -> Iterator[Node]:
    """The LoRAs, each made into `{path: ...}`, and what holds them into a list."""
    if node is None or node.content is None:
        return
    if not isinstance(node.content, list):
        node.content = [Node(node.place, node.content)]
    for each in node.content:
        if isinstance(each.content, str):
            each.content = {"path": Entry(each.place, Node(each.place, each.content))}
        yield each


# ------------------------------------------------------------------------------ training recipes


def _resolve_training_paths(root: Node) -> None:
    _make_absolute(child(root, "subject", "images"))
    dataset = child(root, "regularization", "dataset")
    if dataset and names_recipe(str(dataset.content)):
        _make_absolute(dataset)
    else:
        _resolve_dataset(dataset)
    _resolve_model(child(root, "base_model"))


# ----------------------------------------------------------------------------------------- paths


def _resolve_dataset(node: Node | None) -> None:
    """Make a dataset on this machine an absolute path, so that nothing takes it for a Hub address.

    An address becomes `user/name`: a page's URL could hold a password.
    """
    if node is None or not isinstance(node.content, str):
        return
    address = HubAddress.parse(node.content)
    here = node.place.folder / node.content
    if address is None or is_file(here) or is_folder(here):
        _make_absolute(node)
    else:
        node.content = str(address)


def _resolve_model(node: Node | None) -> None:
    """Make a model on this machine an absolute path; a name of the Hub stays one.

    Unless such a folder lies beside the recipe.
    """
    if node is None or not isinstance(node.content, str) or not node.content.strip():
        return
    is_name = is_embedded(node.content) or HubAddress.parse(node.content) is not None
    here = node.place.folder / node.content
    if not is_name or is_file(here) or is_folder(here):
        _make_absolute(node)


def _items(node: Node | None) -> Iterator[Node]:
    if node and isinstance(node.content, list):
        yield from node.content


def _make_absolute(node: Node | None) -> None:
    if node and isinstance(node.content, str) and node.content:
        path = node.place.folder / expanded(node.content)
        node.content = os.path.abspath(path)  # noqa: PTH100 (keeps symbolic links)


_DATASET = Form(
    name="dataset recipe",
    command="`regforge run`",
    model=Recipe,
    sections=(*((each,) for each in SECTIONS), ("prompts", "llm")),
    stand_ins={
        ("name",): "unnamed",
        ("subject",): {"class_noun": "thing", "kind": "object"},
        ("subject", "class_noun"): "thing",
    },
    telling=frozenset(SECTIONS) - {"subject"},
    spell_out=_spell_out_slots,
    resolve_paths=_resolve_paths,
    findings=findings,
)

_TRAINING = Form(
    name="training recipe",
    command="`regforge train`",
    model=TrainingRecipe,
    sections=tuple((each,) for each in TRAINING_SECTIONS),
    stand_ins={
        ("name",): "unnamed",
        ("subject",): {"class_noun": "thing", "images": "."},
        ("subject", "class_noun"): "thing",
        ("subject", "images"): ".",
    },
    telling=frozenset((*TRAINING_SECTIONS, "base_model")) - {"subject"},
    resolve_paths=_resolve_training_paths,
    findings=training_findings,
)
