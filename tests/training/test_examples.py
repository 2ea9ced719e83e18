"""What the trainer is fed with: from photos and datasets to batches."""

import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_data import (
    RESOLUTION,
    class_images,
    color_of,
    draws_of,
    embedding_of,
    family,
    make_image,
    noise,
    opened,
    parquet,
    photos,
    recipe,
    same,
    tensors,
)

from regforge.dataset.sources import CannotOpen
from regforge.prompts.photos import PhotosError
from regforge.recipe.training import TrainingRecipe
from regforge.training.batches import Batch, Draw
from regforge.training.examples import Examples
from regforge.training.families.base import Family
from regforge.training.problems import ExamplesError

if TYPE_CHECKING:
    from hub_server import LoopbackHub

PLAIN: dict[str, Any] = {"caption_dropout": 0, "slot_dropout": 0, "crop_wording": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return class_images(tmp_path / "class")


def color_in(moments: torch.Tensor) -> tuple[int, ...]:
    """The colour of the whole crop, from the fake family's moments."""
    return tuple(round(float(value)) for value in (moments[0].mean((1, 2)) + 1) * 127.5)


def number_in(caption: str) -> int:
    found = re.search(r"number (\d+)", caption)
    assert found, caption
    return int(found[1])


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_each_latent_meets_its_own_caption(
    folder: Path, dataset: Path, tmp_path: Path, cache: str
) -> None:
    """Through shuffling, batches of several, caching and the prior."""
    model, _ = family()
    setup = recipe(
        folder,
        dataset,
        data={"cache": cache, "caption_dropout": 0},
        regularization={"per_instance": 2},
        optimizer={"steps": 12, "batch_size": 3},
    )
    examples = opened(setup, model, cache=tmp_path / "cache")
    examples.prepare()
    seen = set()
    draws = draws_of(setup, examples)
    for start in range(0, len(draws), 9):
        (batch,) = examples.tensors(draws[start : start + 9])
        assert (len(batch), batch.instances) == (9, 3)
        for n in range(len(batch)):
            number = number_in(batch.captions[n])
            assert color_in(batch.moments[n]) == color_of(number)
            assert (number < 100) == (n < batch.instances)
            assert batch.embeddings is not None
            assert torch.equal(batch.embeddings["words"][n], embedding_of(batch.captions[n]))
            seen.add(number)
    assert seen == {0, 1, 2, 100, 101, 102, 103, 104}


def test_class_images_carry_their_own_sizes(folder: Path, dataset: Path) -> None:
    setup = recipe(folder, dataset, data={**PLAIN, "crop": "center"})
    examples = opened(setup)
    for draw in draws_of(setup, examples):
        (found,) = tensors(examples, [draw])
        number = number_in(found["caption"])
        size = (24, 32) if number < 100 else (20 + number % 3 * 8, 28 + number % 2 * 9)
        assert found["geometry"].original == size
        assert found["geometry"].target == (RESOLUTION, RESOLUTION)
        left_over = (max(size) - min(size)) / 2 * RESOLUTION / min(size)
        place = found["geometry"].top_left
        assert max(place) == pytest.approx(left_over, abs=1)
        assert min(place) == 0


def test_images_of_several_shapes_go_into_several_batches(folder: Path, dataset: Path) -> None:
    setup = recipe(folder, dataset, data={**PLAIN, "crop": "none", "resolution": 48})
    examples = opened(setup)
    draws = draws_of(setup, examples, 20)
    batches = examples.tensors(draws)
    assert len(batches) > 1
    assert sum(map(len, batches)) == len(draws)
    for batch in batches:
        shape = tuple(side * 8 for side in batch.moments.shape[-2:])
        assert {geometry.target for geometry in batch.geometry} == {shape}
        numbers = [number_in(caption) for caption in batch.captions]
        assert [n < 100 for n in numbers] == [n < batch.instances for n in range(len(batch))]
        for moments, number in zip(batch.moments, numbers, strict=True):
            assert color_in(moments) == color_of(number)


def test_shapes_of_a_batch(folder: Path, dataset: Path) -> None:
    setup = recipe(folder, dataset)
    examples = opened(setup)
    (batch,) = examples.tensors(draws_of(setup, examples, 3))
    side = RESOLUTION // 8
    assert batch.moments.shape == (6, 2, 3, side, side)
    assert batch.sampling_noise.shape == batch.noise.shape == (6, 3, side, side)
    assert batch.uniform.shape == (6,)
    assert all(
        tensor.dtype == torch.float32 and tensor.device.type == "cpu"
        for tensor in (batch.moments, batch.sampling_noise, batch.noise, batch.uniform)
    )
    assert not torch.equal(batch.noise, batch.sampling_noise)


def test_random_numbers_are_well_spread(folder: Path, dataset: Path) -> None:
    setup = recipe(folder, dataset)
    examples = opened(setup)
    examples.prepare()
    draws = [Draw("instance", n, n % 3) for n in range(500)]
    draws += [Draw("class", n, n % 5) for n in range(500)]
    (batch,) = examples.tensors(draws)
    assert len(set(batch.uniform.tolist())) > 990
    assert 0 <= float(batch.uniform.min()) < 0.02
    assert 0.98 < float(batch.uniform.max()) < 1
    assert float(batch.uniform.mean()) == pytest.approx(0.5, abs=0.04)
    for normal in (batch.noise, batch.sampling_noise):
        assert float(normal.mean()) == pytest.approx(0, abs=0.05)
        assert float(normal.std()) == pytest.approx(1, abs=0.05)
    together = torch.cat([batch.noise, batch.sampling_noise]).flatten(1).unique(dim=0)
    assert len(together) == 2000


def varied(folder: Path, dataset: Path, **changes: Any) -> TrainingRecipe:
    data = {"caption_dropout": 0.2, "flip": True, "crop_scale": 0.3, **changes.pop("data", {})}
    return recipe(folder, dataset, data=data, **changes)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), order=st.randoms(use_true_random=False))
