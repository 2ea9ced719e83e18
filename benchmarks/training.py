"""Training steps, against diffusers' own DreamBooth LoRA script.

    python benchmarks/training.py                # the embedded pipeline
    python benchmarks/training.py --model sdxl   # SDXL's size, random weights; wants a GPU

The script is examples/dreambooth/train_dreambooth_lora.py (for SDXL train_dreambooth_lora_sdxl.py)
of diffusers at a pinned commit, unchanged. It is fetched from GitHub into regforge's cache folder,
or given with --script. Where there is no torchvision, it takes `image_transforms.py` for it.

Both sides: the same model, photos and class images, one photo and one class image a step (or
`--batch` of each), a LoRA of rank 16 beside the denoiser's attention layers, AdamW, a prior loss of
weight 1, and a process of their own, started as users start it. `timed.py` writes down when
optimizer steps were done. The rows take turns, so that what else the machine does hits all of them.

What a step is:
- The script decodes, crops and normalizes a photo and a class image, encodes both with the
  autoencoder, and their captions with the text encoder (--pre_compute_text_embeddings: before the
  first step), predicts, goes backward, clips, updates, and reads the loss.
- regforge has encoded each crop and caption once before the first step (`data.cache: none` does
  all of that at each step), and each image has its own caption. The rest is the same.

The column "before" says how long a process took until its first step was done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from regforge.embedded import TINYWORLD
from regforge.files import cache_folder, write_atomically

HERE = Path(__file__).resolve().parent
SUBJECTS = HERE.parent / "examples" / "subjects"
COMMIT = "58eb52c0803ea9af3abec60841c2a093bdf1f951"  # 2026-08-23
SCRIPTS = {
    "train_dreambooth_lora.py": "89cd066f65b2c5d4e8ab578f4050f485a880a9c8fc100ddf18c6b0c74eadb5d2",
    "train_dreambooth_lora_sdxl.py": (
        "ab3165d44c29115028c18933bcf12bb583fd0e868c3d8dd426dec5209eb6d6d1"
    ),
}
CLASS_IMAGES = 200
RANK = 16

CPU_ROWS = ("theirs", "theirs-best", "ours", "ours-bf16", "ours-uncached")
GPU_ROWS = ("theirs-bf16", "theirs-best", "theirs-checkpointing", "ours", "ours-checkpointing")


@dataclass
class Row:
    """One way to train, and what was measured of it.

    Attributes:
        name: What the table calls it.
        flags: The script's, if it is the script.
        recipe: What is laid over regforge's recipe, if it is regforge.
    """

    name: str
    flags: tuple[str, ...] | None = None
    recipe: dict[str, dict[str, Any]] = field(default_factory=dict)
    found: list[dict[str, Any]] = field(default_factory=list)

    def median(self, key: str) -> float:
        """Of all rounds."""
        return statistics.median(each[key] for each in self.found)

    @property
    def rates(self) -> list[float]:
        """Steps a second, by round."""
        return [each["steps"] / each["seconds"] for each in self.found]

    @property
    def peak(self) -> float:
        """Bytes: of the GPU, or of main memory without one."""
        return self.median("peak_gpu" if "peak_gpu" in self.found[0] else "peak_memory")


def rows_of(sdxl: bool) -> dict[str, Row]:
    """All ways that can be asked for; the SDXL script always computes embeddings beforehand."""
    bf16 = ("--mixed_precision", "bf16")
    before = () if sdxl else ("--pre_compute_text_embeddings",)
    name, fp32 = "diffusers' script", {"optimizer": {"precision": "fp32"}}

    def script(*flags: str) -> Row:
        return Row(" ".join((name, *flags)), flags)

    def ours(**optimizer: Any) -> Row:
        said = "".join(f", {key}: {value}" for key, value in optimizer.items())
        return Row(
            f"regforge{said}".replace("True", "true"),
            None,
            {"optimizer": {"precision": "fp32"} | optimizer},
        )

    return {
        "theirs": script(),
        "theirs-embeddings": script(*before),
        "theirs-bf16": script(*bf16),
        "theirs-best": script(*before, *bf16),
        "theirs-workers": script(*before, *bf16, "--dataloader_num_workers", "1"),
        "theirs-checkpointing": script(*before, *bf16, "--gradient_checkpointing"),
        "ours": ours(),
        "ours-bf16": ours(precision="bf16"),
        "ours-checkpointing": ours(precision="bf16", gradient_checkpointing=True),
        "ours-compile": ours(precision="bf16", compile=True),
        "ours-uncached": Row("regforge, cache: none", None, {"data": {"cache": "none"}}),
        "ours-uncached-bf16": Row(
            "regforge, cache: none, precision: bf16",
            None,
            {"data": {"cache": "none"}, "optimizer": {"precision": "bf16"}},
        ),
        "ours-fp32": Row("regforge, precision: fp32", None, fp32),
    }


@dataclass(frozen=True)
class Setting:
    """What all rows share."""

    script: Path
    model: Path
    resolution: int
    first: int
    last: int
    folder: Path
    batch: int = 1

    def command(self, row: Row, out: Path) -> list[str]:
        """Trains as the row says; `timed.py` writes its file to `out`."""
        timed = [sys.executable, str(HERE / "timed.py"), str(out)]
        timed += ["--measured", f"{self.first}:{self.last}"]
        if row.flags is None:
            recipe = self.folder / "recipe.json"
            recipe.write_text(json.dumps(self.recipe(row)))  # JSON is YAML
            return [*timed, "-m", "regforge", "train", str(recipe), "--out", str(out) + ".run"]
        return [*timed, str(self.script), *self.arguments(), *row.flags]

    def arguments(self) -> list[str]:
        """The script's."""
        said = {
            "pretrained_model_name_or_path": self.model,
            "instance_data_dir": self.folder / "photos",
            "instance_prompt": "a photo of a sks cat",
            "class_data_dir": self.folder / "class",
            "class_prompt": "a photo of a cat",
            "num_class_images": CLASS_IMAGES,
            "output_dir": self.folder / "theirs",
            "resolution": self.resolution,
            "train_batch_size": self.batch,
            "max_train_steps": self.last,
            "rank": RANK,
            "learning_rate": 1e-4,
            "lr_warmup_steps": 0,
            "seed": 0,
        }
        return ["--with_prior_preservation", *(f"--{key}={value}" for key, value in said.items())]

    def recipe(self, row: Row) -> dict[str, Any]:
        """regforge's."""
        content: dict[str, Any] = {
            "name": "benchmark",
            "base_model": str(self.model),
            "subject": {"images": str(self.folder / "photos"), "class_noun": "cat"},
            "regularization": {"dataset": str(self.folder / "dataset")},
            "method": {"rank": RANK},
            "data": {"resolution": self.resolution},
            "optimizer": {"steps": self.last, "lr": 1e-4, "batch_size": self.batch},
            "validation": {"prompts": ["a photo of a sks cat"], "every": 0, "steps": 1},
        }
        for name, section in row.recipe.items():
            content[name] = {**content.get(name, {}), **section}
        return content


