"""The files that a recipe names: whether they are there, and what of them counts."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import read_file, read_object, read_text

MODEL_INDEX = "model_index.json"
"""The file that makes a folder a diffusers pipeline."""

CAPTION_SUFFIXES = (".txt", ".caption")
METADATA = ("metadata.jsonl", "metadata.csv")
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))

LEADS_OUT = "is a link that leads out of its folder, or nowhere; put the file itself there"

_LONGEST_LINE, _MOST_COLUMNS = 2**24, 1000


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; a name that no folder can have is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def pipeline_class(folder: Path) -> str | None:
    """The diffusers class of the pipeline in a folder; None where its index does not say."""
    name = read_object(folder / MODEL_INDEX).get("_class_name")
    return name if isinstance(name, str) else None


def language_models(folder: Path) -> list[str]:
    """What the pipeline in a folder calls its text encoders that are no CLIP: T5, Gemma, ..."""
    parts = (
        (n, part)
        for n, part in read_object(folder / MODEL_INDEX).items()
        if n.startswith("text_encoder")
    )
    kinds = {name: part[-1] for name, part in parts if isinstance(part, list) and part}
    return sorted(n for n, kind in kinds.items() if kind and not str(kind).startswith("CLIP"))


def names_recipe(name: str) -> bool:
    """Whether what a recipe names, of a dataset, is another recipe: a YAML file."""
    return name.lower().endswith((".yaml", ".yml"))


def phrases_in(path: Path) -> dict[int, str]:
    """The phrases of a text file, one a line, by the number of their line.

    `#` at the start of a line or after a space starts a comment.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    lines = read_text(path).splitlines()
    stripped = (re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip() for line in lines)
    return {number: line for number, line in enumerate(stripped, 1) if line}


def inside(path: Path, folder: Path) -> Path | None:
    """Where a file or folder really lies, links followed; None if that is outside of `folder`.

    A folder that somebody else has made may hold links to whatever its reader can read. Only the
    blobs count as inside to which the Hub's cache links the files of a snapshot.
    """
    try:
        real, top = path.resolve(strict=True), folder.resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # nowhere; no name of a file; a link to itself
        return None
    # <repository>/snapshots/<commit>/a.png is a link to <repository>/blobs/<digest>
    of_the_hub = top.parent.name == "snapshots" and real.parent == top.parent.parent / "blobs"
    return real if real.is_relative_to(top) or of_the_hub else None


def content_of(path: Path, folder: Path, most: int) -> bytes:
    """A whole file of a folder that somebody else may have made.

    Args:
        path: The file.
        folder: The folder that it must not lead out of.
        most: Bytes that it may have.

    Raises:
        OSError: It is none, lies elsewhere, is larger, or cannot be read.
    """
    real = inside(path, folder)
    if real is None:
        reason = f"it {LEADS_OUT}" if path.is_symlink() else "it is not there"
        raise OSError(errno.ENOENT, reason, str(path))
    return read_file(real, most)


def alike(path: str) -> str:
    """What the names of one file have in common on different systems.

    macOS writes é as two characters where others write one, and cameras write suffixes in capital
    letters. All that compares the names of images, captions and metadata compares this.
    """
    stem, suffix = posixpath.splitext(unicodedata.normalize("NFC", path))
    return stem + suffix.lower()