def test_a_draw_does_not_depend_on_its_companions(
    tmp_path_factory: pytest.TempPathFactory, seed: int, order: random.Random
) -> None:
    top = tmp_path_factory.mktemp("alone")
    setup = varied(photos(top / "photos"), class_images(top / "class"), seed=seed)
    examples = opened(setup)
    draws = draws_of(setup, examples, 5)
    alone = {draw: tensors(examples, [draw])[0] for draw in draws}
    order.shuffle(draws)
    draws = draws[: order.randint(1, len(draws))]
    expected = [d for d in draws if d.stream == "instance"]
    expected += [d for d in draws if d.stream == "class"]
    together = tensors(opened(setup), draws)
    assert all(same(alone[d], found) for d, found in zip(expected, together, strict=True))


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_cached_is_the_same_as_not_cached(
    folder: Path, dataset: Path, tmp_path: Path, cache: str
) -> None:
    for name in ("00", "01", "02"):
        (folder / f"{name}.png").write_bytes(noise(int(name)))
    fresh = opened(varied(folder, dataset, data={"cache": "none"}))
    setup = varied(folder, dataset, data={"cache": cache})
    model, fake = family()
    kept = opened(setup, model, cache=tmp_path / "cache")
    kept.prepare()
    fake.gone = True  # nothing is computed any more
    draws, lazy = draws_of(setup, kept), opened(varied(folder, dataset))
    for draw in draws:
        (expected,) = tensors(fresh, [draw])
        assert same(expected, tensors(kept, [draw])[0])
        assert same(expected, tensors(lazy, [draw])[0])  # never prepared
    again = opened(setup, model, cache=tmp_path / "cache")
    if cache == "disk":
        again.prepare()
        assert all(
            same(*pair) for pair in zip(tensors(kept, draws), tensors(again, draws), strict=True)
        )


