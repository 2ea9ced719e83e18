"""Everything that only a GPU can show, in one go: no network, about ten minutes.

    benchmarks/gpu.sh                       # results.json and results.md in gpu-results/
    benchmarks/gpu.sh --parts sdxl,flux --compile
    benchmarks/gpu.sh --dry-run             # the same calls with tiny models, on a CPU too

Of pipelines of the size of Stable Diffusion 1.5, SDXL and FLUX.1, made on the GPU with random
weights in bfloat16:

- regularization images: regforge's renderer, with each `render.speed`, each `render.offload` and
  (FLUX.1) `render.quantize: int8`, beside the class-image loop of diffusers' DreamBooth script
  (`class_images.py`);
- training steps: regforge's, without and with gradient checkpointing, beside a plain loop, which
  says in our words what a step of the script is with `--mixed_precision bf16` and text embeddings
  computed beforehand. (`training.py` measures the script itself, and needs the network for it.)
  FLUX.1's are regforge's alone, with gradient checkpointing, plain and with `method.quantize:
  int8`, and their peaks are those of the steps.

Of the embedded pipeline: half a minute of UNet training from artwork (`examples/tinyworld`). A row
is written down when it is measured. What fails, does not fit or finds the time over says so, and
the next row begins. Peaks are of the row alone, as PyTorch counts them.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

from class_images import baseline, opened, ours
from random_models import KINDS, random_pipeline
from training import RANK, Row, Setting, write_images

from regforge.embedded import TINYWORLD

TINYWORLD_SCRIPTS = Path(__file__).resolve().parents[1] / "examples" / "tinyworld"


@dataclass(frozen=True)
class Plan:
    """What is measured of a kind of pipeline: images of `side` pixels, so many a round.

    A row is measured for `seconds` (at least one round), where the GPU has `needs` GB.
    """

    needs: int
    seconds: int
    side: int
    images: int
    steps: int
    guidance: float


PLANS = {
    "sd15": Plan(8, 6, 512, 32, 25, 5.0),
    "sdxl": Plan(24, 12, 1024, 8, 25, 5.0),
    "flux": Plan(48, 20, 1024, 4, 28, 3.5),
}
TINY = {kind: Plan(0, 0, 64, 2, 3, plan.guidance) for kind, plan in PLANS.items()}


@dataclass
class Results:
    """Rows, and the files that hold them from the moment they are measured."""

    folder: Path
    about: dict[str, Any]
    device: Any
    end: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, part: str, name: str, measured: dict[str, Any]) -> None:
        """Write a row down; its ratio is to the first one of its part."""
        row = {"part": part, "row": name, **measured}
        self.rows.append(row)
        first = next((each for each in self.rows if each["part"] == part and "rate" in each), row)
        if "rate" in row:
            row["ratio"] = row["rate"] / first["rate"]
        print(" | ".join(_cells(row)), file=sys.stderr, flush=True)
        lines = [_cells(each) for each in self.rows]
        heads = ["part", "row", "a second", "ratio", "peak GB"]
        table = "".join(f"| {' | '.join(line)} |\n" for line in (heads, ["---"] * 5, *lines))
        said = ", ".join(f"{key} {value}" for key, value in self.about.items())
        (self.folder / "results.md").write_text(f"{said}\n\n{table}")
        content = json.dumps({**self.about, "rows": self.rows}, indent=1)
        (self.folder / "results.json").write_text(content + "\n")

    def measure(
        self, part: str, name: str, seconds: float, prepare: Callable[[], Callable[[], int]]
    ) -> None:
        """Measure what `prepare` returns, which does some of a thing and says how much."""
        import torch

        gpu = self.device.type == "cuda"
        try:
            if time.monotonic() > self.end:
                raise TimeoutError("not measured: the time was over")
            if gpu:
                gc.collect()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            work = prepare()
            work()  # warms up
            before = time.perf_counter() - start
            rates: list[float] = []
            while not rates or time.perf_counter() - start < before + seconds:
                begin = time.perf_counter()
                done = work()
                if gpu:
                    torch.cuda.synchronize()
                rates.append(done / (time.perf_counter() - begin))
            measured = {"rate": statistics.median(rates), "rates": rates, "before": before}
            if gpu:
                measured["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        except Exception as error:  # the other rows are to be measured all the same
            measured = {"failed": f"{type(error).__name__}: {error}".split("\n")[0][:200]}
        self.add(part, name, measured)


def _cells(row: dict[str, Any]) -> list[str]:
    if "failed" in row:
        return [row["part"], row["row"], row["failed"], "", ""]
    peak = f"{row['peak_gb']:.1f}" if "peak_gb" in row else ""
    return [row["part"], row["row"], f"{row['rate']:.3g}", f"{row['ratio']:.2f}x", peak]


# ------------------------------------------------------------------------------------------- images


def denoiser_of(pipeline: Any) -> Any:
    """The UNet or transformer."""
    return getattr(pipeline, "transformer", None) or pipeline.unet


def measure_images(
    results: Results,
    kind: str,
    plan: Plan,
    pipeline: Any,
    *,
    compiled: bool = False,
    quantized: bool = False,
) -> None:
    """Images a second, of the loop and of regforge's renderer on the same weights.

    Where these were `quantized`, of the renderer alone.
    """
    part, settings = f"{kind} images", argparse.Namespace(**vars(plan))

    def shell() -> Any:  # with a scheduler of its own
        made = type(pipeline)(**pipeline.components)
        made.default_sample_size = plan.side // made.vae_scale_factor  # FLUX.1's is 1024 pixels
        return made

    def draws(draw: Callable[[Path], None]) -> Callable[[], int]:
        def work() -> int:
            with tempfile.TemporaryDirectory() as folder:
                draw(Path(folder))
            return plan.images

        return work

    def regforge(**more: Any) -> Callable[[], Callable[[], int]]:
        def prepare() -> Callable[[], int]:
            loaded = (shell(), None, (), [])
            with patch("regforge.images.local.load_pipeline", lambda *_: loaded):
                return draws(
                    ours(*opened("random", settings, dtype="bfloat16", **more), plan.images)
                )

        return prepare

    ways: dict[str, Callable[[], Callable[[], int]]] = {
        "diffusers' class-image loop": lambda: draws(baseline(shell(), settings)),
        "regforge": regforge(),
    }
    speeds = () if kind == "flux" else ("balanced", "fast")
    ways |= {f"regforge, render.speed: {each}": regforge(speed=each) for each in speeds}
    for each in ("model", "sequential", "group"):
        ways[f"regforge, render.offload: {each}"] = regforge(offload=each)
    if quantized:
        ways = {"regforge, render.quantize: int8": regforge(quantize="int8")}
    denoiser = denoiser_of(pipeline)

    def by_block() -> Callable[[], int]:
        denoiser.compile_repeated_blocks()
        return regforge()()

    if compiled:
        ways["regforge, compiled by block"] = by_block
    for name, prepare in ways.items():
        results.measure(part, name, plan.seconds, prepare)
        as_before(denoiser)
        if "offload" in name:
            back_on_device(pipeline, results.device)


def back_on_device(pipeline: Any, device: Any) -> None:
    """Take off what `render.offload` has put on."""
    from diffusers.hooks.group_offloading import _is_group_offload_enabled
    from diffusers.hooks.hooks import HookRegistry

    pipeline.remove_all_hooks()
    for part in pipeline.components.values():
        if hasattr(part, "parameters") and _is_group_offload_enabled(part):
            for module in part.modules():
                registry = HookRegistry.check_if_exists_or_initialize(module)
                for hook in list(registry.hooks):
                    registry.remove_hook(hook, recurse=False)
    pipeline.to(device)


def quantize(pipeline: Any) -> None:
    """Give a pipeline's denoiser and its T5 weights of 8 bits, as when they are loaded so."""
    from regforge.images.loading import quantize_in_place

    for part in (denoiser_of(pipeline), pipeline.text_encoder_2):
        quantize_in_place(part)