class ByName:
    """Finds paths by names that may be written otherwise, see `alike`.

    Args:
        paths: All that there are. Of two that are alike, the one that is written as it is asked for
            is found, else the first.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = dict.fromkeys(paths)
        self._alike: dict[str, str] = {}
        for path in sorted(self._paths):
            self._alike.setdefault(alike(path), path)

    def find(self, name: str) -> str | None:
        """The path of this name, or None."""
        return name if name in self._paths else self._alike.get(alike(name))


def photos_in(folder: Path) -> list[Path]:
    """The images of a folder, by name; not those that are links to somewhere else.

    Raises:
        OSError: It cannot be read.
    """
    return [path for path in _files_in(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def strays_in(folder: Path) -> list[Path]:
    """What would be an image, a caption or metadata, and is a link to somewhere else, by name.

    Raises:
        OSError: It cannot be read.
    """
    return [
        path
        for path in sorted(folder.iterdir())
        if (path.suffix.lower() in {*IMAGE_SUFFIXES, *CAPTION_SUFFIXES} or path.name in METADATA)
        and path.is_symlink()
        and inside(path, folder) is None
    ]


def captions_beside(photos: Sequence[Path], folder: Path) -> dict[Path, list[Path]]:
    """The text files beside each photo, in the order of `CAPTION_SUFFIXES`."""
    files = {path.name: path for path in _files_in(folder)}
    names = ByName(files)
    return {
        photo: [files[name] for each in CAPTION_SUFFIXES if (name := names.find(photo.stem + each))]
        for photo in photos
    }


def caption_files_of(photos: Sequence[Path], folder: Path) -> list[Path]:
    """The files with captions that are there, by name: beside a photo, and for all of them."""
    beside = {path for paths in captions_beside(photos, folder).values() for path in paths}
    together = {path for path in _files_in(folder) if path.name in METADATA}
    return sorted(beside | together)


def _files_in(folder: Path) -> list[Path]:
    """The files of a folder by name, without hidden ones and links to somewhere else.

    Raises:
        OSError: It cannot be read.
    """
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and (not path.is_symlink() or inside(path, folder) is not None)
        and path.is_file()
    )


def json_rows(stream: BinaryIO) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """(line, row) of a file of JSON lines, one at a time; why it is none in place of a row.

    Raises:
        OSError: It cannot be read.
    """
    number = 0
    # Lines end at line feeds only: a caption may hold other characters that count as line ends.
    while line := stream.readline(_LONGEST_LINE + 1):
        number += 1
        if len(line) > _LONGEST_LINE:
            yield number, f"is longer than {_LONGEST_LINE:,} bytes"
            return
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except RecursionError:
            yield number, "is not valid JSON: it is nested too deep"
        except ValueError as error:  # of decoding, too
            yield number, f"is not valid JSON: {error}"
        else:
            yield number, row if isinstance(row, dict) else "is no JSON object"


def csv_rows(stream: BinaryIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line, row) of a CSV file, one at a time; spreadsheets may have put `;` or tabs for commas.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not UTF-8, or no table that anybody would want.
    """
    csv.field_size_limit(_LONGEST_LINE)
    lines: Iterator[str] = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    head = next(lines, "")
    mark = max(",;\t", key=head.count)
    reader = csv.DictReader(itertools.chain([head], lines), delimiter=mark)
    try:
        if len(reader.fieldnames or ()) > _MOST_COLUMNS:
            raise ValueError(f"more than {_MOST_COLUMNS:,} columns")
        for row in reader:
            yield reader.line_num, {name: row[name] for name in row if isinstance(name, str)}
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


# ----------------------------------------------------------------------------- LoRAs of any maker

LORA_NAME = "pytorch_lora_weights.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Suffixes of weights that can hold code."""

_LORA_KEY = re.compile(r"lora|lokr|\.alpha$", re.IGNORECASE)
# The second matrix of a layer, as peft, kohya's scripts, and earlier versions of diffusers name it.
_UPS = (
    ".lora_B.weight",
    ".lora_up.weight",
    ".lora.up.weight",
    "_lora.up.weight",
    "lora_linear_layer.up.weight",
)


class LoraError(RegforgeError):
    """A LoRA that is not there, is none, or does not fit the model."""

    exit_code = EXIT_USAGE