def test_the_seed_decides(folder: Path, dataset: Path) -> None:
    draw = Draw("class", 3, 1)
    first, again, other = (
        tensors(opened(varied(folder, dataset, seed=seed)), [draw])[0] for seed in (0, 0, 1)
    )
    assert same(first, again)
    assert not torch.equal(first["noise"], other["noise"])
    assert not torch.equal(first["uniform"], other["uniform"])


def test_renaming_a_photo_changes_no_crop(folder: Path, tmp_path: Path) -> None:
    (folder / "00.png").write_bytes(noise(1))
    one = opened(recipe(folder, data=PLAIN))
    other = photos(tmp_path / "other")
    (other / "00.png").write_bytes(noise(1))
    (other / "00.png").rename(other / "0.png")
    (other / "00.txt").rename(other / "0.txt")
    renamed = opened(recipe(other, data=PLAIN))
    for number in range(10):
        draw = Draw("instance", number, 0)
        assert same(tensors(one, [draw])[0], tensors(renamed, [draw])[0])


def test_nothing_is_encoded_twice(folder: Path, dataset: Path) -> None:
    for number in range(3):
        (folder / f"{number:02d}.png").write_bytes(noise(number))
    model, fake = family()
    setup = recipe(folder, dataset, data={"crops_per_image": 2}, optimizer={"steps": 40})
    examples = opened(setup, model)
    examples.prepare()
    assert len(fake.images) <= 2 * (3 + 5)
    assert len(fake.captions) == len(set(fake.captions)) <= 2 * (3 + 5) + 1
    counts = len(fake.images), len(fake.captions)
    examples.tensors(draws_of(setup, examples))
    examples.prepare()
    assert (len(fake.images), len(fake.captions)) == counts


def test_each_process_prepares_its_own_draws_alone(folder: Path, dataset: Path) -> None:
    setup = recipe(folder, dataset, optimizer={"steps": 1})
    encoded = []
    for process in range(2):
        model, fake = family()
        opened(setup, model, processes=2, process=process).prepare()
        assert len(fake.images) == 2
        encoded.append(fake.captions)
    assert encoded[0] != encoded[1]


def test_random_crops_differ(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number:02d}.png").write_bytes(noise(number))
    setup = recipe(folder, data={"crops_per_image": 5})
    examples = opened(setup)
    found = {
        str(tensors(examples, [Draw("instance", number, 0)])[0]["moments"].tolist())
        for number in range(100)
    }
    assert len(found) == 5


def test_flip_is_off_unless_asked_for(folder: Path) -> None:
    (folder / "00.png").write_bytes(noise(1, (16, 16)))
    draws = [Draw("instance", number, 0) for number in range(200)]

    def mirrored(flip: bool) -> int:
        data = {"crop": "center", "flip": flip}
        (batch,) = opened(recipe(folder, data=data)).tensors(draws)
        plain = Image.open(folder / "00.png")
        assert batch.moments.shape[-1] == 2
        pixels = np.asarray(plain, dtype=np.float32) / 127.5 - 1
        left = pixels[:8, :8].mean((0, 1))
        return sum(
            not np.allclose(moments[0, :, 0, 0].numpy(), left, atol=1e-3)
            for moments in batch.moments
        )

    assert "flip" not in recipe(folder).data.model_fields_set
    assert not recipe(folder).data.flip
    assert mirrored(flip=False) == 0
    assert 70 <= mirrored(flip=True) <= 130


def test_a_trained_text_encoder_is_asked_each_time(folder: Path, dataset: Path) -> None:
    model, fake = family()
    setup = recipe(folder, dataset, method={"text_encoder": True})
    examples = opened(setup, model)
    examples.prepare()
    (batch,) = examples.tensors(draws_of(setup, examples, 2))
    assert batch.embeddings is None
    assert len(batch.captions) == 4
    assert not fake.captions


