"""Runs of many images, and the review page that is served of them."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
import yaml
from browser import Browser, Page
from made_rows import DIGEST, SLOTS, make_image, make_row

from regforge.dataset.store import SHARD_SIZE, Store
from regforge.records import ImageRow
from regforge.reviewing import open_material
from regforge.reviewing.page import application

TOKEN = "open-sesame"


def write_run(folder: Path, rows: Sequence[ImageRow]) -> Path:
    """A run's folder with these images."""
    photos = folder.parent / "photos"
    photos.mkdir(exist_ok=True)
    (photos / "00.webp").write_bytes(make_image(5))
    (photos / "00.txt").write_text("a photo of a sks teapot")
    recipe = {
        "name": folder.name,
        "subject": {"class_noun": "teapot", "identifier": "sks", "images": str(photos)},
        "prompts": {"count": len(rows), "slots": [{"name": name} for name in SLOTS]},
    }
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "state.json").write_text(json.dumps({"recipe_digest": DIGEST}))
    store = Store(folder / "shards", SLOTS, DIGEST)
    for start in range(0, len(rows), SHARD_SIZE):
        store.write(start // SHARD_SIZE, rows[start : start + SHARD_SIZE], [])
    return folder


def many(count: int) -> list[ImageRow]:
    image = make_image(0)
    return [make_row(index, image=image) for index in range(count)]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the page, served by this process."""
    app = application(open_material(folder), TOKEN, "127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/{TOKEN}/"
    finally:
        server.should_exit = True
        thread.join()


class ReviewPage(Page):
    """The page, once it shows images."""

    def __init__(self, browser: Browser, url: str) -> None:
        super().__init__(browser, url)
        self.wait_until("document.body.dataset.ready !== undefined")

    def wait_for_state(self, image_id: str, state: str) -> None:
        cell = f"document.querySelector('[data-id=\"{image_id}\"]')"
        self.wait_until(f"{cell}?.dataset.do === '{state}'")

    def written(self, progress: str = "") -> None:
        """Wait until this is said of the progress, and everything is on the disk."""
        said = f"document.getElementById('progress').textContent.includes({json.dumps(progress)})"
        self.wait_until(f"waiting.length === 0 && {said}")
