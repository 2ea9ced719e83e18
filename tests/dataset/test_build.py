"""The finished dataset: what load_dataset gives, the same bytes again, and nothing half done."""

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from made_rows import DIGEST, SLOTS, make_image, make_row, make_rows
from PIL import Image

from regforge.dataset import build
from regforge.dataset.build import DatasetError, DatasetInfo, build_dataset
from regforge.dataset.store import SHARD_SIZE, NoDataset, ParquetError, Store, read_rows
from regforge.files import StorageError
from regforge.recipe.models import Recipe
from regforge.records import arrow_schema

RECIPE = Recipe.model_validate({"name": "teapots", "subject": {"class_noun": "teapot"}})
RECIPE_YAML = "name: teapots\nsubject: {class_noun: teapot}\n"


def fill(folder: Path, indexes: list[int], **changes) -> Store:
    """A store with these images, in as many shards as it takes."""
    store = Store(folder, SLOTS, DIGEST)
    for number in sorted({index // SHARD_SIZE for index in indexes}):
        own = [index for index in indexes if index // SHARD_SIZE == number]
        store.write(number, [make_row(index, **changes) for index in own], [])
    return store


def built(store: Store, folder: Path, count: int, **options) -> DatasetInfo:
    settings = {"recipe": RECIPE, "recipe_yaml": RECIPE_YAML, "caption_template": "a {{ color }}"}
    return build_dataset(store, folder, count=count, **{**settings, **options})


def contents(folder: Path) -> dict[str, str]:
    """Name -> digest of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return fill(tmp_path / "shards", [0, 1, 2, 3, 5, 130, 131])


@pytest.fixture
def dataset(tmp_path: Path, store: Store) -> Path:
    built(store, tmp_path / "dataset", 6)
    return tmp_path / "dataset"


def load(folder: Path, cache: Path, **options):
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache), **options)


def test_it_holds_the_first_accepted_images_in_the_order_of_their_index(dataset: Path) -> None:
    assert list(read_rows(dataset)) == make_rows(0, 1, 2, 3, 5, 130)


def test_it_holds_the_files_of_the_design(tmp_path: Path, store: Store) -> None:
    vocabulary = tmp_path / "vocabulary.json"
    vocabulary.write_text("{}")
    info = built(store, tmp_path / "dataset", 6, vocabulary=vocabulary)
    data = tmp_path / "dataset" / "data" / "train-00000-of-00001.parquet"
    assert info == DatasetInfo(6, (data,), data.stat().st_size)
    assert set(contents(tmp_path / "dataset")) == {
        "README.md",
        "caption.j2",
        "data/train-00000-of-00001.parquet",
        "recipe.yaml",
        "samples.webp",
        "vocabulary.json",
    }
    assert (tmp_path / "dataset" / "recipe.yaml").read_text() == RECIPE_YAML
    assert (tmp_path / "dataset" / "caption.j2").read_text() == "a {{ color }}"
    with Image.open(tmp_path / "dataset" / "samples.webp") as grid:
        assert grid.format == "WEBP"
        assert grid.width > 600


def test_load_dataset_gives_images_and_typed_columns_as_is(dataset: Path, tmp_path: Path) -> None:
    from datasets import Features, Image, Value

    loaded = load(dataset, tmp_path / "cache")
    assert loaded.features == Features.from_arrow_schema(arrow_schema(SLOTS))
    assert loaded.features["image"] == Image()
    assert loaded.features["slots"] == {name: Value("string") for name in SLOTS}
    assert loaded.features["scores"]["alignment"] == Value("float32")
    expected = make_rows(0, 1, 2, 3, 5, 130)
    assert loaded["text"][:] == [row.text for row in expected]
    assert loaded[0]["image"].size == (24, 16)
    for found, row in zip(loaded.cast_column("image", Image(decode=False)), expected, strict=True):
        assert found["image"] == {"bytes": row.image, "path": f"{row.id}.webp"}
        assert found["slots"] == row.slots
        assert found["scores"] == row.scores
        assert {n: found[n] for n in ("seed", "width", "steps", "id", "reference")} == {
            n: getattr(row, n) for n in ("seed", "width", "steps", "id", "reference")
        }


@pytest.mark.parametrize(
    ("indexes", "changes"),
    [
        ([0, 1, 2, 3, 5, 130, 131], {}),  # grown
        ([0, 1, 2, 3, 5, 131], {}),  # as many
        ([0, 1, 2, 3, 5, 130], {"text": "a photo of a dog"}),
        ([0, 1, 2, 3, 5, 130], {"image": make_image(7)}),
        ([0, 1, 2, 3, 5, 130], {"scores": {"alignment": 0.75, "duplicate_distance": None}}),
    ],
)
def test_another_dataset_never_shares_its_entry_in_the_cache_of_datasets(
    dataset: Path, tmp_path: Path, indexes: list[int], changes: dict
) -> None:
    import datasets

    other = tmp_path / "other" / "dataset"
    built(fill(tmp_path / "others", indexes, **changes), other, len(indexes))
    for folder in (dataset, other, dataset):
        found = load(folder, tmp_path / "cache").cast_column("image", datasets.Image(decode=False))
        assert [(row["id"], row["text"], row["image"]["bytes"]) for row in found] == [
            (row.id, row.text, row.image) for row in read_rows(folder)
        ]
    same = tmp_path / "same" / "dataset"
    built(fill(tmp_path / "shards", [0, 1, 2, 3, 5, 130, 131]), same, 6)
    assert (same / "README.md").read_bytes() == (dataset / "README.md").read_bytes()


def test_a_linked_card_is_not_taken_over(dataset: Path, tmp_path: Path, store: Store) -> None:
    (tmp_path / "secret.md").write_text("SECRET")
    (dataset / "README.md").unlink()
    (dataset / "README.md").symlink_to("../secret.md")
    built(store, dataset, 6)
    assert "SECRET" not in (dataset / "README.md").read_text()
    assert (tmp_path / "secret.md").read_text() == "SECRET"


def test_other_files_in_the_folder_never_shadow_the_images(dataset: Path, tmp_path: Path) -> None:
    for number in range(20):
        (dataset / f"{number:05d}.txt").write_text("a caption")
        (dataset / f"{number:05d}.json").write_text("{}")
        (dataset / "data" / f"train-{number:05d}-of-00020.txt").write_text("a caption")
    assert load(dataset, tmp_path / "cache").num_rows == 6
    assert load(dataset, tmp_path / "cache").column_names == arrow_schema(SLOTS).names


def test_a_recipe_without_slots_makes_a_dataset_that_loads(tmp_path: Path) -> None:
    store = Store(tmp_path / "shards", [], DIGEST)
    store.write(0, [make_row(0, slots={})], [])
    built(store, tmp_path / "dataset", 1)
    assert load(tmp_path / "dataset", tmp_path / "cache")[0]["slots"] == {"background": None}


def test_too_few_images_are_an_error_and_leave_the_old_dataset(dataset: Path, store: Store) -> None:
    before = contents(dataset)
    with pytest.raises(DatasetError, match="7 accepted images, and the dataset is to have 8"):
        built(store, dataset, 8)
    assert contents(dataset) == before
    assert sorted(path.name for path in dataset.parent.iterdir()) == ["dataset", "shards"]


@pytest.mark.slow
def test_the_same_images_are_the_same_bytes_wherever_made(dataset: Path, tmp_path: Path) -> None:
    other = Store(tmp_path / "other" / "shards", SLOTS, DIGEST)
    other.write(1, make_rows(131, 130), [])
    other.write(0, make_rows(3, 1, 2, 0, 5), [])
    built(other, tmp_path / "other" / "dataset", 6)
    assert contents(tmp_path / "other" / "dataset") == contents(dataset)
    script = (
        "import sys; from pathlib import Path; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/..']\n"
        "from test_build import *\n"
        "built(Store(Path(sys.argv[2]), SLOTS, DIGEST), Path(sys.argv[3]), 6)\n"
    )
    here, again = str(Path(__file__).parent), tmp_path / "again"
    command = [sys.executable, "-c", script, here, str(tmp_path / "shards"), str(again)]
    subprocess.run(command, check=True, env={"PYTHONHASHSEED": "1", "PATH": ""})
    assert contents(again) == contents(dataset)


def test_a_large_dataset_is_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    store = fill(tmp_path / "shards", list(range(250)))
    image = len(make_image(0))
    monkeypatch.setattr(build, "FILE_BYTES", 101 * image)
    monkeypatch.setattr(build, "GROUP_BYTES", 40 * image)
    info = built(store, tmp_path / "dataset", 250)
    assert len(info.files) > 2
    assert [path.name for path in info.files] == [
        f"train-{n:05d}-of-{len(info.files):05d}.parquet" for n in range(len(info.files))
    ]
    assert info.bytes == sum(path.stat().st_size for path in info.files)
    for path in info.files:
        assert path.stat().st_size < 101 * image + 60_000  # columns and the footer come on top
        metadata = pq.ParquetFile(path).metadata
        rows = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
        assert max(rows) <= 41
    assert list(read_rows(tmp_path / "dataset")) == make_rows(*range(250))
    assert load(tmp_path / "dataset", tmp_path / "cache").num_rows == 250


def test_row_groups_are_as_datasets_makes_them_and_have_a_page_index(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    info = built(fill(tmp_path / "shards", list(range(250))), tmp_path / "dataset", 250)
    metadata = pq.ParquetFile(info.files[0]).metadata
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [100, 100, 50]
    columns = {group.column(n).path_in_schema: group.column(n) for group in groups for n in (0, 2)}
    assert columns["image.bytes"].compression == "UNCOMPRESSED"
    assert columns["text"].compression == "ZSTD"
    assert all(column.has_offset_index for column in columns.values())


def test_a_dataset_with_a_missing_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(NoDataset, match="is no dataset"):
        list(read_rows(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00001-of-00002.parquet").write_bytes(b"")
    with pytest.raises(NoDataset, match="1 of 2 files"):
        list(read_rows(tmp_path))
    (tmp_path / "data" / "train-00000-of-00002.parquet").write_bytes(b"")
    with pytest.raises(ParquetError, match="cannot be read"):
        list(read_rows(tmp_path))


def killed_at(name: str, call: int, shards: Path, dataset: Path, count: int) -> int:
    """Build in a process that is killed just before the given call of a function."""
    script = """
import itertools, os, pathlib, shutil, signal, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
from test_build import *
holder, name = {"rename": (pathlib.Path, "rename"), "rmtree": (shutil, "rmtree"),
                "fsync": (os, "fsync")}[sys.argv[4]]
original, calls = getattr(holder, name), itertools.count()
def dying(*args, **options):
    if next(calls) == int(sys.argv[5]):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **options)
setattr(holder, name, dying)
built(Store(Path(sys.argv[2]), SLOTS, DIGEST), Path(sys.argv[3]), int(sys.argv[6]))
"""
    here = str(Path(__file__).parent)
    arguments = [here, str(shards), str(dataset), name, str(call), str(count)]
    return subprocess.run([sys.executable, "-c", script, *arguments], check=False).returncode


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("rename", 2),  # between the two that swap the folders
        *(
            pytest.param(*point, marks=pytest.mark.slow)
            for point in [("fsync", 0), ("fsync", 4), ("rename", 0), ("rename", 1), ("rmtree", 0)]
        ),
    ],
)
def test_killed_anywhere_the_next_run_completes_it(tmp_path: Path, name: str, call: int) -> None:
    store = fill(tmp_path / "shards", [0, 1, 2])
    dataset = tmp_path / "dataset"
    built(store, dataset, 2)
    (dataset / "README.md").write_text((dataset / "README.md").read_text() + "\nMy own words.\n")
    assert killed_at(name, call, tmp_path / "shards", dataset, 3) == -signal.SIGKILL
    assert dataset.exists() == ((name, call) != ("rename", 2))
    if dataset.exists():
        assert len(list(read_rows(dataset))) in (2, 3)
    else:
        assert len(list(read_rows(tmp_path / "dataset.old"))) == 2
    built(store, dataset, 3)
    assert list(read_rows(dataset)) == make_rows(0, 1, 2)
    assert "My own words." in (dataset / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "shards"]


def test_a_failed_swap_brings_the_old_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill(tmp_path / "shards", [0, 1, 2])
    built(store, tmp_path / "dataset", 2)
    before, rename = contents(tmp_path / "dataset"), Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == ".unfinished-dataset":
            raise OSError("no")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(StorageError, match="cannot be written"):
            built(store, tmp_path / "dataset", 3)
    assert contents(tmp_path / "dataset") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "shards"]


def test_building_again_changes_nothing_and_others_files_stay(dataset: Path, store: Store) -> None:
    (dataset / "extra").mkdir()
    (dataset / "extra" / "deep.json").write_text("{}")
    before = contents(dataset)
    built(store, dataset, 6)
    assert contents(dataset) == before
    built(store, dataset, 7)
    assert (dataset / "extra" / "deep.json").read_text() == "{}"


MEASURED = """
import resource, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
from test_build import *
store = Store(Path(sys.argv[2]), SLOTS, DIGEST)
count = int(sys.argv[4])
built(store, Path(sys.argv[3]), count)
assert sum(1 for _ in read_rows(Path(sys.argv[3]))) == count
unit = 2**20 if sys.platform == "darwin" else 2**10
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    noise = make_image(0, (256, 256))
    assert len(noise) > 150_000
    store = Store(tmp_path / "shards", SLOTS, DIGEST)
    for number in range(16):
        indexes = range(number * SHARD_SIZE, (number + 1) * SHARD_SIZE)
        # A few bytes after its end make each file another one.
        rows = [make_row(index, image=noise + f"{index:06d}".encode()) for index in indexes]
        store.write(number, rows, [])
    peaks = {}
    for count in (256, 2048):
        folders = [str(Path(__file__).parent), str(tmp_path / "shards"), str(tmp_path / "dataset")]
        command = [sys.executable, "-c", MEASURED, *folders, str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[count] = float(done.stdout)
    assert peaks[2048] < peaks[256] + 100, f"MB: {peaks}, for 300 MB of images more"
