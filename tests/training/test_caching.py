"""Where latents and embeddings are kept."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import Built, SmallFamily, class_images, photos, same

from regforge.journal import Reporter
from regforge.training.batches import DiskStore, MemoryStore, Store, identity, key_of

SOME = {
    "moments": torch.arange(6, dtype=torch.float32).reshape(1, 2, 3),
    "half": torch.tensor([1.5, -0.0, float("nan")], dtype=torch.bfloat16),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "none": torch.zeros(0, 4),
}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype
        and one[n].shape == other[n].shape
        and torch.equal(torch.nan_to_num(one[n]), torch.nan_to_num(other[n]))
        for n in one
    )


def disk(folder: Path, stream: io.StringIO | None = None) -> DiskStore:
    return DiskStore(folder, Reporter(stream=stream, quiet=stream is None))


@pytest.mark.parametrize("store", [lambda _: MemoryStore(), disk], ids=["memory", "disk"])
def test_what_is_saved_is_loaded(store: Callable[[Path], Store], tmp_path: Path) -> None:
    kept = store(tmp_path)
    assert kept.keeps
    assert kept.load(key_of("a")) is None
    kept.save(key_of("a"), SOME)
    kept.save(key_of("b"), {"moments": SOME["moments"][0].T})
    again = store(tmp_path) if isinstance(kept, DiskStore) else kept  # files are shared
    found = again.load(key_of("a"))
    assert found is not None
    assert equal(found, SOME)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.suffix == ".safetensors" for path in files)


def test_nothing_is_kept() -> None:
    store = Store()
    store.save("a", SOME)
    assert store.load("a") is None
    assert not store.keeps


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text"])
def test_a_damaged_file_counts_as_none(tmp_path: Path, damage: str) -> None:
    said = io.StringIO()
    store = disk(tmp_path, said)
    store.save(key_of("a"), SOME)
    (file,) = tmp_path.rglob("*.safetensors")
    content = file.read_bytes()
    flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
    broken = {"cut": content[:-3], "empty": b"", "flipped": flipped, "text": b"no tensors"}
    file.write_bytes(broken[damage])
    assert store.load(key_of("a")) is None
    assert said.getvalue().count("is damaged and is made again") == 1
    store.save(key_of("a"), SOME)
    assert store.load(key_of("a")) is not None


def test_keys_tell_everything_apart_and_which_model_it_is() -> None:
    parts = [("a", "b"), ("ab",), ("a", "b", ""), ("a", ["b"]), (("a", "b"),), ("a", 1), ("a", "1")]
    assert len({key_of(*each) for each in parts}) == len(parts)
    assert key_of("ä", (1, 2)) == key_of("ä", (1, 2))

    def model(weight: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        made = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(made.weight, weight)
        torch.nn.init.zeros_(made.bias)
        return made.to(dtype)

    known = identity({"vae": model()}, "images")
    assert identity({"vae": model()}, "images") == known
    others = [
        identity({"vae": model(2)}, "images"),
        identity({"vae": model(dtype=torch.bfloat16)}, "images"),
        identity({"vae": model()}, "captions"),
        identity({"text_encoder": model()}, "images"),
        identity({"vae": torch.nn.Sequential(model())}, "images"),
    ]
    assert len({known, *others}) == 6


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    return photos(tmp_path / "photos"), class_images(tmp_path / "class")


def prepared(sources: tuple[Path, Path], cache: str = "disk", **more: Any) -> Built:
    """Examples whose cache lies beside the photos."""
    data = {"cache": cache, "crop": "center"}
    examples = Built(*sources, cache_folder=sources[0].parent / "cache", data=data, **more)
    examples.prepare()
    return examples


def test_a_second_run_computes_nothing_but_for_another_model(sources: tuple[Path, Path]) -> None:
    first = prepared(sources).family
    again = prepared(sources)
    again.tensors(again.draws())
    assert (again.family.images, again.family.captions) == ([], [])
    other = prepared(sources, model=SmallFamily(weight=2.0)).family
    assert len(other.images) == len(first.images) > 0
    assert len(other.captions) == len(first.captions) > 0


def test_another_photo_under_the_same_name(sources: tuple[Path, Path]) -> None:
    prepared(sources)
    (sources[0] / "00.png").write_bytes((sources[0] / "01.png").read_bytes())
    changed, fresh = prepared(sources), prepared(sources, "none")
    draws = changed.draws()
    assert all(map(same, changed.each(draws), fresh.each(draws)))


def test_a_damaged_file_is_computed_again(sources: tuple[Path, Path]) -> None:
    first = prepared(sources)
    files = sorted((sources[0].parent / "cache").rglob("*.safetensors"))
    for file in files[::3]:
        file.write_bytes(file.read_bytes()[:-1])
    said = io.StringIO()
    again = prepared(sources, stream=said)
    assert said.getvalue().count("is damaged") == len(files[::3])
    assert len(again.family.images) + len(again.family.captions) == len(files[::3])
    draws = again.draws()
    assert all(map(same, first.each(draws), again.each(draws)))


def test_progress_is_told(sources: tuple[Path, Path]) -> None:
    said = io.StringIO()
    prepared(sources, "memory", stream=said)
    for line in ("encoding photos: ", "encoding regularization images: ", "encoding captions: "):
        assert line in said.getvalue()
