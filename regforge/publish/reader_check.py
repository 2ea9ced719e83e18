"""Loads a folder the way a reader of the dataset will, and compares what they get with what it is.

`datasets.load_dataset` takes a folder and a repository of the Hub by the same rules, so what comes
out here comes out there.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

from regforge.dataset.card import Survey, card_configs, card_features
from regforge.dataset.card_parts import Card
from regforge.dataset.parquet import count_rows, read_file, read_schema
from regforge.errors import RegforgeError
from regforge.journal import without_secrets
from regforge.records import ImageRow, arrow_schema, file_suffix, image_id, without_folders
from regforge.words import first_line

_AGAIN = "Run the recipe again: {} written anew, and what is yours in the folder is kept."
_ROWS_AT_A_TIME = 16
_PLACES = ("model", "template", "reference", "language_model")


class NotPublishable(RegforgeError):
    """A dataset that a reader would not get as it is."""


@dataclass(frozen=True)
class Expected:
    """What a reader must get."""

    rows: int
    recipe_digest: str
    slots: tuple[str, ...]
    data: tuple[str, ...]  # paths of the Parquet files in the folder, in order
    content: str  # digest of the rows that the card names, see `Survey.content`


def check_card(text: str, slots: Sequence[str]) -> str:
    """Check that a card says of the files what regforge does; returns the digest that it names.

    Raises:
        NotPublishable: It does not; the message names the key.
    """
    card = Card.parse(text)
    hint = _AGAIN.format("the card is")
    if card.ours is None:
        raise NotPublishable("README.md has lost one of regforge's markers.", hint=hint)
    features = {"features": card_features(arrow_schema(slots))}
    try:
        content = str(card.front["configs"][0]["description"]).removeprefix("content ")
    except (KeyError, IndexError, TypeError):
        content = ""
    for key, expected in (("configs", card_configs(content)), ("dataset_info", features)):
        if card.front.get(key) != expected:
            what = "is not what regforge wrote" if key in card.front else "is missing"
            raise NotPublishable(
                f"README.md: `{key}` {what} in the front matter, so a reader may get other files "
                "or columns than the dataset's.",
                hint=hint,
            )
    return content


def check_files(folder: Path, expected: Expected) -> None:
    """Check that a folder's files, as `datasets` picks them, are the dataset; reads no image.

    Raises:
        NotPublishable: There are others, or fewer; or a reader would get other columns.
        ParquetError: A file is damaged.
    """
    schema = arrow_schema(expected.slots)
    for name in expected.data:
        if not read_schema(folder / name).equals(schema):
            raise NotPublishable(f"{name} has other columns.", hint=_AGAIN.format("the files are"))
    rows = sum(count_rows(folder / name) for name in expected.data)
    if rows != expected.rows:
        raise NotPublishable(
            f"The dataset holds {rows} images, and the run says that there are {expected.rows}.",
            hint=_AGAIN.format("the dataset is"),
        )
    with _reading() as (datasets, cache):
        configs = datasets.get_dataset_config_names(str(folder))
        builder = datasets.load_dataset_builder(str(folder), cache_dir=cache)
        picked = {
            str(split): [Path(path).relative_to(folder.resolve()).as_posix() for path in paths]
            for split, paths in builder.config.data_files.items()
        }
        wanted = datasets.Features.from_arrow_schema(schema)
        features = builder.info.features
    if configs != ["default"] or list(picked) != ["train"]:
        found = f"the configurations {', '.join(configs)} with the splits {', '.join(picked)}"
        raise NotPublishable(f"A reader would get {found}, not `train` alone.")
    if picked["train"] != list(expected.data):
        others = sorted(set(picked["train"]) ^ set(expected.data))
        raise NotPublishable(
            f"A reader would get {others[0]} as part of the dataset, and it is not.",
            hint="Take it out, or give it another name or folder.",
        )
    if features != wanted:
        raise NotPublishable("A reader would get other columns than the dataset's.")


def check_rows(
    folder: Path, expected: Expected, advance: Callable[[int], None] = lambda _: None
) -> list[str]:
    """Read every row as a reader does, streaming; a few are in memory at a time.

    Calls `advance` with how many rows more are done, and returns what people should know, a
    sentence each.

    Raises:
        NotPublishable: An image is not the one that its row says, or the rows are others.
    """
    import pyarrow.dataset as pads

    places: dict[str, str] = {}
    survey = Survey(expected.slots)
    # As they were written; the files' checksums are looked at.
    written = (row for name in expected.data for row in read_file(folder / name, images=False))
    last = -1
    with _reading() as (datasets, cache):
        stream = datasets.load_dataset(
            str(folder),
            split="train",
            streaming=True,
            cache_dir=cache,
            # By default pyarrow keeps all of a file that it has read ahead.
            fragment_scan_options=pads.ParquetFragmentScanOptions(
                use_buffered_stream=True, pre_buffer=False
            ),
        ).decode(False)
        batches = stream.iter(_ROWS_AT_A_TIME)
        # Ours first: of a damaged file it knows the name.
        while own := list(islice(written, _ROWS_AT_A_TIME)):
            batch: dict[str, list[Any]] = next(batches, {})
            rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
            if len(rows) != len(own):
                raise NotPublishable(f"A reader would get fewer than {expected.rows} images.")
            for row, one in zip(rows, own, strict=True):
                _check_row(row, one, expected, last)
                survey.add(one)
                last = one.index
            _refuse_secrets(rows)
            for row, column in product(rows, _PLACES):
                value = row[column]
                if value and column not in places and without_folders(value) != value:
                    places[column] = value
            advance(len(rows))
        if next(batches, None):
            raise NotPublishable(f"A reader would get more than {expected.rows} images.")
    if survey.content != expected.content:
        # A reader who has loaded what it is of would get that from the cache of `datasets`.
        raise NotPublishable(
            f"README.md: `configs` names the content {expected.content}, and that of the images "
            f"is {survey.content}.",
            hint=_AGAIN.format("the card is"),
        )
    return [
        f"The column `{column}` names a file or folder of this machine, and readers will see it: "
        f"{value}"
        for column, value in places.items()
    ]


def _check_row(row: dict[str, Any], written: ImageRow, expected: Expected, last: int) -> None:
    name, decoded = written.id, row["image"] or {}
    hint = _AGAIN.format("the dataset is")
    if written.recipe_digest != expected.recipe_digest:
        raise NotPublishable(f"Image {name} is of another recipe.", hint=hint)
    if name != image_id(expected.recipe_digest, written.index) or written.index <= last:
        raise NotPublishable(f"Image {name} is there twice, or not in its place.", hint=hint)
    image = decoded.get("bytes") or b""
    digest, file = hashlib.sha256(image).hexdigest(), f"{name}.{file_suffix(image)}"
    if digest != written.image_digest or decoded.get("path") != file:
        raise NotPublishable(f"Image {name} is not the one that was drawn.", hint=hint)
    if any(row[column] != getattr(written, column) for column in ("id", "text", "slots")):
        raise NotPublishable(f"A reader would get another row than that of image {name}.")


def _refuse_secrets(rows: Sequence[dict[str, Any]]) -> None:
    texts = [
        "\n".join(_texts({key: value for key, value in row.items() if key != "image"}))
        for row in rows
    ]
    together = "\n".join(texts)
    if without_secrets(together) == together:  # once for all: it looks through the environment
        return
    marked = (row for row, text in zip(rows, texts, strict=True) if without_secrets(text) != text)
    raise NotPublishable(
        f"The row of image {next(marked, rows[0])['id']} holds something that looks like a token "
        "or a key.",
        hint="Take it out of the recipe's captions, phrases or prompts, and run it again.",
    )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)


@contextmanager
def _reading() -> Iterator[tuple[Any, str]]:
    """Import `datasets`, quiet and with a temporary cache; its errors become NotPublishable."""
    import datasets

    shown, torch = datasets.is_progress_bar_enabled(), datasets.config.TORCH_AVAILABLE
    datasets.disable_progress_bars()
    # A stream imports torch to share a number with data loaders: seconds, and half a gigabyte.
    datasets.config.TORCH_AVAILABLE = False
    try:
        with tempfile.TemporaryDirectory(prefix="regforge-reader-") as cache:
            yield datasets, cache
    except RegforgeError:
        raise
    except Exception as error:  # whatever a reader would be shown
        reason = without_secrets(first_line(error))
        raise NotPublishable(f"A reader could not load the dataset: {reason}.") from error
    finally:
        datasets.config.TORCH_AVAILABLE = torch
        if shown:
            datasets.enable_progress_bars()