def write_images(folder: Path, resolution: int, count: int = CLASS_IMAGES) -> None:
    """Photos of a cat; class images as the script saves them, and the same with captions."""
    for name in ("photos", "class", "dataset"):
        (folder / name).mkdir()
    for path in sorted((SUBJECTS / "cat").glob("*.png")):
        with Image.open(path) as image:
            image.convert("RGB").resize((resolution, resolution)).save(
                folder / "photos" / path.name
            )
    others = [
        path
        for subject in ("dog", "duck", "owl", "rabbit")
        for path in sorted((SUBJECTS / subject).glob("*.png"))
    ]
    captions = []
    for number in range(count):
        with Image.open(others[number % len(others)]) as image:
            size = image.width - number // len(others)  # no two are the same image
            part = image.convert("RGB").crop((0, 0, size, size)).resize((resolution, resolution))
        name = f"{number:03d}.jpg"
        part.save(folder / "class" / name)
        shutil.copy(folder / "class" / name, folder / "dataset" / name)
        captions.append({"file_name": name, "text": f"a photo of a cat, number {number}"})
    lines = "".join(json.dumps(caption) + "\n" for caption in captions)
    (folder / "dataset" / "metadata.jsonl").write_text(lines)


def the_script(name: str, given: Path | None) -> Path:
    """The script, from where the user says, the cache folder, or GitHub."""
    digest = SCRIPTS[name]
    if given is not None:
        if not given.is_file():
            sys.exit(f"--script: there is no file {given}")
        if hashlib.sha256(given.read_bytes()).hexdigest() != digest:
            print(f"{given} is not {name} of diffusers at {COMMIT[:12]}; it is measured as it is.")
        return given.resolve()
    path = cache_folder() / "benchmarks" / COMMIT[:12] / name
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
        return path
    address = f"https://raw.githubusercontent.com/huggingface/diffusers/{COMMIT}"
    address += f"/examples/dreambooth/{name}"
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            content = answer.read()
    except OSError as error:
        sys.exit(
            f"{address} cannot be fetched ({error}). Get it in another way, and say with --script "
            "where it is."
        )
    if hashlib.sha256(content).hexdigest() != digest:
        sys.exit(f"What came from {address} is not the file that was pinned; nothing is run.")
    write_atomically(path, content)
    return path


