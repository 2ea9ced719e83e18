"""What the trainer is fed with: from photos and datasets to batches."""

import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_training import (
    PLAIN,
    RESOLUTION,
    Built,
    SmallFamily,
    class_images,
    color_of,
    embedding_of,
    make_image,
    noise,
    parquet,
    photos,
    same,
)

from regforge.dataset.sources import CannotOpen
from regforge.prompts.photos import PhotosError
from regforge.recipe import TrainingRecipe
from regforge.training.batches import Batch, Batches, Draw, ExamplesError
from regforge.training.families import open_family
from regforge.training.families.base import Family

if TYPE_CHECKING:
    from hub_server import LoopbackHub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return class_images(tmp_path / "class")


def color_in(moments: torch.Tensor) -> tuple[int, ...]:
    """The colour of the whole crop, from the small family's moments."""
    return tuple(round(float(value)) for value in (moments[0].mean((1, 2)) + 1) * 127.5)


def number_in(caption: str) -> int:
    found = re.search(r"number (\d+)", caption)
    assert found, caption
    return int(found[1])


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_latents_meet_captions(folder: Path, dataset: Path, tmp_path: Path, cache: str) -> None:
    """Through shuffling, batches of several, caching and the prior."""
    examples = Built(
        folder,
        dataset,
        cache_folder=tmp_path / "cache",
        data={"cache": cache, "caption_dropout": 0},
        regularization={"per_instance": 2},
        optimizer={"steps": 12, "batch_size": 3},
    )
    examples.prepare()
    seen = set()
    draws = examples.draws()
    side = RESOLUTION // 8
    for start in range(0, len(draws), 9):
        (batch,) = examples.tensors(draws[start : start + 9])
        assert (len(batch), batch.instances) == (9, 3)
        assert batch.moments.shape == (9, 2, 3, side, side)
        assert batch.sampling_noise.shape == batch.noise.shape == (9, 3, side, side)
        assert batch.uniform.shape == (9,)
        tensors = (batch.moments, batch.sampling_noise, batch.noise, batch.uniform)
        assert {(each.dtype, each.device.type) for each in tensors} == {(torch.float32, "cpu")}
        for n in range(len(batch)):
            number = number_in(batch.captions[n])
            assert color_in(batch.moments[n]) == color_of(number)
            assert (number < 100) == (n < batch.instances)
            assert torch.equal(batch.embeddings["words"][n], embedding_of(batch.captions[n]))
            seen.add(number)
    assert seen == {0, 1, 2, 100, 101, 102, 103, 104}


def test_class_images_carry_their_own_sizes(folder: Path, dataset: Path) -> None:
    examples = Built(folder, dataset, data={**PLAIN, "crop": "center"})
    for found in examples.each(examples.draws()):
        number, geometry = number_in(found["captions"]), found["geometry"]
        size = (24, 32) if number < 100 else (20 + number % 3 * 8, 28 + number % 2 * 9)
        assert (geometry.original, geometry.target) == (size, (RESOLUTION, RESOLUTION))
        left_over = (max(size) - min(size)) / 2 * RESOLUTION / min(size)
        assert max(geometry.top_left) == pytest.approx(left_over, abs=1)
        assert min(geometry.top_left) == 0


def test_images_of_several_shapes_go_into_several_batches(folder: Path, dataset: Path) -> None:
    examples = Built(folder, dataset, data={**PLAIN, "crop": "none", "resolution": 48})
    draws = examples.draws(20)
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


SHAPES = [(n % 3 + 1, 2) for n in range(17)]


@given(st.integers(1, 17), st.integers(1, 6), st.integers(1, 3), st.integers(0, 99))
def test_in_buckets_each_image_is_seen_once_a_pass_however_steps_are_divided(
    count: int, size: int, processes: int, seed: int
) -> None:
    def batches(size: int, accumulation: int, process: int = 0, processes: int = 1) -> Batches:
        shapes = {"instance": SHAPES[:count]}
        of = (count, 0, size, 1, accumulation, seed, processes, process)
        return Batches(*of, shapes=shapes)

    shares = [batches(size, 1, each, processes) for each in range(processes)]
    steps = [[d.index for b in shares for draws in b.step(n) for d in draws] for n in range(count)]
    seen = [index for step in steps for index in step]
    for start in range(0, len(seen) - count + 1, count):
        assert sorted(seen[start : start + count]) == list(range(count))
    one_by_one = batches(1, size * processes)
    assert seen == [d.index for n in range(count) for draws in one_by_one.step(n) for d in draws]


def test_steps_of_many_images_are_of_one_bucket() -> None:
    shapes = [(n % 3 + 1, 2) for n in range(100)]
    made = Batches(100, 0, 4, 1, 1, 0, shapes={"instance": shapes})
    steps = [[d.index for draws in made.step(n) for d in draws] for n in range(100)]
    mixed = sum(len({shapes[index] for index in step}) > 1 for step in steps)
    assert mixed <= 4 * 3  # what is left over in four passes; only shuffled, nearly all