def as_before(denoiser: Any) -> None:
    """Take off what `render.speed` and compiling by block have put on."""
    for name in ("forward", "cache_context"):
        vars(denoiser).pop(name, None)
    for module in denoiser.modules():
        module._compiled_call_impl = None


# ----------------------------------------------------------------------------------------- training


def measure_training(
    results: Results,
    kind: str,
    plan: Plan,
    pipeline: Any,
    folder: Path,
    *,
    quantized: bool = False,
) -> None:
    """Optimizer steps a second on one photo and one class image, LoRA, bfloat16."""
    part = f"{kind} training steps"
    if not quantized:
        write_images(folder, plan.side, 24)
    setting = Setting(Path(), TINYWORLD, plan.side, 0, 60, folder)

    def plain() -> Callable[[], int]:
        return plain_training(pipeline, folder, plan.side, results.device)

    def regforge(**optimizer: Any) -> Callable[[], Callable[[], int]]:
        row = Row("", None, {"optimizer": {"steps": 60, "precision": "bf16", **optimizer}})
        return lambda: our_training(pipeline, setting.recipe(row), results.device)

    ways = {
        "a plain loop": plain,
        "regforge": regforge(),
        "regforge, gradient_checkpointing": regforge(gradient_checkpointing=True),
    }
    if kind == "flux":  # activations of all layers are 50 GB, and a plain loop would be another one
        name = "regforge, gradient_checkpointing"
        ways = {f"{name}, quantize: int8" if quantized else name: ways[name]}
    for name, prepare in ways.items():
        results.measure(part, name, plan.seconds, prepare)
        denoiser_of(pipeline).unload_lora()


