"""The staging area: images that are drawn and not yet judged, one file each.

    <id>.<attempt>.webp   the image
    <id>.<attempt>.json   written after it: what it was made from, and its digest

Encoding and writing happen on background threads while the next images are drawn. An image counts
only if both files are there and agree; everything else is drawn again. Knows nothing of shards and
of what is good enough.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regforge.files import UNFINISHED, delete, parse_json, write_atomically
from regforge.images.encoding import SUFFIXES, encode_image, parameters_text
from regforge.images.interface import (
    ModelIdentity,
    RenderedImage,
    Renderer,
    RenderError,
    batches,
)
from regforge.progress import Task
from regforge.recipe.models import Render
from regforge.records import ImageJob

_WAITING_BYTES = 256 * 2**20
"""Pixels that may wait to be written; a renderer that is faster waits."""


@dataclass(frozen=True)
class Staged:
    """An image in the staging area.

    Attributes:
        job: What was asked for.
        image: The encoded file.
        nsfw: Whether the model's safety checker, or the image service, objected.
        not_finite: Whether some of its numbers overflowed.
    """

    job: ImageJob
    image: bytes
    nsfw: bool
    not_finite: bool


class Staging:
    """The staging area of one run; used from one thread.

    Args:
        folder: Where; created when the first image comes.
        render: How images are made and encoded.
        identity: Which model makes them. Images of another model or setting do not count.
    """

    def __init__(self, folder: Path, render: Render, identity: ModelIdentity) -> None:
        self._folder = folder
        self._render = render
        self._identity = identity
        self._waiting: queue.Queue[RenderedImage | None] = queue.Queue()
        self._room = threading.Condition()
        self._bytes = 0
        self._error: Exception | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"image-writer-{number}", daemon=True)
            for number in range(max(1, min(8, (os.cpu_count() or 1) // 2)))
        ]
        for thread in self._threads:
            thread.start()

    def missing(self, jobs: Sequence[ImageJob]) -> list[ImageJob]:
        """The jobs whose images are not there, or were made from something else."""
        self.flush()
        return [job for job in jobs if self._staged(job) is None]

    def read(self, job: ImageJob) -> Staged:
        """A job's image.

        Raises:
            RenderError: It is not there; see `missing`.
        """
        self.flush()
        staged = self._staged(job)
        if staged is None:
            raise RenderError(f"Image {job.id} is not in {self._folder} any more.")
        return staged

    def put(self, image: RenderedImage) -> None:
        """Hand over an image. It is encoded and written in the background.

        Raises:
            StorageError: An image before it could not be written.
        """
        self._check()
        with self._room:
            self._room.wait_for(lambda: self._bytes < _WAITING_BYTES)
            self._bytes += image.pixels.nbytes
        self._waiting.put(image)

    def flush(self) -> None:
        """Wait until everything is written.

        Raises:
            StorageError: An image could not be written.
        """
        self._waiting.join()
        self._check()

    def discard(self, jobs: Sequence[ImageJob]) -> None:
        """Delete the images of some jobs, of all attempts."""
        self._delete({job.id for job in jobs})

    def clear(self) -> None:
        """Delete all images."""
        self._delete(None)

    def close(self) -> None:
        """Write what waits and stop the threads; a second time does nothing.

        Raises:
            StorageError: An image could not be written.
        """
        threads, self._threads = self._threads, []
        for _ in threads:
            self._waiting.put(None)
        for thread in threads:
            thread.join()
        self._check()

    # ------------------------------------------------------------------------------------- files

    def _image_path(self, job: ImageJob) -> Path:
        return self._folder / f"{job.id}.{job.attempt}.{SUFFIXES[self._render.format]}"

    def _marker_path(self, job: ImageJob) -> Path:
        return self._folder / f"{job.id}.{job.attempt}.json"

    def _staged(self, job: ImageJob) -> Staged | None:
        try:
            marker = parse_json(self._marker_path(job).read_bytes())
            image = self._image_path(job).read_bytes()
        except (OSError, ValueError):
            return None
        if not isinstance(marker, dict) or marker.get("made_from") != self._made_from(job):
            return None
        if marker.get("sha256") != hashlib.sha256(image).hexdigest():
            return None
        return Staged(job, image, bool(marker.get("nsfw")), bool(marker.get("not_finite")))

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

    def _delete(self, names: set[str] | None) -> None:
        self.flush()
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            left_behind = path.name.startswith(UNFINISHED)  # nobody writes any more
            if names is None or left_behind or path.name.partition(".")[0] in names:
                delete(path)

    # ----------------------------------------------------------------------------------- threads

    def _work(self) -> None:
        while (image := self._waiting.get()) is not None:
            try:
                if self._error is None:
                    self._write(image)
            except Exception as error:
                self._error = error
            finally:
                with self._room:
                    self._bytes -= image.pixels.nbytes
                    self._room.notify()
                self._waiting.task_done()
        self._waiting.task_done()

    def _write(self, image: RenderedImage) -> None:
        job, render = image.job, self._render
        encoded = encode_image(
            image.pixels,
            format=render.format,
            quality=render.jpeg_quality,
            text=parameters_text(job, render, self._identity),
        )
        marker = {
            "made_from": self._made_from(job),
            "sha256": hashlib.sha256(encoded).hexdigest(),
            "nsfw": image.nsfw,
            "not_finite": image.not_finite,
        }
        write_atomically(self._image_path(job), encoded)
        write_atomically(self._marker_path(job), json.dumps(marker) + "\n")

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


def render_into(
    staging: Staging, renderer: Renderer, jobs: Sequence[ImageJob], task: Task | None = None
) -> None:
    """Draw the images that are missing.

    A batch of which any image is missing is drawn again as a whole, so that a resumed run draws
    the same images together as one that was never stopped, and gets the same bytes. Images that
    are there stay as they are.

    Args:
        staging: Where to.
        renderer: Who draws.
        jobs: What to draw; their order decides which are drawn together.
        task: Advanced by each image that was missing.

    Raises:
        RenderError: An image cannot be made.
        StorageError: An image cannot be written.
    """
    missing = {job.id for job in staging.missing(jobs)}
    todo = [
        job
        for batch in batches(jobs, renderer.batch_size, renderer.identity)
        if any(each.id in missing for each in batch)
        for job in batch
    ]
    for image in renderer.render(todo) if todo else ():
        if image.job.id in missing:
            staging.put(image)
            if task is not None:
                task.advance()
    staging.flush()