def test_random_numbers_are_well_spread(folder: Path, dataset: Path) -> None:
    examples = Built(folder, dataset)
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


def varied(folder: Path, dataset: Path, cache: str = "memory", **more: Any) -> Built:
    rates = {"caption_dropout": 0.2, "flip": True, "crop_scale": 0.3, "cache": cache}
    return Built(folder, dataset, data=rates, regularization={"class_twins": 0.4}, **more)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    top = tmp_path_factory.mktemp("alone")
    return photos(top / "photos"), class_images(top / "class")


@settings(max_examples=15)
@given(seed=st.integers(0, 2**40), order=st.randoms(use_true_random=False))
def test_draws_are_independent(sources: tuple[Path, Path], seed: int, order: random.Random) -> None:
    examples = varied(*sources, seed=seed)
    draws = examples.draws(5)
    alone = {draw: examples.one(draw) for draw in draws}
    order.shuffle(draws)
    draws = draws[: order.randint(1, len(draws))]
    expected = [d for d in draws if d.stream == "instance"]
    beside = [d for d in draws if d.stream == "class"]
    expected += sorted(beside, key=lambda d: d.of is not None)
    together = varied(*sources, seed=seed).each(draws)
    assert all(same(alone[d], found) for d, found in zip(expected, together, strict=True))


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_cached_is_as_not_cached(folder: Path, dataset: Path, tmp_path: Path, cache: str) -> None:
    for name in ("00", "01", "02"):
        (folder / f"{name}.png").write_bytes(noise(int(name)))
    fresh, lazy = varied(folder, dataset, "none"), varied(folder, dataset)
    kept = varied(folder, dataset, cache, cache_folder=tmp_path / "cache")
    kept.prepare()
    kept.family.gone = True  # nothing is computed any more
    draws = kept.draws()
    for draw in draws:
        expected = fresh.one(draw)
        assert same(expected, kept.one(draw))
        assert same(expected, lazy.one(draw))  # never prepared
    if cache == "disk":
        again = varied(folder, dataset, cache, cache_folder=tmp_path / "cache", model=kept.family)
        again.prepare()
        assert all(map(same, kept.each(draws), again.each(draws)))


def test_the_seed_decides_and_not_the_name_of_a_photo(folder: Path, dataset: Path) -> None:
    first, again, other = (
        varied(folder, dataset, seed=seed).one(Draw("class", 3, 1)) for seed in (0, 0, 1)
    )
    assert same(first, again)
    assert not torch.equal(first["noise"], other["noise"])
    assert not torch.equal(first["uniform"], other["uniform"])
    (folder / "00.png").write_bytes(noise(1))
    draws = [Draw("instance", number, 0) for number in range(10)]
    before = Built(folder, data=PLAIN).each(draws)
    for kind in ("png", "txt"):
        (folder / f"00.{kind}").rename(folder / f"0.{kind}")
    assert all(map(same, before, Built(folder, data=PLAIN).each(draws)))


def test_nothing_is_encoded_twice(folder: Path, dataset: Path) -> None:
    for number in range(3):
        (folder / f"{number:02d}.png").write_bytes(noise(number))
    examples = Built(folder, dataset, data={"crops_per_image": 2}, optimizer={"steps": 40})
    made = examples.family
    examples.prepare()
    assert len(made.images) <= 2 * (3 + 5)
    assert len(made.captions) == len(set(made.captions)) <= 2 * (3 + 5) + 1
    counts = len(made.images), len(made.captions)
    examples.tensors(examples.draws())
    examples.prepare()
    assert (len(made.images), len(made.captions)) == counts


def test_only_what_a_process_will_draw_is_prepared(folder: Path, dataset: Path) -> None:
    def prepared(steps: int, **process: int) -> SmallFamily:
        examples = Built(folder, dataset, optimizer={"steps": steps}, **process)
        examples.prepare()
        return examples.family

    assert len(prepared(2).images) == 4
    one, other = (prepared(1, processes=2, process=process) for process in range(2))
    assert len(one.images) == len(other.images) == 2
    assert one.captions != other.captions


def test_random_crops_differ(folder: Path) -> None:
    (folder / "00.png").write_bytes(noise(0))
    examples = Built(folder, data={"crops_per_image": 5})
    found = examples.each([Draw("instance", number, 0) for number in range(100)])
    assert len({str(each["moments"].tolist()) for each in found}) == 5


