"""Captioned images written in every layout that datasets come in."""

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from made_rows import make_rows
from odd_images import file_of
from PIL import Image

from regforge.dataset.sources import CaptionedDataset, open_dataset
from regforge.dataset.store import RowWriter


class Item(NamedTuple):
    """An image as it is written down: the path has no suffix."""

    path: str
    image: bytes
    text: str | None


Files = dict[str, bytes]


def png(number: int, size: tuple[int, int] = (8, 6), **save: Any) -> bytes:
    """A noisy image, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return file_of(Image.fromarray(pixels), save.pop("format", "PNG"), **save)


def items(*texts: str | None, folder: str = "") -> list[Item]:
    return [Item(f"{folder}{n:03d}", png(n), text) for n, text in enumerate(texts)]


def with_text_files(given: Sequence[Item], suffix: str = ".txt") -> Files:
    files = {}
    for path, image, text in given:
        files[f"{path}.png"] = image
        if text is not None:
            files[f"{path}{suffix}"] = text.encode()
    return files


def with_json_files(given: Sequence[Item]) -> Files:
    files = with_text_files([each._replace(text=None) for each in given])
    return files | {f"{i.path}.json": json.dumps({"caption": i.text}).encode() for i in given}


def with_jsonl(given: Sequence[Item]) -> Files:
    files = {f"{each.path}.png": each.image for each in given}
    rows = ({"file_name": f"{each.path}.png", "text": each.text} for each in given)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return files | {"metadata.jsonl": "".join(lines).encode()}


def with_csv(given: Sequence[Item]) -> Files:
    files = {f"{each.path}.png": each.image for each in given}
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["file_name", "text"])
    writer.writerows([f"{each.path}.png", each.text] for each in given)
    return files | {"metadata.csv": table.getvalue().encode()}


def with_parquet_metadata(given: Sequence[Item]) -> Files:
    files = {f"{each.path}.png": each.image for each in given}
    names, texts = [f"{each.path}.png" for each in given], [each.text for each in given]
    return files | {"metadata.parquet": as_parquet({"file_name": names, "text": texts})}


def as_parquet(columns: Mapping[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), buffer, **options)
    return buffer.getvalue()


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def as_image_table(given: Sequence[Item]) -> Files:
    images = [{"bytes": each.image, "path": f"{each.path}.png"} for each in given]
    columns = {"image": pa.array(images, IMAGE), "text": [each.text for each in given]}
    return {"data/train-00000-of-00001.parquet": as_parquet(columns, row_group_size=3)}


def as_binary_table(given: Sequence[Item]) -> Files:
    columns = {
        "id": [each.path for each in given],
        "caption": pa.array([each.text for each in given], pa.string()).dictionary_encode(),
        "jpg": [each.image for each in given],
    }
    return {"images.parquet": as_parquet(columns)}


def as_zip(files: Mapping[str, bytes], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return buffer.getvalue()


def as_tar(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def in_tars(given: Sequence[Item]) -> Files:
    """In two archives."""
    half = len(given) // 2
    parts = [part for part in (given[:half], given[half:]) if part]
    return {f"{n:05d}.tar": as_tar(with_text_files(part)) for n, part in enumerate(parts)}


LAYOUTS: dict[str, Callable[[Sequence[Item]], Files]] = {
    "text files": with_text_files,
    "caption files": lambda given: with_text_files(given, ".caption"),
    "JSON files": with_json_files,
    "metadata.jsonl": with_jsonl,
    "metadata.csv": with_csv,
    "metadata.parquet": with_parquet_metadata,
    "Parquet": as_image_table,
    "Parquet, binary": as_binary_table,
    "WebDataset": in_tars,
    "WebDataset, gzip": lambda given: {"all.tar.gz": as_tar(with_text_files(given), "w:gz")},
    "zip of text files": lambda given: {"all.zip": as_zip(with_text_files(given))},
    "zip of metadata": lambda given: {"all.zip": as_zip(with_jsonl(given), compression=8)},
}


def write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def everywhere(folder: Path, files: Mapping[str, bytes]) -> Iterator[CaptionedDataset]:
    """The datasets of the same files in a folder, in a zip and, without metadata, in a tar."""
    write(folder / "folder", files)
    tar = as_tar(dict(sorted(files.items())))  # what has one name comes together
    write(folder, {"x.zip": as_zip(files, compression=8), "x.tar": tar})
    kinds = ("folder", "x.zip", "x.tar")
    for where in kinds[: 2 if any("metadata" in name for name in files) else 3]:
        yield open_dataset(folder / where)


def read(dataset: CaptionedDataset) -> list[tuple[bytes, str | None]]:
    """(image, caption) of each, sorted; and checks what holds for any dataset on the way."""
    whole = list(dataset.examples())
    assert len({each.id for each in whole}) == len(whole)
    assert list(dataset.examples()) == whole
    without = list(dataset.examples(images=False))
    assert [(e.id, e.text, e.width, e.height) for e in without] == [
        (e.id, e.text, e.width, e.height) for e in whole
    ]
    assert all(e.image == b"" for e in without)
    assert all(e.file is None or e.file.read_bytes() == e.image for e in whole)
    return sorted((each.image, each.text or "") for each in whole)


def written(given: Sequence[Item]) -> list[tuple[bytes, str | None]]:
    return sorted((each.image, each.text or "") for each in given)


def note_of(dataset: CaptionedDataset, *words: str) -> str:
    """The one note that says this."""
    found = [note for note in dataset.notes if all(word in note for word in words)]
    assert len(found) == 1, dataset.notes
    return found[0]


def write_run(folder: Path, count: int = 40, files: int = 2) -> Path:
    """A run's folder with a finished dataset."""
    rows = make_rows(*range(count))
    for number in range(files):
        path = folder / "dataset" / "data" / f"train-{number:05d}-of-{files:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            writer = RowWriter(stream, ("color", "background"))
            for start in range(number, count, 8 * files):
                writer.write(rows[start : start + 8 * files : files])
            writer.close()
    write(folder, {"recipe.yaml": b"name: x\n", "state.json": b"{}"})
    write(folder, {"dataset/README.md": b"---\nlicense: mit\n---\n", "shards/0.parquet": b"no"})
    write(folder, {"dataset/samples.webp": png(0, (500, 500), format="WEBP", lossless=True)})
    write(folder, {"dataset/recipe.yaml": b"name: x\n"})
    return folder
