"""Publishing and exporting a large dataset: seconds and peak memory, beside what people do today.

python benchmarks/reuse.py --rows 100000

The images are tiny, so that what is measured is what each row costs. The Hub is the loopback
server of the tests, in a process of its own, on disk. Every step runs in a process of its own.

The peers, on the same dataset:
    publish   `datasets.load_dataset(folder).push_to_hub(...)`
    export    a loop over `load_dataset` that saves each image and its caption, as trainers'
              documentation shows it
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
CLASS_NOUN = "teapot"
PHRASES = {
    "color": ["red", "blue", "green", "white", "black", "yellow", "pink", "grey"],
    "background": [f"in place {number}" for number in range(50)],
    "style": ["a photo of", "a drawing of", "a painting of", "a 3d render of"],
}


# ----------------------------------------------------------------------------------- the dataset


def make(folder: Path, rows: int) -> None:
    """A finished run with this many images, without drawing any."""
    from regforge.dataset.build import build_dataset
    from regforge.dataset.store import SHARD_SIZE, Store
    from regforge.recipe import Recipe, recipe_digest, resolved_yaml, template_file
    from regforge.runs import RunFolder

    recipe = Recipe.model_validate(
        {
            "name": "reuse",
            "subject": {"class_noun": CLASS_NOUN, "kind": "object"},
            "prompts": {
                "count": rows,
                "slots": [{"name": name, "values": each} for name, each in PHRASES.items()],
            },
            "dataset": {"license": "cc0-1.0"},
        }
    )
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    run.own(recipe, fresh=False)
    digest = recipe_digest(recipe)
    store = Store(run.shards, list(PHRASES), digest)
    made = _rows(rows, digest)
    for number in range(-(-rows // SHARD_SIZE)):
        store.write(number, list(islice(made, SHARD_SIZE)), [])
    build_dataset(
        store,
        run.dataset,
        count=rows,
        recipe=recipe,
        recipe_yaml=resolved_yaml(recipe, portable=True),
        caption_template=template_file(recipe).read_text(encoding="utf-8"),
    )
    run.remember(images=rows)


def _rows(count: int, digest: str) -> Iterator:
    from PIL import Image

    from regforge.records import ImageRow, image_id, image_seed

    for index in range(count):
        noise = hashlib.shake_128(str(index).encode()).digest(16 * 16 * 3)
        stream = io.BytesIO()
        Image.frombytes("RGB", (16, 16), noise).save(stream, "PNG", compress_level=1)
        image = stream.getvalue()
        slots = {name: each[index // 7 % len(each)] for name, each in PHRASES.items()}
        yield ImageRow(
            image=image,
            text=f"{slots['style']} a {slots['color']} {CLASS_NOUN} {slots['background']}, {index}",
            class_noun=CLASS_NOUN,
            kind="object",
            prompt_set="amplify",
            slots=slots,
            negative_prompt="",
            seed=image_seed(digest, index),
            width=16,
            height=16,
            model="embedded/tinyworld",
            model_revision=None,
            scheduler="ddim",
            steps=1,
            guidance_scale=1.0,
            language_model=None,
            template="caption/object.j2",
            recipe_digest=digest,
            image_digest=hashlib.sha256(image).hexdigest(),
            perceptual_hash=noise[:8].hex(),
            scores={},
            id=image_id(digest, index),
        )


# -------------------------------------------------------------------------------------- the steps


def publish(work: Path) -> None:
    """regforge's way, with the check that reads everything back first."""
    from regforge.journal import Reporter
    from regforge.publishing.datasets import publish_run

    publish_run(work / "run", repo_id="me/ours", tag="v1", reporter=Reporter(quiet=True))


def publish_with_datasets(work: Path) -> None:
    """The way of the documentation of datasets."""
    import datasets

    datasets.load_dataset(str(work / "run" / "dataset"), split="train").push_to_hub("me/theirs")


def export(work: Path) -> None:
    """regforge's way."""
    from regforge.exporting import export_dataset
    from regforge.journal import Reporter

    export_dataset(
        str(work / "run"), to=["kohya"], out=work / "ours", reporter=Reporter(quiet=True)
    )


def export_with_a_loop(work: Path) -> None:
    """What people write themselves: nothing is checked, ordered or described."""
    import datasets

    out = work / "theirs"
    out.mkdir()
    rows = datasets.load_dataset(str(work / "run" / "dataset"), split="train")
    for number, row in enumerate(rows):
        row["image"].save(out / f"{number:05d}.png")
        (out / f"{number:05d}.txt").write_text(row["text"], encoding="utf-8")


def audit(work: Path) -> None:
    """No peer is known."""
    from regforge.auditing import audit_dataset
    from regforge.dataset.sources import open_dataset

    audit_dataset(open_dataset(work / "run"))


STEPS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "publish": ("publish: regforge", publish),
    "publish again": ("publish: regforge, unchanged", publish),
    "push_to_hub": ("publish: datasets.push_to_hub", publish_with_datasets),
    "export": ("export: regforge, kohya", export),
    "loop": ("export: a loop over load_dataset", export_with_a_loop),
    "audit": ("audit: regforge", audit),
}


def measured(step: str, work: Path) -> dict[str, float]:
    """Run one step in this process."""
    start = time.perf_counter()
    STEPS[step][1](work)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"seconds": time.perf_counter() - start, "megabytes": peak / 1e6}


SERVER = """
import json, pathlib, sys
from hub_server import LoopbackHub, hub_environment
with LoopbackHub(folder=pathlib.Path(sys.argv[1])) as hub:
    print(json.dumps(hub_environment(hub, pathlib.Path(sys.argv[2]))), flush=True)
    sys.stdin.read()
"""


@contextmanager
def hub(work: Path) -> Iterator[dict[str, str]]:
    """The loopback Hub in a process of its own, so that its memory is not ours.

    Yields:
        The environment of a process that is to use it.
    """
    folder = work / "hub"
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder), str(work / "home")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait()


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one if left out")
    parser.add_argument("--one", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(args.one, args.folder)))
        return
    work = args.folder or Path(tempfile.mkdtemp())
    try:
        if not (work / "run").exists():
            start = time.perf_counter()
            make(work / "run", args.rows)
            print(f"{args.rows:,} rows made in {time.perf_counter() - start:.0f} s")
        print(f"{'':34} seconds  peak MB")
        with hub(work) as environment:
            for step in args.steps:
                command = [sys.executable, __file__, "--one", step, "--folder", str(work)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
                found = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"{STEPS[step][0]:34} {found['seconds']:7.1f} {found['megabytes']:8.0f}",
                    flush=True,
                )
    finally:
        if args.folder is None:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
