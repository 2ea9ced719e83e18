"""Image files with what made them written inside, and the staging area that keeps them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from regforge.files import UNFINISHED, delete, read_object, write_atomically
from regforge.images.pipelines import sampler_name
from regforge.images.renderer import (
    EncodedImage,
    ModelIdentity,
    Pixels,
    RenderedImage,
    Renderer,
    RenderError,
    batches,
    is_sent,
    job_size,
)
from regforge.journal import Task
from regforge.recipe.rendering import Render
from regforge.records import ImageJob

Format = Literal["webp", "png", "jpeg"]

_WAITING_BYTES = 256 * 2**20
"""Pixels that may wait to be written; a renderer that is faster waits."""

SUFFIXES: dict[Format, str] = {"webp": "webp", "png": "png", "jpeg": "jpg"}

_WEBP_METHOD = 1
"""Of 0 to 6. The files of 4 are 2 to 5 % smaller and take three to five times as long."""


def encode_image(pixels: Pixels, *, format: Format, quality: int, text: str | None) -> bytes:  # noqa: A002
    """Encode pixels, uint8 [H, W, 3], with what made them; `quality`, 1 to 100, is for JPEG.

    The text is the one that web UIs and image browsers read, where they look for it: in the
    `parameters` chunk of a PNG, and in the Exif user comment of a WebP or JPEG. Equal pixels and
    text give equal bytes.

    Raises:
        RenderError: The text is longer than a JPEG can hold.
    """
    image, out = Image.fromarray(pixels), io.BytesIO()
    if text is not None:  # halves of characters and zeros are in no file
        text = text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")
    exif = b"" if text is None else _exif(text)
    if format == "png":
        chunks = PngInfo()
        if text is not None:
            chunks.add_text("parameters", text)
        image.save(out, "PNG", pnginfo=chunks)
    elif format == "webp":
        image.save(
            out, "WEBP", lossless=True, exact=True, quality=0, method=_WEBP_METHOD, exif=exif
        )
    elif len(exif) > 65_533:
        raise RenderError(
            f"The prompt and parameters of an image are longer than a JPEG can hold ({len(exif)} "
            "bytes).",
            hint="Set render.format: webp",
        )
    else:
        image.save(out, "JPEG", quality=quality, subsampling=0, optimize=True, exif=exif)
    return out.getvalue()


def encoded(
    image: RenderedImage | EncodedImage, render: Render, identity: ModelIdentity
) -> EncodedImage:
    """An image as the file that a recipe wants, with what made it written inside."""
    if isinstance(image, EncodedImage):
        return image
    content = encode_image(
        image.pixels,
        format=render.format,
        quality=render.jpeg_quality,
        text=parameters_text(image.job, render, identity),
    )
    return EncodedImage(image.job, content, image.nsfw, image.not_finite)


def size_of(image: bytes) -> tuple[int, int]:
    """Width and height of an image file, in pixels."""
    with Image.open(io.BytesIO(image)) as decoded:
        return decoded.size


def parameters_text(job: ImageJob, render: Render, identity: ModelIdentity) -> str:
    """What made an image, in the form of the AUTOMATIC1111 web UI.

    The prompt, `Negative prompt: ...` if there is one, and a last line `Steps: 25, Sampler: DDIM,
    CFG scale: 4, ...`.
    """
    width, height = job_size(job, identity)
    values: dict[str, object] = {
        "Steps": render.steps if is_sent(render, "steps", identity) else None,
        "Sampler": sampler_name(identity.scheduler)
        if is_sent(render, "scheduler", identity)
        else None,
        "CFG scale": f"{render.guidance_scale:g}"
        if is_sent(render, "guidance_scale", identity)
        else None,
        **render.shortcuts,
        "Seed": job.seed if is_sent(render, "seed", identity) else None,
        "Size": f"{width}x{height}" if width and height else None,
        "Model": identity.model,
        "Revision": identity.revision,
        "VAE": identity.vae,
        "LoRA": identity.loras_as_json,
        "Precision": identity.dtype if render.renderer == "local" else None,
        "Class noun": job.prompt.class_noun,
        "Prompt set": job.prompt.prompt_set,
        "Image": job.id,
        "Generator": "regforge",
    }
    # No line of the prompt may pass for the negative prompt.
    lines = [re.sub(r"\s*\n\s*(?=Negative prompt:)", " ", job.prompt.text.strip())]
    if negative := render.negative_for(job.prompt.prompt_set).strip():
        lines.append(f"Negative prompt: {negative}")
    known = ((name, value) for name, value in values.items() if value is not None)
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in known))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def _exif(text: str) -> bytes:
    """Exif data with nothing but a user comment.

    Written by hand: Pillow gives the comment a type (BYTE) that common readers do not expect.
    """
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    entry, end = ">HHII", struct.pack(">I", 0)
    # A header of 8 bytes, then two directories with one entry of 12 bytes each.
    first, second = 8, 8 + 2 + 12 + 4
    return b"".join(
        (
            b"Exif\0\0",
            struct.pack(">2sHI", b"MM", 42, first),
            struct.pack(">H", 1),
            struct.pack(entry, 0x8769, 4, 1, second),  # LONG: where the Exif directory lies
            end,
            struct.pack(">H", 1),
            struct.pack(entry, 0x9286, 7, len(comment), second + 2 + 12 + 4),  # UNDEFINED
            end,
            comment,
        )
    )


# --------------------------------------------------------------------------------------- staging


class Staging:
    """The staging area of one run: images that are drawn and not yet judged, one file each.

        <id>.<attempt>.webp   the image
        <id>.<attempt>.json   written after it: what it was made from, and its digest

    Encoding and writing happen on background threads while the next images are drawn. An image
    counts only if both files are there and agree, and were made by this model with these settings.
    Used from one thread. The folder is created when the first image comes.

    Attributes:
        early: Ids of images that were drawn before they were asked for, until they are.
    """

    def __init__(self, folder: Path, render: Render, identity: ModelIdentity) -> None:
        self._folder = folder
        self._render = render
        self._identity = identity
        self._pool = ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 1) // 2)))
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._bytes = 0
        self._error: BaseException | None = None
        self.early = set[str]()

    def missing(self, jobs: Sequence[ImageJob]) -> list[ImageJob]:
        """The jobs whose images are not there, or were made otherwise."""
        self.flush()
        return [job for job in jobs if self._staged(job) is None]

    def read(self, job: ImageJob) -> EncodedImage:
        """A job's image; a RenderError if it is not there (see `missing`)."""
        self.flush()
        staged = self._staged(job)
        if staged is None:
            raise RenderError(f"Image {job.id} is not in {self._folder} any more.")
        return staged

    def put(self, image: RenderedImage | EncodedImage) -> None:
        """Hand over an image to the background; a StorageError is about one before it."""
        while self._bytes >= _WAITING_BYTES:
            self._await_oldest()
        if self._error is not None:
            raise self._error
        size = len(image.image) if isinstance(image, EncodedImage) else image.pixels.nbytes
        self._bytes += size
        self._waiting.append((self._pool.submit(self._write, image), size))

    def flush(self) -> None:
        """Wait until everything is written; a StorageError if an image could not be."""
        while self._waiting:
            self._await_oldest()
        if self._error is not None:
            raise self._error

    def _await_oldest(self) -> None:
        future, size = self._waiting.popleft()
        self._bytes -= size
        self._error = self._error or future.exception()

    def discard(self, jobs: Sequence[ImageJob] | None = None) -> None:
        """Delete the images of some jobs, of all attempts; all images if left out."""
        self.flush()
        ids = None if jobs is None else {job.id for job in jobs}
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            left_behind = path.name.startswith(UNFINISHED)  # nobody writes any more
            if ids is None or left_behind or path.name.partition(".")[0] in ids:
                delete(path)

    def close(self) -> None:
        """Write the images that wait and stop the threads; see `flush`. An empty folder goes."""
        self._pool.shutdown()
        self.flush()
        with suppress(OSError):
            self._folder.rmdir()

    # ------------------------------------------------------------------------------------- files

    def _path(self, job: ImageJob, suffix: str) -> Path:
        return self._folder / f"{job.id}.{job.attempt}.{suffix}"

    def _staged(self, job: ImageJob) -> EncodedImage | None:
        marker = read_object(self._path(job, "json"))
        try:
            image = self._path(job, SUFFIXES[self._render.format]).read_bytes()
        except OSError:
            return None
        if marker.get("made_from") != self._made_from(job):
            return None
        if marker.get("sha256") != hashlib.sha256(image).hexdigest():
            return None
        return EncodedImage(job, image, bool(marker.get("nsfw")), bool(marker.get("not_finite")))

    def _made_from(self, job: ImageJob) -> str:
        """Digest of all that decides about the file: prompt, parameters, model and format."""
        render, prompt = self._render, job.prompt
        parts: dict[str, Any] = {
            "text": prompt.text,
            "parameters": parameters_text(job, render, self._identity),
            "scheduler": self._identity.scheduler,
            "variant": render.variant,
            "format": [render.format, render.jpeg_quality if render.format == "jpeg" else None],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _write(self, image: RenderedImage | EncodedImage) -> None:
        image = encoded(image, self._render, self._identity)
        marker = {
            "made_from": self._made_from(image.job),
            "sha256": hashlib.sha256(image.image).hexdigest(),
            "nsfw": image.nsfw,
            "not_finite": image.not_finite,
        }
        write_atomically(self._path(image.job, SUFFIXES[self._render.format]), image.image)
        write_atomically(self._path(image.job, "json"), json.dumps(marker) + "\n")


def expect(staging: Staging, renderer: Renderer, jobs: Sequence[ImageJob]) -> None:
    """Tell a renderer what `render_into` will ask for later."""
    renderer.expect(_to_draw(renderer, jobs, staging.missing(jobs)))


def render_into(
    staging: Staging, renderer: Renderer, jobs: Sequence[ImageJob], task: Task | None = None
) -> int:
    """Draw the images that are missing.

    A batch of which any image is missing is drawn again as a whole, so that a resumed run draws
    the same images together as one that was never stopped, and gets the same bytes. Images that
    are there stay as they are. The order of the jobs decides which are drawn together.

    Returns:
        How many were drawn, expected ones among them.

    Raises:
        RenderError: An image cannot be made.
        StorageError: An image cannot be written.
    """
    missing = staging.missing(jobs)
    there = {job.id for job in jobs} - {job.id for job in missing}
    todo, drawn = _to_draw(renderer, jobs, missing), 0
    asked = {job.id for job in todo}
    for image in renderer.render(todo) if todo else ():
        if image.job.id in there:
            continue
        if image.job.id not in asked:
            staging.early.add(image.job.id)
        staging.put(image)
        drawn += 1
        if task is not None:
            task.advance()
    staging.flush()
    return drawn


def _to_draw(
    renderer: Renderer, jobs: Sequence[ImageJob], missing: Sequence[ImageJob]
) -> list[ImageJob]:
    """The whole batches of which an image is missing, one after the other."""
    ids = {job.id for job in missing}
    return [
        job
        for batch in batches(jobs, renderer.batch_size, renderer.identity)
        if any(each.id in ids for each in batch)
        for job in batch
    ]
