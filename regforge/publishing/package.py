"""Chooses what of a dataset's folder goes to the Hub, and checks that a reader will get it whole.

Goes: regforge's own files, and what the user put beside them. Stays: hidden files, links that lead
out of the folder. Refused, before anything is uploaded: a folder whose reader would get something
else than the dataset, and text that looks like a token. What a repository holds already that is
not regforge's stays as it is.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import islice, product
from pathlib import Path, PurePosixPath
from typing import Any

from regforge.dataset.build import OUR_FILES
from regforge.dataset.card import DATA_FILES, Survey, card_configs, card_features
from regforge.dataset.card_parts import Card, merged
from regforge.dataset.store import NoDataset, count_rows, data_files, read_file, read_schema
from regforge.errors import RegforgeError
from regforge.hub import Contents, Remote
from regforge.journal import Reporter, without_secrets
from regforge.publishing import CARD, RepositoryTaken, card_of, check_other, refuse_secrets
from regforge.records import ImageRow, arrow_schema, file_suffix, image_id, without_folders
from regforge.words import first_line

# ------------------------------------------------------------------------------- what a reader gets

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
    config: str = "default"  # the configuration that it is


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


def check_files(folder: Path, all_expected: Sequence[Expected]) -> None:
    """Check that a folder's files, as `datasets` picks them, are the datasets; reads no image.

    Raises:
        NotPublishable: There are others, or fewer; or a reader would get other columns.
        ParquetError: A file is damaged.
    """
    with _reading() as (datasets, _):
        found = datasets.get_dataset_config_names(str(folder))
    if found != [each.config for each in all_expected]:
        raise NotPublishable(f"A reader would get the configurations {', '.join(found)}.")
    for each in all_expected:
        _check_config(folder, each)


def _check_config(folder: Path, expected: Expected) -> None:
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
        builder = datasets.load_dataset_builder(str(folder), expected.config, cache_dir=cache)
        picked = {
            str(split): [Path(path).relative_to(folder.resolve()).as_posix() for path in paths]
            for split, paths in builder.config.data_files.items()
        }
        wanted = datasets.Features.from_arrow_schema(schema)
        features = builder.info.features
    if list(picked) != ["train"]:
        found = f"the splits {', '.join(picked)}"
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
            expected.config,
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
            _refuse_secret_rows(rows)
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


def _refuse_secret_rows(rows: Sequence[dict[str, Any]]) -> None:
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


# ----------------------------------------------------------------------------- what goes to the Hub


_TEXT_SAMPLE = 8192
_ALSO_READ = frozenset({"dataset_infos.json", ".huggingface.yaml"})
"""What `datasets` reads besides README.md and the data, if a repository has it."""


@dataclass
class Package:
    """A dataset that is ready for the Hub, or one each of several subjects."""

    name: str  # the repository's, without its owner
    files: Mapping[str, Path | bytes]  # by path in the repository
    expected: Sequence[Expected]
    notes: list[str]  # what people should know, a sentence each
    hub_notes: list[str] = field(default_factory=list)  # about what was in the repository before

    @property
    def own_files(self) -> list[str]:
        """Files that are not regforge's: the user put them there."""
        return [path for path in self.files if not _is_ours(path)]

    def check(self, reporter: Reporter) -> None:
        """Load the dataset as its readers will, all of it.

        Raises:
            NotPublishable: A reader would get something else.
            ParquetError: A file is damaged.
        """
        with _staged(self.files, {}, self.name) as folder:
            check_files(folder, self.expected)
            rows = sum(each.rows for each in self.expected)
            with reporter.task("checking", rows, "images") as task:
                for each in self.expected:
                    self.notes += check_rows(folder, each, task.advance)

    def contents(self, remote: Remote) -> Contents:
        """What the repository shall hold, given what it holds; see `hub.publish_files`.

        Raises:
            RepositoryTaken: It holds something that regforge did not make; with our card beside
                it, `load_dataset` would give its readers our dataset. Or several subjects, where
                this is one.
            NotPublishable: A file there would change what a reader gets.
        """
        theirs = card_of(remote, self.files, "dataset")
        several = [path for path in remote.files if _of_subject(path) != path]
        if several and all(_of_subject(path) == path for path in self.files):
            raise RepositoryTaken(
                f"The repository holds the datasets of several subjects, such as {several[0]}.",
                hint="Publish the folder in which their runs lie, or choose another repository.",
            )
        card, self.hub_notes = merged(_text_of(self.files[CARD]), theirs)
        stale = [path for path in remote.files if _is_ours(path) and path not in self.files]
        others = {
            path: (remote.read(path) or b"") if path in _ALSO_READ else b""
            for path in remote.files
            if path not in self.files and path not in stale
        }
        files: dict[str, Path | bytes] = {**self.files, CARD: card.encode()}
        if others:
            with _staged(files, others, self.name) as folder:
                check_files(folder, self.expected)
        return Contents(files, tuple(sorted(stale)))


def _is_ours(path: str) -> bool:
    path = _of_subject(path)
    return path in OUR_FILES or fnmatchcase(path, DATA_FILES)