def plain_training(pipeline: Any, folder: Path, side: int, device: Any) -> Callable[[], int]:
    """A function that does a step as people write it themselves; see the top of this file."""
    import numpy as np
    import torch
    from diffusers import DDPMScheduler
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig
    from PIL import Image

    unet, vae = pipeline.unet, pipeline.vae
    for module in (unet, vae):
        module.requires_grad_(requires_grad=False)
    layers = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers))
    cast_training_params(unet, torch.float32)
    unet.train()
    trained = [each for each in unet.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    with torch.no_grad():
        prompts = ["a photo of a sks cat", "a photo of a cat"]
        encoded = pipeline.encode_prompt(
            prompts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    conditions = None
    if len(encoded) == 4:
        sizes = torch.tensor([[side, side, 0, 0, side, side]] * 2, device=device)
        conditions = {"text_embeds": encoded[2], "time_ids": sizes}
    photos, others = (cycle(sorted((folder / each).iterdir())) for each in ("photos", "class"))

    def pixels(path: Path) -> torch.Tensor:
        with Image.open(path) as image:
            array = np.array(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))
        return torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1

    def step() -> int:
        images = torch.stack([pixels(next(photos)), pixels(next(others))]).to(device, vae.dtype)
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        times = torch.randint(0, 1000, (2,), device=device)
        noisy = noise_scheduler.add_noise(latents, noise, times)
        with torch.autocast(device.type, torch.bfloat16):
            predicted = unet(noisy, times, encoded[0], added_cond_kwargs=conditions).sample
        photo, other = (predicted.float() - noise.float()).square().flatten(1).mean(1)
        (photo + other).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        (photo + other).item()
        return 1

    return step


def our_training(pipeline: Any, content: dict[str, Any], device: Any) -> Callable[[], int]:
    """A function that does a step of regforge's."""
    import torch

    from regforge.devices import free_memory
    from regforge.images.loading import FoundModel
    from regforge.journal import Reporter
    from regforge.recipe import TrainingRecipe
    from regforge.training.examples import Examples
    from regforge.training.families.flow import Flux
    from regforge.training.families.stable_diffusion import StableDiffusion, StableDiffusionXL
    from regforge.training.loop import Loop, precision_of
    from regforge.training.weights import attach

    recipe = TrainingRecipe.model_validate(content)
    precision = precision_of(recipe, device)
    families = {
        "StableDiffusionPipeline": StableDiffusion,
        "StableDiffusionXLPipeline": StableDiffusionXL,
        "FluxPipeline": Flux,
    }
    denoiser_of(pipeline).requires_grad_(requires_grad=False)
    shell = type(pipeline)(**pipeline.components)
    family = families[type(pipeline).__name__](shell, FoundModel(TINYWORLD), device, recipe)
    examples = Examples(recipe, family, device=device, reporter=Reporter(quiet=True))
    examples.prepare()
    if families[type(pipeline).__name__] is Flux and device.type == "cuda":
        pipeline.text_encoder_2.to("cpu")  # our training has let go of it, the benchmark has not
        free_memory()
        torch.cuda.reset_peak_memory_stats()
    trainable = attach(family, recipe.method)
    if recipe.optimizer.gradient_checkpointing:
        trainable.checkpoint_gradients()
    loop = Loop(recipe, family, trainable, examples, device=device, precision=precision)
    steps = count()

    def step() -> int:
        values, _ = loop.step(next(steps) % recipe.optimizer.steps)
        values.tolist()  # a wait for the device, as in the other loop
        return 1

    return step


# ----------------------------------------------------------------------------------- embedded model


def measure_unet(results: Results, folder: Path, tiny: bool) -> None:
    """Images a second that the embedded pipeline's UNet is trained on, from artwork made here."""
    pool, out, seconds = folder / "pool", folder / "unet", 1 if tiny else 30

    def run(script: str, **options: Any) -> str:
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        done = subprocess.run(
            [sys.executable, script, *flags],
            cwd=TINYWORLD_SCRIPTS,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip().split("\n")[-1])
        return done.stdout

    try:
        run("pool.py", kind="world", count=1000 if tiny else 4000, out=pool)
        said = run(
            "train_unet.py",
            pool=pool,
            vae=TINYWORLD / "vae",
            text_encoder=TINYWORLD / "text_encoder",
            tokenizer=TINYWORLD / "tokenizer",
            guide=TINYWORLD_SCRIPTS / "guide.safetensors",
            out=out,
            batch=8 if tiny else 512,
            workers=1,
            minutes=seconds / 60,
            device=results.device.type,
        )
        (samples,) = re.findall(r"(\d+) samples in all", said)
        measured: dict[str, Any] = {"rate": int(samples) / seconds}
    except (RuntimeError, ValueError) as error:
        measured = {"failed": f"{error}"[:200]}
    results.add("embedded UNet", "training from nothing, images", measured)


def main() -> None:
    """Measure all parts, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default=",".join(("unet", *KINDS)))
    parser.add_argument("--minutes", type=float, default=10, help="no row begins after these")
    parser.add_argument("--compile", action="store_true", help="also compiled by block")
    parser.add_argument("--dry-run", action="store_true", help="tiny models, on any device")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    parts = args.parts.split(",")
    if unknown := set(parts) - {"unet", *KINDS}:
        parser.error(f"--parts: there is no {', '.join(sorted(unknown))}")

    import diffusers
    import torch

    from regforge.devices import pick_device

    diffusers.utils.logging.set_verbosity_error()
    device = pick_device(None)
    gpu = device.type == "cuda"
    if not gpu and not args.dry_run:
        parser.error("there is no GPU; --dry-run shows on a CPU that everything runs")
    about = {
        "machine": torch.cuda.get_device_name() if gpu else platform.machine(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "dry run": args.dry_run,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out, about, device, end)
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            if part == "unet":
                measure_unet(results, Path(folder), args.dry_run)
                continue
            plan = (TINY if args.dry_run else PLANS)[part]
            if gpu and torch.cuda.mem_get_info()[1] < plan.needs * 1e9:
                results.add(part, "all", {"failed": f"not measured: needs {plan.needs} GB"})
                continue
            pipeline = random_pipeline(part, device, torch.bfloat16, tiny=args.dry_run)
            measure_images(results, part, plan, pipeline, compiled=args.compile)
            measure_training(results, part, plan, pipeline, Path(folder))
            if part == "flux":
                pipeline.to(device)
                quantize(pipeline)
                measure_images(results, part, plan, pipeline, quantized=True)
                measure_training(results, part, plan, pipeline, Path(folder), quantized=True)
            del pipeline
    print((args.out / "results.md").read_text())
    if args.dry_run and any("failed" in row for row in results.rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