@pytest.mark.parametrize("none", [{"dataset": None}, {"prior_weight": 0}])
def test_no_regularization(folder: Path, dataset: Path, none: dict[str, Any]) -> None:
    """A weight of zero is the same as no dataset; then it need not even be there."""
    setup = recipe(folder, dataset / "nowhere", regularization=none)
    examples = opened(setup)
    assert (examples.batches.instances, examples.batches.regularization) == (3, 0)
    draws = draws_of(setup, examples, 6)
    assert {draw.stream for draw in draws} == {"instance"}
    with_prior = recipe(folder, dataset)
    beside = opened(with_prior)
    theirs = [d for d in draws_of(with_prior, beside, 6) if d.stream == "instance"]
    assert theirs == draws
    for one, other in zip(tensors(examples, draws), tensors(beside, theirs), strict=True):
        assert same(one, other)


def notes(examples: Examples, *words: str) -> list[str]:
    return [note for note in examples.notes if all(word in note for word in words)]


def test_no_photos(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PhotosError, match="has no photos"):
        opened(recipe(tmp_path / "empty"))
    with pytest.raises(PhotosError, match="cannot be read"):
        opened(recipe(tmp_path / "nowhere"))


def test_corrupt_photos(folder: Path) -> None:
    (folder / "01.png").write_bytes(noise(1)[:-300])
    (folder / "02.png").write_text("no image")
    with pytest.raises(PhotosError, match=r"(?s)01.png: cannot be read.*02.png: is not an image"):
        opened(recipe(folder))


def test_what_people_should_know_of_their_photos(folder: Path, dataset: Path) -> None:
    assert list(opened(recipe(folder, dataset, data={"slot_dropout": 0})).notes) == []
    bare = photos(folder / "bare", captions=False)
    examples = opened(recipe(bare, data=PLAIN))
    assert len(notes(examples, "00.png, 01.png and 02.png have no caption")) == 1
    assert tensors(examples, [Draw("instance", 0, 1)])[0]["caption"] == "a photo of a sks teapot"
    other = "a photo of a teapot on a mask sksy"
    (folder / "01.txt").write_text(other)
    examples = opened(recipe(folder, data=PLAIN))
    assert len(notes(examples, "01.png", "does not name the subject, 'sks'")) == 1
    assert tensors(examples, [Draw("instance", 0, 1)])[0]["caption"] == other
    small = opened(recipe(photos(folder / "small", size=(10, 40))))
    assert len(notes(small, "3 of 3 photos", "less than 16 pixels", "smallest 10")) == 1
    one = opened(recipe(photos(folder / "one", 1)))
    assert len(notes(one, "only one photo")) == 1
    one.prepare()


def test_the_resolution_suits_the_model(folder: Path) -> None:
    with pytest.raises(ExamplesError, match=r"(?s)100 is no multiple of 8.*resolution: (96|104)"):
        opened(recipe(folder, data={"resolution": 100}))


def test_a_dataset_that_cannot_be_trained_on(folder: Path, dataset: Path) -> None:
    with pytest.raises(CannotOpen, match="is not there"):
        opened(recipe(folder, folder / "nowhere"))
    (dataset / "metadata.jsonl").unlink()
    with pytest.raises(ExamplesError, match=r"class has no captions(?s:.*)regforge run"):
        opened(recipe(folder, dataset))


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_images_in_parquet_those_without_a_caption_left_out(
    folder: Path, tmp_path: Path, cache: str
) -> None:
    """They are read once in order, or laid aside to be read in any order."""
    texts = [f"number {n}" if n % 3 else None for n in range(9)]
    rows = [(make_image(color_of(n)), text) for n, text in enumerate(texts)]
    setup = recipe(folder, parquet(tmp_path / "x.parquet", rows), data={**PLAIN, "cache": cache})
    examples = opened(setup)
    assert examples.batches.regularization == 6
    assert len(notes(examples, "3 of 9 images have no caption and are left out")) == 1
    assert len(examples.notes) == 1
    examples.prepare()
    for draw in draws_of(setup, examples):
        (found,) = tensors(examples, [draw])
        assert color_in(found["moments"]) == color_of(number_in(found["caption"]))