def lora_header(path: Path) -> tuple[Sequence[str], Mapping[str, str]]:
    """Names of a safetensors file's tensors, and its metadata.

    Raises:
        LoraError: It is no safetensors file, or a damaged one.
    """
    with _safetensors(path) as file:
        return list(file.keys()), file.metadata() or {}


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file's tensors; nothing is loaded.

    Raises:
        LoraError: It is no safetensors file, or a damaged one.
    """
    with _safetensors(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a folder's safetensors files.

    Of weights that are there in several variants, each counts once.

    Raises:
        LoraError: One of them is damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        shapes |= tensor_shapes(path)
    return shapes


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            yield file
    except OSError as error:
        raise LoraError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (SafetensorError, ValueError) as error:
        raise LoraError(
            f"{path} is no whole safetensors file.", hint="Copy or download it again."
        ) from error


def layers_in(path: Path) -> int:
    """How many layers of a model a LoRA's file changes.

    Raises:
        LoraError: It is no safetensors file, or a damaged one.
    """
    return sum(name.endswith(_UPS) for name in lora_header(path)[0])


_OTHERS = {
    "hada_w": "a LoHa of LyCORIS",
    "emb_params": "a textual inversion",
}
"""Other things that are shared as one small file, by a part of the names of their weights."""


def require_lora(path: Path) -> None:
    """See that a file is a LoRA that can be used.

    Raises:
        LoraError: It is something else, which the message names.
    """
    if path.suffix != ".safetensors":
        pickle = path.suffix in PICKLES
        raise LoraError(
            f"{path} is no .safetensors file"
            + ("; others can hold code, so regforge does not load them." if pickle else "."),
            hint="A LoRA's file, or the folder of a run or a pipeline, is a model.",
        )
    names, _ = lora_header(path)
    for mark, kind in _OTHERS.items():
        if any(mark in name for name in names) and not any(name.endswith(_UPS) for name in names):
            raise LoraError(f"{path} is {kind}, and no LoRA.")
    if not names:
        raise LoraError(f"{path} is empty: no weights are in it.")
    if not any(_LORA_KEY.search(name) for name in names):
        raise LoraError(
            f"{path} holds no LoRA; it looks like a whole model.",
            hint="Convert it with diffusers' from_single_file and save_pretrained, and give that "
            "folder.",
        )
    if any(name.endswith("dora_scale") for name in names):
        raise LoraError(
            f"{path} is a DoRA in kohya's format, of which diffusers would leave out half.",
            hint=f"Take the {LORA_NAME} of the same training.",
        )


def lora_in(folder: Path) -> Path | None:
    """The LoRA in a folder or its `lora`; None if there is none.

    Raises:
        LoraError: There are several, and nothing says which.
    """
    for where in (folder / "lora", folder):
        if (where / LORA_NAME).is_file():
            return where / LORA_NAME
        files = sorted(each for each in where.glob("*.safetensors") if each.is_file())
        if len(files) > 1:
            raise several(str(where), [each.name for each in files])
        if files:
            return files[0]
    return None


EMBEDDING_FOLDER = "embedding"
"""Where in a run's folder the embedding of a new token lies, and on the Hub."""

TOKEN = "token"
"""In the metadata of its file: what the token is called."""


def embedding_in(folder: Path) -> Path | None:
    """The embedding of a new token that belongs to a trained model's folder; None if there is none.

    Raises:
        LoraError: A file there is damaged, or there are several.
    """
    files = sorted((folder / EMBEDDING_FOLDER).glob("*.safetensors"))
    found = [each for each in files if is_embedding(each)]
    if len(found) > 1:
        raise several(str(folder / EMBEDDING_FOLDER), [each.name for each in found])
    return found[0] if found else None


def is_embedding(file: Path) -> bool:
    """Whether a .safetensors file holds the embedding of a new token, as regforge writes it."""
    return TOKEN in lora_header(file)[1]


def several(where: str, names: Sequence[str]) -> LoraError:
    """The error where one file is needed and there are several."""
    return LoraError(
        f"{where} has several .safetensors files: {', '.join(names[:6])}"
        f"{' and more' if len(names) > 6 else ''}.",
        hint="Give the path of one of them.",
    )