def test_flip_is_off_unless_asked_for(folder: Path) -> None:
    (folder / "00.png").write_bytes(noise(1, (16, 16)))
    draws = [Draw("instance", number, 0) for number in range(200)]
    pixels = np.asarray(Image.open(folder / "00.png"), dtype=np.float32) / 127.5 - 1
    left = pixels[:8, :8].mean((0, 1))

    def mirrored(**data: Any) -> int:
        found = Built(folder, data={"crop": "center", **data}).each(draws)
        assert found[0]["moments"].shape[-1] == 2
        corners = [each["moments"][0, :, 0, 0].numpy() for each in found]
        return sum(not np.allclose(corner, left, atol=1e-3) for corner in corners)

    assert mirrored() == 0
    assert 70 <= mirrored(flip=True) <= 130


def test_a_trained_text_encoder_is_asked_each_time(folder: Path, dataset: Path) -> None:
    examples = Built(folder, dataset, method={"text_encoder": True})
    examples.prepare()
    (batch,) = examples.tensors(examples.draws(2))
    assert (batch.embeddings, batch.fresh) == ({}, [0, 1, 2, 3])
    assert len(batch.captions) == 4
    assert not examples.family.captions


@pytest.mark.parametrize("share", [0.25, 0.5, 1])
def test_a_class_twin_is_its_photo_without_the_identifier(
    folder: Path, dataset: Path, share: float
) -> None:
    prior = {"class_twins": share, "per_instance": 2}
    there = dataset if share < 1 else None
    examples = Built(folder, there, data=PLAIN, regularization=prior)
    draws = examples.draws(8)
    twins = [draw for draw in draws if draw.of is not None]
    assert len(twins) == 16 * share
    assert twins[0].of in draws
    for twin in twins:
        photo, found = examples.one(twin.of), examples.one(twin)
        photo["captions"] = photo["captions"].replace("sks ", "")
        photo["words"] = embedding_of(photo["captions"])
        assert same(photo, found)
    shown = Counter(draw.index for draw in draws if draw.stream == "class" and draw.of is None)
    assert max(shown.values(), default=0) <= 1 + 16 * (1 - share) // 5
    examples.prepare()
    examples.family.gone = True
    examples.tensors(draws)


def test_a_photo_of_something_else_has_no_class_twin(folder: Path) -> None:
    (folder / "01.txt").write_text("a table")
    Built(folder)
    with pytest.raises(ExamplesError, match=r"01\.png"):
        Built(folder, regularization={"class_twins": 1})


@pytest.mark.parametrize("none", [{"dataset": None}, {"prior_weight": 0}])
def test_no_regularization(folder: Path, dataset: Path, none: dict[str, Any]) -> None:
    """A weight of zero is the same as no dataset; then it need not even be there."""
    examples = Built(folder, dataset / "nowhere", regularization=none)
    assert (examples.batches.instances, examples.batches.regularization) == (3, 0)
    draws, beside = examples.draws(6), Built(folder, dataset)
    assert draws == [draw for draw in beside.draws(6) if draw.stream == "instance"]
    assert all(map(same, examples.each(draws), beside.each(draws)))


def test_photos_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (folder / "01.png").write_bytes(noise(1)[:-300])
    (folder / "02.png").write_text("no image")
    for place, problem in (
        (tmp_path / "empty", "has no photos"),
        (tmp_path / "nowhere", "cannot be read"),
        (folder, r"(?s)01.png: cannot be read.*02.png: is not an image"),
    ):
        with pytest.raises(PhotosError, match=problem):
            Built(place)


def test_what_people_should_know_of_their_photos(folder: Path, dataset: Path) -> None:
    assert list(Built(folder, dataset, data={"slot_dropout": 0}).notes) == []
    bare = Built(photos(folder / "bare", captions=False), data=PLAIN)
    assert len(bare.notes_with("00.png, 01.png and 02.png have no caption")) == 1
    assert bare.one(Draw("instance", 0, 1))["captions"] == "a photo of a sks teapot"
    other = "a photo of a teapot on a mask sksy"
    (folder / "01.txt").write_text(other)
    unnamed = Built(folder, data=PLAIN)
    assert len(unnamed.notes_with("01.png", "does not name the subject, 'sks'")) == 1
    assert unnamed.one(Draw("instance", 0, 1))["captions"] == other
    small = Built(photos(folder / "small", size=(10, 40)))
    assert len(small.notes_with("3 of 3 photos", "less than 16 pixels", "smallest 10")) == 1
    one = Built(photos(folder / "one", 1))
    assert len(one.notes_with("only one photo")) == 1
    one.prepare()