def test_the_identifier_in_a_regularization_caption(folder: Path, dataset: Path) -> None:
    file = dataset / "metadata.jsonl"
    file.write_text(file.read_text().replace("red teapot, number 101", "SKS teapot"))
    examples = opened(recipe(folder, dataset))
    assert len(notes(examples, "101", "'sks'", "Choose another identifier")) == 1


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_corrupt_regularization_image(folder: Path, dataset: Path, cache: str) -> None:
    (dataset / "102.png").write_bytes(noise(102)[:-300])
    setup = recipe(folder, dataset, data={"cache": cache})
    examples = opened(setup)
    with pytest.raises(ExamplesError, match=r"102\S* of class cannot be decoded(?s:.*)whole copy"):  # noqa: PT012
        examples.prepare()
        examples.tensors(draws_of(setup, examples))


def test_a_dataset_on_the_hub(hub: "LoopbackHub", folder: Path, dataset: Path) -> None:
    commit = hub.put("me/teapots", {path.name: path for path in dataset.iterdir()})
    setup = recipe(folder, "me/teapots", data=PLAIN, regularization={"revision": commit})
    examples = opened(setup)
    here = opened(recipe(folder, dataset, data=PLAIN))
    assert (examples.batches.regularization, examples.notes) == (5, [])
    for draw in draws_of(setup, examples, 6):
        assert same(tensors(examples, [draw])[0], tensors(here, [draw])[0])


@pytest.fixture(scope="module")
def tinyworld() -> Family:
    from regforge.training.families import open_family

    setup = recipe(Path("unused"))
    return open_family(setup, torch.device("cpu"), torch.float32)


@pytest.mark.slow
def test_the_embedded_pipeline(
    tinyworld: Family, repo: Path, tmp_path: Path, dataset: Path
) -> None:
    """Cached, on disk and not cached: the same bits. And the latents are of the right image."""
    teapot = repo / "examples" / "subjects" / "teapot"

    def of(cache: str) -> tuple[TrainingRecipe, Examples]:
        data = {"cache": cache, "crops_per_image": 2}
        setup = recipe(teapot, dataset, data=data, optimizer={"steps": 4})
        examples = opened(setup, tinyworld, cache=tmp_path / "cache")
        examples.prepare()
        return setup, examples

    setup, fresh = of("none")
    draws = draws_of(setup, fresh)
    expected = [tensors(fresh, [draw])[0] for draw in draws]
    for cache in ("memory", "disk", "disk"):
        found = [tensors(of(cache)[1], [draw])[0] for draw in draws]
        assert all(same(*pair) for pair in zip(expected, found, strict=True))
    (batch,) = fresh.tensors(draws)
    _decoded_like_the_dataset(batch, tinyworld)


def test_captions_that_are_too_long(tinyworld: Family, folder: Path, dataset: Path) -> None:
    limit = tinyworld.pipeline.tokenizer.model_max_length
    setup = recipe(folder, dataset, data={"slot_dropout": 0})
    assert notes(opened(setup, tinyworld), "tokens") == []
    (folder / "01.txt").write_text("a photo of a sks teapot" + ", red" * limit)
    (note,) = notes(opened(setup, tinyworld), "tokens")
    assert note.startswith(f"1 of 3 captions of photos have more than {limit} tokens")


def _decoded_like_the_dataset(batch: Batch, model: Family) -> None:
    decode: Callable[[torch.Tensor], torch.Tensor] = model.decode
    for n in range(batch.instances, len(batch)):
        if not batch.captions[n]:
            continue
        latents = model.latents(batch.moments[n : n + 1], torch.zeros_like(batch.noise[n : n + 1]))
        color = (decode(latents)[0].mean((1, 2)) + 1) * 127.5
        wanted = {m: math.dist(color.tolist(), color_of(m)) for m in range(100, 105)}
        assert min(wanted, key=lambda m: wanted[m]) == number_in(batch.captions[n])