def measure(setting: Setting, row: Row, threads: int | None) -> dict[str, Any]:
    """Run one process, and return what `timed.py` wrote."""
    out = setting.folder / "measured.json"
    out.unlink(missing_ok=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads)}
    ran = subprocess.run(
        setting.command(row, out),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    for left in (setting.folder / "theirs", Path(f"{out}.run")):
        shutil.rmtree(left, ignore_errors=True)
    if ran.returncode or not out.exists():
        sys.exit(f"{row.name} failed:\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}")
    measured: dict[str, Any] = json.loads(out.read_text())
    return measured


def work_of(setting: Setting) -> tuple[float, float]:
    """What the denoiser multiplies and adds in one step of regforge's, and the device's best rate.

    Returns:
        Operations of a step, and operations a second of a large matrix product, in bf16 on a GPU
        and float32 on a CPU.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from regforge.devices import pick_device
    from regforge.journal import Reporter
    from regforge.recipe import TrainingRecipe
    from regforge.training.examples import Examples
    from regforge.training.families import open_family
    from regforge.training.loop import Loop, precision_of
    from regforge.training.weights import attach

    content = setting.recipe(Row("", None, {"optimizer": {"steps": 1}}))
    recipe = TrainingRecipe.model_validate(content)
    device = pick_device(recipe.device, "device")
    precision = precision_of(recipe, device)
    family = open_family(recipe, device, precision.weights)
    quiet = Reporter(quiet=True)
    examples = Examples(recipe, family, device=device, reporter=quiet)
    examples.prepare()
    trainable = attach(family, recipe.method)
    loop = Loop(recipe, family, trainable, examples, device=device, precision=precision)
    with FlopCounterMode(display=False) as counter:
        loop.step(0)
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(side, side, device=device, dtype=precision.forward or torch.float32)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return counter.get_total_flops(), 2 * side**3 / min(seconds)


def table(rows: list[Row], work: float, best_rate: float) -> str:
    """One line for each row; the ratios are to the first one."""
    first = rows[0]
    lines = [
        f"{'':66s} steps/s: median    min    max  ratio  cpu ms/step  peak MB  ratio  before  share"
    ]
    for row in rows:
        rate = statistics.median(row.rates)
        lines.append(
            f"{row.name:66s}{rate:16.2f} {min(row.rates):6.2f} {max(row.rates):6.2f}"
            f" {rate / statistics.median(first.rates):5.2f}x"
            f"{1000 * row.median('processor_seconds') / row.found[0]['steps']:13.1f}"
            f"{row.peak / 2**20:9.0f} {row.peak / first.peak:5.2f}x {row.median('before'):6.1f}s"
            f" {rate * work / best_rate:6.0%}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all rows in turns, and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--script", type=Path, help="diffusers' script, where it is")
    parser.add_argument("--model", choices=("embedded", "sd15", "sdxl"), default="embedded")
    parser.add_argument("--resolution", type=int, help="96 embedded, 512 SD 1.5, 1024 SDXL")
    parser.add_argument("--batch", type=int, default=1, help="photos, and class images, in a step")
    parser.add_argument("--steps", type=int, default=100, help="measured in a process")
    parser.add_argument("--warm-up", type=int, default=20, help="steps before those")
    parser.add_argument("--rounds", type=int, default=3, help="processes a row")
    parser.add_argument("--rows", help=f"some of {', '.join(rows_of(sdxl=False))}; or all")
    parser.add_argument("--threads", type=int, help="PyTorch's own choice if left out")
    args = parser.parse_args()

    sdxl = args.model == "sdxl"
    script = the_script(f"train_dreambooth_lora{'_sdxl' if sdxl else ''}.py", args.script)
    import torch

    known, chosen = rows_of(sdxl), CPU_ROWS if args.model == "embedded" else GPU_ROWS
    names = (
        tuple(known) if args.rows == "all" else tuple((args.rows or ",".join(chosen)).split(","))
    )
    if unknown := set(names) - set(known):
        sys.exit(f"--rows: there is no {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    rows = [known[name] for name in names]
    resolution = args.resolution or {"embedded": 96, "sd15": 512, "sdxl": 1024}[args.model]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = TINYWORLD
        if args.model != "embedded":
            from random_models import random_pipeline

            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            model = folder / "model"
            random_pipeline(args.model, device, torch.float16).save_pretrained(model)
            torch.cuda.empty_cache()
        write_images(folder, resolution)
        last = args.warm_up + args.steps
        setting = Setting(script, model, resolution, args.warm_up, last, folder, args.batch)
        for number in range(args.rounds):
            for row in rows:
                row.found.append(measure(setting, row, args.threads))
                cpu = 1000 * row.found[-1]["processor_seconds"] / row.found[-1]["steps"]
                print(
                    f"round {number + 1}: {row.name}: {row.rates[-1]:.2f} steps/s, {cpu:.1f} cpu "
                    "ms/step",
                    file=sys.stderr,
                )
        if args.threads:
            torch.set_num_threads(args.threads)
        work, best_rate = work_of(setting)
    print(about(rows[0], args.model, resolution, args))
    print(f"a step's products and sums: {work / 1e9:.2f} G; best rate {best_rate / 1e9:,.0f} G/s")
    print(table(rows, work, best_rate))


def about(row: Row, model: str, resolution: int, args: argparse.Namespace) -> str:
    """Machine, versions and what was measured."""
    from importlib.metadata import version

    import torch

    machine = platform.machine()
    if torch.cuda.is_available():
        machine = torch.cuda.get_device_name()
    packages = ("torch", "diffusers", "peft", "accelerate", "transformers")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{machine}, {row.found[0]['threads']} threads, {versions}; {model} at {resolution}, "
        f"batch {args.batch}; {args.steps} steps after {args.warm_up}, {args.rounds} rounds"
    )


if __name__ == "__main__":
    main()
