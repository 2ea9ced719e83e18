"""The tensors of any draw.

    draw ─► image ─► crop ─► pixels ─► moments ┐
       └──► caption ─► embeddings ───────────────┴─► batch, with noise and time

Every step of it follows from the draw's own number and the recipe: no example depends on those
beside it. Images go through the autoencoder one by one, so that cached and not cached is the same
to the bit; captions go through the text encoders in groups, which is the same in float32 on a CPU,
and within the noise of the precision on a GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regforge.files import cache_folder as shared_cache
from regforge.images.encoding import stacked
from regforge.images.pipelines import inputs_of
from regforge.journal import Reporter
from regforge.recipe import TrainingRecipe, twins_of, uses_regularization
from regforge.runs import identifier_in
from regforge.training.augmentation import Captioning, Crop, Cropping, decode, pixels_of
from regforge.training.batches import (
    Batch,
    Batches,
    DiskStore,
    Draw,
    Embeddings,
    ExamplesError,
    MemoryStore,
    Store,
    generator,
    identity,
    key_of,
    number_of,
)
from regforge.training.data import InstanceImages, RegularizationImages, at_odds, run_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from regforge.training.families.base import Family

_CAPTIONS_AT_ONCE = 32
_MUCH_MEMORY = 2**30
"""Bytes of latents or embeddings that are worth a line."""

_NAMES = {"instance": "photos", "class": "regularization images"}


class Examples:
    """The instance and regularization images of a recipe, ready to be drawn.

    Opened, all captions are read, and nothing is decoded or encoded yet. Files of `data.cache:
    disk` lie in `cache_folder` (regforge's own if None), which runs may share; the autoencoder lies
    on `device`. `prepare` computes what the draws of `process`, one of `processes`, need.

    Raises:
        PhotosError: There are no photos, or some cannot be read.
        ExamplesError: The dataset has no captions, or the resolution does not suit the model.
        CannotOpen: There is no such dataset, or it holds no images.
        HubError: The dataset is on the Hub and cannot be read.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        family: Family,
        *,
        cache_folder: Path | None = None,
        device: torch.device | str,
        reporter: Reporter,
        processes: int = 1,
        process: int = 0,
    ) -> None:
        data, prior = recipe.data, recipe.regularization
        has_prior = uses_regularization(recipe)
        run = run_of(prior.dataset) if has_prior else None
        photos = InstanceImages(recipe.subject, run)
        self._sets: dict[str, InstanceImages | RegularizationImages] = {"instance": photos}
        self._class_captions = photos.class_captions() if twins_of(recipe) else []
        self.revision: str | None = None
        if has_prior:
            regularization = RegularizationImages(
                prior, recipe.subject.word, slot_dropout=data.slot_dropout > 0
            )
            self._sets["class"] = regularization
            self.revision = regularization.revision
        self._recipe = recipe
        self._family = family
        self._device = device
        self._reporter = reporter
        self._store = Store()
        if data.cache == "disk":
            self._store = DiskStore(cache_folder or shared_cache() / "training", reporter)
        elif data.cache == "memory":
            self._store = MemoryStore()
        self._cropping = _cropping(recipe, family)
        self._captioning = Captioning(
            recipe.seed, data.caption_dropout, data.slot_dropout, data.crop_wording
        )
        self.batches = Batches(
            instances=len(self._sets["instance"].images),
            regularization=len(self._sets["class"].images) if has_prior else 0,
            batch_size=recipe.optimizer.batch_size,
            per_instance=prior.per_instance,
            accumulation=recipe.optimizer.gradient_accumulation,
            seed=recipe.seed,
            processes=processes,
            process=process,
            twins=twins_of(recipe),
            shapes={
                stream: [self._cropping.crop(e.size, stream, e.name, 0).target for e in each.images]
                for stream, each in self._sets.items()
                if data.crop == "none"
            },
        )
        self.notes = [
            *(note for each in self._sets.values() for note in each.notes),
            *(at_odds(recipe, regularization.models, identifier_in(run)) if has_prior else ()),
            *self._notes_on_sizes(),
            *self._notes_on_lengths(),
        ]
        self._contents: dict[tuple[str, int], str] = {}
        self._models: dict[str, str] = {}

    def _notes_on_sizes(self) -> Iterator[str]:
        for stream, each in self._sets.items():
            sizes = [min(image.size) for image in each.images]
            small = sum(size < self._cropping.resolution for size in sizes)
            if small and self._cropping.kind != "none":
                yield (
                    f"{small:,} of {len(sizes):,} {_NAMES[stream]} are less than "
                    f"{self._cropping.resolution} pixels wide or high (the smallest {min(sizes)}) "
                    "and will be enlarged."
                )

    def _notes_on_lengths(self) -> Iterator[str]:
        """Captions of which a text encoder reads the beginning only."""
        pipeline = self._family.pipeline
        tokenizer = getattr(pipeline, "tokenizer", None)
        if tokenizer is None or "max_sequence_length" in inputs_of(pipeline):
            return  # T5 or a language model reads the rest
        most = tokenizer.model_max_length
        convert = getattr(self._family.pipeline, "maybe_convert_prompt", None)
        for stream, each in self._sets.items():
            texts = [image.caption.text for image in each.images]
            if convert is not None:  # writes a new token of several vectors out
                texts = convert(texts, tokenizer)
            long = sum(len(ids) > most for ids in tokenizer(texts, verbose=False).input_ids)
            if long:
                yield (
                    f"{long:,} of {len(texts):,} captions of {_NAMES[stream]} have more than "
                    f"{most} tokens; the model does not read what comes after."
                )

    # ------------------------------------------------------------------------------------ batches

    def tensors(self, draws: Sequence[Draw]) -> list[Batch]:
        """The tensors of some draws, on the CPU, those of one shape together.

        What an example is depends on its draw and the recipe alone: not on the other draws, and
        not on whether latents and embeddings are cached.
        """
        of_shape: dict[tuple[int, int], list[tuple[Draw, Crop]]] = {}

        def order(draw: Draw) -> tuple[bool, bool]:
            return draw.stream != "instance", draw.of is not None

        for draw in sorted(draws, key=order):
            crop = self._crop(draw)
            of_shape.setdefault(crop.target, []).append((draw, crop))
        return [self._batch(members) for members in of_shape.values()]

    def _batch(self, members: Sequence[tuple[Draw, Crop]]) -> Batch:
        import torch

        draws = [draw for draw, _ in members]
        captions = [self._caption(draw, crop) for draw, crop in members]
        fresh = [number for number, caption in enumerate(captions) if self._is_fresh(caption)]
        moments = torch.stack([self._moments(draw, crop) for draw, crop in members])
        shape = moments.shape[2:]

        def random(draw: Draw, name: str) -> torch.Generator:
            of = draw.source
            seed = number_of(self._recipe.seed, of.stream, of.number, name)
            return torch.Generator().manual_seed(seed)

        def normal(name: str) -> Tensor:
            return torch.stack([torch.randn(shape, generator=random(each, name)) for each in draws])

        return Batch(
            moments=moments,
            sampling_noise=normal("latent"),
            noise=normal("noise"),
            uniform=torch.cat([torch.rand(1, generator=random(each, "time")) for each in draws]),
            captions=captions,
            embeddings=self._embeddings(captions, fresh),
            fresh=fresh,
            geometry=[crop.geometry for _, crop in members],
            instances=sum(draw.stream == "instance" for draw in draws),
            twins=sum(draw.of is not None for draw in draws),
        )

    def _crop(self, draw: Draw) -> Crop:
        draw = draw.source
        image = self._sets[draw.stream].images[draw.index]
        rng = generator(self._recipe.seed, draw.stream, draw.number, "crop")
        variant = int(rng.integers(self._cropping.variants))
        flip = self._recipe.data.flip and bool(rng.integers(2))
        return self._cropping.crop(image.size, draw.stream, image.name, variant, flip=flip)

    def _caption(self, draw: Draw, crop: Crop) -> str:
        if draw.of is not None:
            caption = self._class_captions[draw.index]
        else:
            caption = self._sets[draw.stream].images[draw.index].caption
        return self._captioning.vary(draw, caption, tight=crop.tight)

    # ------------------------------------------------------------------------------------- images

    def _moments(self, draw: Draw, crop: Crop) -> Tensor:
        """float32 [2, C, h, w], on the CPU."""
        place = draw.source.stream, draw.index
        if self._store.keeps and place in self._contents:
            found = self._store.load(self._latent_key(self._contents[place], crop))
            if found is not None:
                return found["moments"]
        content = self._sets[place[0]].read(draw.index)
        return next(self._encoded(place, content, [crop]))

    def _encoded(
        self, place: tuple[str, int], content: bytes, crops: Sequence[Crop]
    ) -> Iterator[Tensor]:
        """The moments of some crops of an image; it is decoded if one of them is not there yet."""
        import torch

        about = self._sets[place[0]].images[place[1]]
        image = None
        if self._store.keeps and place not in self._contents:
            self._contents[place] = hashlib.sha256(content).hexdigest()
        for crop in crops:
            key = self._latent_key(self._contents[place], crop) if self._store.keeps else ""
            if found := self._store.load(key):
                yield found["moments"]
                continue
            if image is None:
                image = decode(content, about.size, about.label)
            pixels = torch.from_numpy(pixels_of(image, crop).copy()).permute(2, 0, 1)
            with torch.no_grad():
                scaled = pixels.to(self._device, torch.float32)[None] / 127.5 - 1
                moments = self._family.encode_images(scaled)[0].float().cpu()
            self._store.save(key, {"moments": moments})
            yield moments

    def _latent_key(self, content: str, crop: Crop) -> str:
        return key_of(self._model("images"), content, crop.box, crop.target, crop.flip)

    # ----------------------------------------------------------------------------------- captions

    def _is_fresh(self, caption: str) -> bool:
        """Whether what encodes a caption is being trained, so that nothing of it can be kept."""
        token = self._family.token
        return self._recipe.method.text_encoder or (token is not None and token.stands_in(caption))

    def _embeddings(self, captions: Sequence[str], fresh: Sequence[int]) -> Embeddings:
        import torch

        kept = [caption for number, caption in enumerate(captions) if number not in fresh]
        if not kept:
            return {}
        known = self._embedded(kept)
        nothing = {name: torch.zeros_like(value) for name, value in known[0].items()}
        each = iter(known)
        return stacked([nothing if n in fresh else next(each) for n in range(len(captions))])

    def _embedded(self, captions: Sequence[str]) -> list[Embeddings]:
        """The embeddings of captions; those that are not there yet are computed together."""
        import torch

        model = self._model("captions") if self._store.keeps else ""
        keys = [key_of(model, caption) if model else caption for caption in captions]
        known = {key: self._store.load(key) for key in dict.fromkeys(keys)}
        new = {k: caption for k, caption in zip(keys, captions, strict=True) if known[k] is None}
        if new:
            with torch.no_grad():
                made = self._family.encode_captions(list(new.values()))
            for key, embeddings in zip(new, made, strict=True):
                # Copies: a part of a batch would keep the whole batch in memory.
                own = {name: value.cpu().clone() for name, value in embeddings.items()}
                self._store.save(key, own)
                known[key] = own
        return [known[key] or {} for key in keys]

    def _model(self, what: str) -> str:
        """Which model encodes `images`, or `captions`; only files need to know it."""
        if not isinstance(self._store, DiskStore):
            return what
        if what not in self._models:
            import torch

            family = self._family
            images = {"vae": family.pipeline.vae}
            modules = images if what == "images" else dict(family.text_encoders)
            device = torch.device(self._device).type
            about = (what, family.name, self._recipe.optimizer.precision, device)
            self._models[what] = identity(modules, *about)
        return self._models[what]

    # ------------------------------------------------------------------------------------ prepare

    def prepare(self) -> None:
        """Compute all latents and text embeddings that the training will need, before it begins.

        Frozen text encoders and the autoencoder are on the device one after the other, and then
        neither is, unless `data.cache` is `none`: then nothing is kept.
        """
        if not self._store.keeps:
            return
        crops: dict[str, dict[int, dict[Crop, None]]] = {}
        captions: dict[str, None] = {}
        for step in range(self._recipe.optimizer.steps):
            for draws in self.batches.step(step):
                for draw in draws:
                    crop = self._crop(draw)
                    of_stream = crops.setdefault(draw.source.stream, {})
                    of_stream.setdefault(draw.index, {})[crop] = None
                    if not self._is_fresh(caption := self._caption(draw, crop)):
                        captions[caption] = None
        if captions:
            self._prepare_captions(list(captions))
        if not self._recipe.trains_text:
            self._family.release_text_encoders()
        for stream, of_image in crops.items():
            self._prepare_images(stream, {i: list(found) for i, found in of_image.items()})
        self._family.put_vae_away()

    def _prepare_images(self, stream: str, crops: dict[int, list[Crop]]) -> None:
        total = sum(map(len, crops.values()))
        with self._reporter.task(f"encoding {_NAMES[stream]}", total, "crops") as task:
            for index, content in self._sets[stream].read_some(crops):
                for moments in self._encoded((stream, index), content, crops[index]):
                    if task.done == 0:
                        self._say_memory(f"latents of {total:,} crops", total * moments.nbytes)
                    task.advance()

    def _prepare_captions(self, captions: Sequence[str]) -> None:
        with self._reporter.task("encoding captions", len(captions), "captions") as task:
            for start in range(0, len(captions), _CAPTIONS_AT_ONCE):
                for embeddings in self._embedded(captions[start : start + _CAPTIONS_AT_ONCE]):
                    if task.done == 0:
                        size = len(captions) * sum(each.nbytes for each in embeddings.values())
                        self._say_memory(f"embeddings of {len(captions):,} captions", size)
                    task.advance()

    def _say_memory(self, what: str, size: int) -> None:
        if isinstance(self._store, MemoryStore) and size > _MUCH_MEMORY:
            self._reporter.say(
                f"The {what} take {size / 2**30:.1f} GiB of main memory; data.cache: disk would "
                "keep them in files."
            )


def _cropping(recipe: TrainingRecipe, family: Family) -> Cropping:
    data, multiple = recipe.data, family.side_multiple
    resolution = data.resolution or family.resolution
    if resolution % multiple:
        nearest = max(multiple, round(resolution / multiple) * multiple)
        raise ExamplesError(
            f"data.resolution: {resolution} is no multiple of {multiple}, as {recipe.base_model} "
            "needs it.",
            hint=f"Set data.resolution: {nearest}",
        )
    return Cropping(
        data.crop, data.crop_scale, data.crops_per_image, resolution, multiple, recipe.seed
    )