def test_a_dataset_or_a_resolution_that_cannot_be_trained_on(folder: Path, dataset: Path) -> None:
    with pytest.raises(CannotOpen, match="is not there"):
        Built(folder, folder / "nowhere")
    (dataset / "metadata.jsonl").unlink()
    with pytest.raises(ExamplesError, match=r"class has no captions(?s:.*)regforge run"):
        Built(folder, dataset)
    with pytest.raises(ExamplesError, match=r"(?s)100 is no multiple of 8.*resolution: (96|104)"):
        Built(folder, data={"resolution": 100})


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_images_in_parquet_without_bare_ones(folder: Path, tmp_path: Path, cache: str) -> None:
    """They are read once in order, or laid aside to be read in any order."""
    texts = [f"number {n}" if n % 3 else None for n in range(9)]
    rows = [(make_image(color_of(n)), text) for n, text in enumerate(texts)]
    table = parquet(tmp_path / "x.parquet", rows)
    examples = Built(folder, table, data={**PLAIN, "cache": cache})
    assert examples.batches.regularization == 6
    assert len(examples.notes_with("3 of 9 images have no caption and are left out")) == 1
    assert len(examples.notes) == 1
    examples.prepare()
    for found in examples.each(examples.draws()):
        assert color_in(found["moments"]) == color_of(number_in(found["captions"]))


def test_the_identifier_in_a_regularization_caption(folder: Path, dataset: Path) -> None:
    file = dataset / "metadata.jsonl"
    file.write_text(file.read_text().replace("red teapot, number 101", "SKS teapot"))
    found = Built(folder, dataset).notes_with("101", "'sks'", "Choose another identifier")
    assert len(found) == 1


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_corrupt_regularization_image(folder: Path, dataset: Path, cache: str) -> None:
    (dataset / "102.png").write_bytes(noise(102)[:-300])
    examples = Built(folder, dataset, data={"cache": cache})
    with pytest.raises(ExamplesError, match=r"102\S* of class cannot be decoded(?s:.*)whole copy"):  # noqa: PT012
        examples.prepare()
        examples.tensors(examples.draws())


def test_a_dataset_on_the_hub(hub: "LoopbackHub", folder: Path, dataset: Path) -> None:
    commit = hub.put("me/teapots", {path.name: path for path in dataset.iterdir()})
    there = Built(folder, "me/teapots", data=PLAIN, regularization={"revision": commit})
    assert (there.batches.regularization, there.notes) == (5, [])
    draws = there.draws(6)
    assert all(map(same, there.each(draws), Built(folder, dataset, data=PLAIN).each(draws)))


@pytest.fixture(scope="module")
def some_recipe(tmp_path_factory: pytest.TempPathFactory) -> TrainingRecipe:
    return Built(photos(tmp_path_factory.mktemp("photos"))).recipe


@pytest.fixture(scope="module")
def tinyworld(some_recipe: TrainingRecipe) -> Family:
    return open_family(some_recipe, torch.device("cpu"), torch.float32)


@pytest.mark.slow
def test_embedded_pipeline(
    tinyworld: Family, some_recipe: TrainingRecipe, repo: Path, tmp_path: Path, dataset: Path
) -> None:
    """Cached, on disk and not cached: the same bits. And the latents are of the right image."""

    def of(cache: str) -> Built:
        # Where all is cached, the text encoders are released.
        fresh = open_family(some_recipe, torch.device("cpu"), torch.float32)
        examples = Built(
            repo / "examples" / "subjects" / "teapot",
            dataset,
            model=tinyworld if cache == "none" else fresh,
            cache_folder=tmp_path / "cache",
            data={"cache": cache, "crops_per_image": 2},
            optimizer={"steps": 4},
        )
        examples.prepare()
        return examples

    fresh = of("none")
    draws = fresh.draws()
    expected = [fresh.one(draw) for draw in draws]
    for cache in ("memory", "disk", "disk"):
        found = of(cache)
        assert all(same(each, found.one(draw)) for draw, each in zip(draws, expected, strict=True))
    (batch,) = fresh.tensors(draws)
    _decoded_like_the_dataset(batch, tinyworld)


def _decoded_like_the_dataset(batch: Batch, model: Family) -> None:
    for n in range(batch.instances, len(batch)):
        if not batch.captions[n]:
            continue
        latents = model.latents(batch.moments[n : n + 1], torch.zeros_like(batch.noise[n : n + 1]))
        color = (model.decode(latents)[0].mean((1, 2)) + 1) * 127.5
        wanted = {m: math.dist(color.tolist(), color_of(m)) for m in range(100, 105)}
        assert min(wanted, key=lambda m: wanted[m]) == number_in(batch.captions[n])


def test_captions_that_are_too_long(tinyworld: Family, folder: Path, dataset: Path) -> None:
    def notes() -> list[str]:
        return Built(folder, dataset, model=tinyworld, data=PLAIN).notes_with("tokens")

    limit = tinyworld.pipeline.tokenizer.model_max_length
    assert notes() == []
    (folder / "01.txt").write_text("a photo of a sks teapot" + ", red" * limit)
    (note,) = notes()
    assert note.startswith(f"1 of 3 captions of photos have more than {limit} tokens")