def _of_subject(path: str) -> str:
    """A path of one of several subjects, as it is in that subject's dataset; others unchanged."""
    return re.sub(r"^[^/]+/dataset/", "", path)


def _text_of(file: Path | bytes) -> str:
    content = file if isinstance(file, bytes) else file.read_bytes()
    return content.decode(errors="replace")


def pack(
    folder: Path, name: str, *, rows: int, recipe_digest: str, slots: tuple[str, ...]
) -> Package:
    """Choose the files of a dataset, and check those that are read in an instant.

    Raises:
        NoDataset: The data is not complete.
        NotPublishable: Something in it would make a reader's dataset wrong, or is a secret.
        StorageError, ParquetError: A file cannot be read.
    """
    notes: list[str] = []
    data = tuple(path.relative_to(folder).as_posix() for path in data_files(folder))
    files = dict(_publishable(folder, notes))
    if CARD not in files:
        raise NoDataset(f"{folder} has no card.", hint="Run the recipe again: it is written anew.")
    for path, file in files.items():
        _refuse_secrets(path, file)
    card = _text_of(files[CARD])
    content = check_card(card, slots)
    front = Card.parse(card).front
    _check_license(front.get("license"), front, files)
    return Package(name, files, [Expected(rows, recipe_digest, slots, data, content)], notes)


def together(parts: Mapping[str, Package], index: Path, repo_id: str) -> Package:
    """The datasets of several subjects as one: a configuration each, and files as runs have them.

    `index` is the card over them, see `write_index`.
    """
    files: dict[str, Path | bytes] = {CARD: index}
    _refuse_secrets(CARD, index)
    expected, notes = [], []
    for name, part in parts.items():
        files |= {f"{name}/dataset/{path}": file for path, file in part.files.items()}
        call = f'load_dataset("{repo_id}", "{name}", split'
        card = re.sub(r'load_dataset\("[^"]*", split', call, _text_of(part.files[CARD]))
        files[f"{name}/dataset/{CARD}"] = card.encode()
        expected += [
            replace(each, config=name, data=tuple(f"{name}/dataset/{path}" for path in each.data))
            for each in part.expected
        ]
        notes += part.notes
    return Package(repo_id.partition("/")[2], files, expected, list(dict.fromkeys(notes)))


def check_license(folder: Path, license_id: str) -> None:
    """Check that a dataset's card says all that a licence needs, before that becomes its own.

    Raises:
        NotPublishable: It does not say which one `other` is.
    """
    files = dict(_publishable(folder, []))
    if CARD in files:
        _check_license(license_id, Card.parse(_text_of(files[CARD])).front, files)


def _check_license(license_id: Any, front: Mapping[str, Any], files: Iterable[str]) -> None:
    where = f"dataset/{CARD}; the link is a URL, or LICENSE with that file beside the card"
    check_other(license_id, front, where, NotPublishable)
    link = front.get("license_link", "")
    if license_id == "other" and "://" not in link and link not in files:
        raise NotPublishable(
            f"{CARD}: `license_link` names {link}, and there is no such file beside it.",
            hint="Put it into the dataset's folder, or give a URL.",
        )


def _publishable(folder: Path, notes: list[str]) -> Iterator[tuple[str, Path]]:
    """The files that go, by name; what stays is noted."""
    inside = folder.resolve()
    for top, folders, files in os.walk(folder):
        here = Path(top)
        linked = [name for name in folders if (here / name).is_symlink()]
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in linked)
        for name in sorted([*linked, *files]):
            path = here / name
            if name.startswith("."):
                continue
            if path.is_file() and path.resolve().is_relative_to(inside):
                yield path.relative_to(folder).as_posix(), path
            else:
                what = "a link" if path.is_symlink() else "no file"
                notes.append(f"{path.relative_to(folder)} is not published: it is {what}.")


def _refuse_secrets(name: str, path: Path) -> None:
    try:
        with path.open("rb") as stream:
            if b"\0" in stream.read(_TEXT_SAMPLE):
                return  # an image, Parquet: not written by hand
            stream.seek(0)
            lines = (raw.decode(errors="replace") for raw in stream)
            refuse_secrets(name, lines, NotPublishable)
    except OSError as error:
        raise NotPublishable(f"{path} cannot be read: {error.strerror or error}.") from error


@contextmanager
def _staged(
    files: Mapping[str, Path | bytes], others: Mapping[str, bytes], name: str
) -> Iterator[Path]:
    """Lay out a temporary folder of links that looks as the repository will.

    Its name is the repository's: `datasets` looks for a script of that name.
    """
    with tempfile.TemporaryDirectory(prefix="regforge-staged-") as top:
        folder = Path(top).resolve() / name
        for path, content in {**others, **files}.items():
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                continue  # no file of anybody's dataset
            try:
                _put(content, folder / path)
            except OSError as error:
                raise NotPublishable(
                    f"{path} cannot stand beside what else the repository would hold."
                ) from error
        yield folder


def _put(content: Path | bytes, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        target.write_bytes(content)
        return
    try:
        target.symlink_to(content.resolve())
    except OSError:  # Windows lets only some people make links
        shutil.copyfile(content, target)
