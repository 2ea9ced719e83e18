"""Train the UNet on the latents of a pool of images, with captions drawn anew every time.

Runs in pieces: `--minutes` is the length of this piece's training (loading and encoding images
come on top). It goes on from `--out`: from the full state if there is one, else from the
half-precision weights with fresh optimizer moments. Give the last piece `--decay-minutes` to bring
the learning rate down; `touch OUT/stop` ends a piece early.

Loss: v-prediction, with the subject's part of the image weighted up to four times (shapes are
what is hard to learn, and they cover a fifth of an image), timesteps mostly logit-normal (Esser et
al. 2024, arXiv 2403.03206), 10 % of the captions empty for classifier-free guidance.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import guide
import judges
import models
import pool
from optim import MuonAdamW
from train_text_encoder import tokenize
from workers import Worker, default_workers, launch
from world.captions import varied_caption
from world.render import grid

PREVIEW = [
    "a photo of a red backpack on a beach",
    "a photo of a blue car in a city",
    "a photo of a cat in a forest",
    "a watercolor painting of a green teapot in a meadow",
    "a pencil sketch of a guitar in a city",
    "a pixel art picture of a purple robot in outer space",
    "a photo of a yellow duck under the sea at sunset",
    "a photo of a penguin in the snow",
    "a photo of a pink striped hat in a bedroom",
    "a photo of a black umbrella in a meadow",
    "a photo of a dog running in a desert",
    "a photo of an orange mushroom in a forest",
    "a photo of a clock in a library at night",
    "a photo of a small white sneaker on a white background",
    "a photo of a boot near a volcano",
    "a photo of a cake on a kitchen table in the fog",
    "a photo of a large owl in a garden",
    "a horse",
    "a photo of a green dotted car in the snow",
    "a photo of a teddy bear in a classroom",
    "a photo of a fish under the sea",
    "a photo of a yellow rocket on the moon",
    "a watercolor painting of a rabbit on a farm at sunset",
    "a pencil sketch of a bicycle by a lake",
]


def encode_pool(
    worker: Worker, folder: Path, name: str, encode: Callable[[Any], Any], shape: tuple[int, ...]
) -> None:
    """Write `encode(images)` of every chunk that has none, shared out over the workers."""
    import torch

    missing = [i for i in pool.chunks(folder) if not (folder / f"{name}-{i:04d}.npy").exists()]
    for index in (i for i in missing if i % worker.count == worker.rank):
        images = pool.load_images(folder, [index])
        encoded = np.zeros((len(images), *shape), np.float16)
        with torch.no_grad(), torch.autocast(worker.device, torch.bfloat16):
            for start in range(0, len(images), 50):
                x = torch.from_numpy(images[start : start + 50]).permute(0, 3, 1, 2)
                output = encode(x.to(worker.device).float() / 127.5 - 1)
                encoded[start : start + 50] = output.float().cpu().numpy()
        temporary = folder / f".{name}-{index:04d}.{os.getpid()}.npy"
        np.save(temporary, encoded)
        temporary.rename(folder / f"{name}-{index:04d}.npy")


def _digest(*modules: Any) -> str:
    """Eight hex digits that stand for the modules' weights."""
    parameters = [p for module in modules for p in module.parameters()]
    sums = [f"{p.detach().double().sum().item():.6e}" for p in parameters]
    return hashlib.sha256(" ".join(sums).encode()).hexdigest()[:8]


class Examples:
    """Latents, reader features, masks and specs of a pool's finished chunks, kept in memory."""

    def __init__(self, worker: Worker, folder: Path, vae: Any, reader: Any) -> None:
        self.worker, self.folder, self.vae, self.reader = worker, folder, vae, reader
        # Other weights, other latents: the names of the caches say which.
        encoder = _digest(vae.encoder, vae.quant_conv)
        self.names = (f"latents-{encoder}", f"features-{_digest(reader)}")
        self.indices: list[int] = []
        self.refresh()

    def refresh(self) -> None:
        """Encode and load the chunks that have appeared since the last call."""
        scale = self.vae.config.scaling_factor
        cells = models.SIDE // 8
        encode_pool(
            self.worker,
            self.folder,
            self.names[0],
            lambda x: self.vae.encode(x).latent_dist.mode() * scale,
            (models.LATENT_CHANNELS, cells, cells),
        )
        encode_pool(
            self.worker,
            self.folder,
            self.names[1],
            lambda x: guide.reader_features(self.reader, x),
            (guide.CHANNELS, cells // 2, cells // 2),
        )
        self.worker.agree(0)  # wait for the others' chunks
        done = [i for i in pool.chunks(self.folder) if all(p.exists() for p in self._files(i))]
        fresh = [i for i in done if i not in self.indices]
        if not fresh:
            return
        old = (self.latents, self.features, self.masks) if self.indices else None
        latents, features = (
            np.concatenate([np.load(self._files(i)[k]) for i in fresh]) for k in (0, 1)
        )
        masks, specs = pool.load_masks(self.folder, fresh), pool.load_specs(self.folder, fresh)
        if old:
            latents, features, masks = (
                np.concatenate(pair) for pair in zip(old, (latents, features, masks), strict=True)
            )
            specs = self.specs + specs
        self.latents, self.features, self.masks, self.specs = latents, features, masks, specs
        self.indices += fresh

    def _files(self, index: int) -> list[Path]:
        return [self.folder / f"{name}-{index:04d}.npy" for name in self.names]

    def batch(self, rng: random.Random, count: int) -> tuple[Any, Any, Any, list[str]]:
        """Latents (n, c, 12, 12), features (n, 160, 6, 6), masks (n, 1, 12, 12), captions."""
        import torch

        rows = [rng.randrange(len(self.specs)) for _ in range(count)]
        texts = [
            "" if rng.random() < 0.1 else varied_caption(self.specs[i], rng).text for i in rows
        ]
        tensors = (
            torch.from_numpy(a[rows]).float().to(self.worker.device)
            for a in (self.latents, self.features, self.masks)
        )
        latents, features, masks = tensors
        return latents, features, masks[:, None] / 255, texts


def random_timesteps(count: int) -> Any:
    """int64 (count,) in 0..999: a quarter uniform, the rest logit-normal.

    The bell leans to the noisy side, where shapes form.
    """
    import torch

    middle = (torch.sigmoid(torch.randn(count) * 1.1 + 0.6) * 1000).long().clamp(0, 999)
    anywhere = torch.randint(0, 1000, (count,))
    return torch.where(torch.rand(count) < 0.75, middle, anywhere)


def diffusion_loss(unet: Any, states: Any, latents: Any, masks: Any, alphas: Any) -> Any:
    """v-prediction loss, in which the subject counts for up to four times its area, a scalar.

    Only as far as it is seen through the noise: where the model has to guess, a weight on the
    subject would make it guess the larger drawings.

    Args:
        unet: The model.
        states: Text encoder states (n, 48, 192).
        latents: Clean latents (n, c, 12, 12) with unit variance.
        masks: Share of each cell that the subject covers, (n, 1, 12, 12).
        alphas: The schedule's cumulative alphas (1000,).
    """
    import torch

    t = random_timesteps(len(latents)).to(latents.device)
    a = alphas[t].sqrt()[:, None, None, None]
    s = (1 - alphas[t]).sqrt()[:, None, None, None]
    noise = torch.randn_like(latents)
    with torch.autocast(latents.device.type, torch.bfloat16):
        output = unet(a * latents + s * noise, t, states).sample
    weight = 1 + 3 * a**2 * masks
    error = weight * (output.float() - (a * noise - s * latents)).pow(2)
    return (error.sum((1, 2, 3)) / (latents.shape[1] * weight.sum((1, 2, 3)))).mean()


def sample(
    parts: dict[str, Any], prompts: list[str], steps: int = 25, guidance: float = 4.0
) -> Any:
    """Images for `prompts` with the real pipeline, uint8 (side, side, 3) each."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        **parts,
        scheduler=models.noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    device = parts["unet"].device.type
    with torch.autocast(device, torch.bfloat16):
        images = pipeline(
            prompts,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            height=models.SIDE,
            width=models.SIDE,
        ).images
    return [np.asarray(image) for image in images]


class Run:
    """Everything that makes up a training run, and how it is saved and resumed."""

    def __init__(self, worker: Worker, args: argparse.Namespace) -> None:
        from diffusers.models.attention_processor import AttnProcessor

        self.worker, self.args = worker, args
        self.unet = models.unet()
        self.state_file = args.out / "state.safetensors"
        self.samples = 0
        if (args.out / "config.json").exists():
            self.unet = type(self.unet).from_pretrained(args.out)
            self.unet = self.unet.float()
            self.samples = json.loads((args.out / "training.json").read_text())["samples"]
        self.unet.to(worker.device).train()
        if worker.device == "cpu":
            # Backward through the CPU's fused attention takes longer than the plain one at 36 x 48.
            self.unet.set_attn_processor(AttnProcessor())
        self.parameters = list(self.unet.parameters())
        self.ema = [p.detach().clone() for p in self.parameters]
        first_and_last = (self.unet.conv_in.weight, self.unet.conv_out.weight)
        self.optimizer = MuonAdamW(self.parameters, args.lr, skip=first_and_last)
        self.guide = guide.Guide(self.unet)
        if self.state_file.exists():
            self._load_state()

    def _load_state(self) -> None:
        from safetensors.torch import load_file

        state = load_file(self.state_file)
        if int(state.get("samples", -1)) != self.samples:
            print(f"{self.state_file} belongs to other weights: starting with fresh moments")
            return
        for i, p in enumerate(self.parameters):
            p.data.copy_(state[f"param.{i}"])
            self.ema[i].copy_(state[f"ema.{i}"])
        for i, p in enumerate(self.guide.projector.parameters()):
            p.data.copy_(state[f"projector.{i}"])
        self.optimizer.load_state(state)

    def swap_ema(self) -> None:
        """Exchange the parameters with their moving average."""
        for p, e in zip(self.parameters, self.ema, strict=True):
            p.data, e.data = e.data, p.data

    def save(self) -> None:
        """Write the averaged weights (half precision, shards under 15 MB) and the full state."""
        import torch
        from safetensors.torch import save_file

        out = self.args.out
        out.mkdir(parents=True, exist_ok=True)
        state = self.optimizer.state() | {"samples": torch.tensor(self.samples)}
        for i, p in enumerate(self.guide.projector.parameters()):
            state[f"projector.{i}"] = p.detach()
        for i, p in enumerate(self.parameters):
            state |= {f"param.{i}": p.detach(), f"ema.{i}": self.ema[i].detach()}
        temporary = self.state_file.with_suffix(".tmp")
        save_file({k: v.contiguous().cpu().clone() for k, v in state.items()}, temporary)
        temporary.rename(self.state_file)
        self.swap_ema()
        copy = type(self.unet).from_config(self.unet.config)
        copy.load_state_dict(self.unet.state_dict())
        self.swap_ema()
        (out / "training.json").write_text(json.dumps({"samples": self.samples}) + "\n")
        fresh = out / "fresh"
        copy.half().save_pretrained(fresh, max_shard_size="14MB")
        # Whatever layout lay here before (the package has one file) must not outlive its weights.
        for old in out.glob("diffusion_pytorch_model*"):
            old.unlink()
        for new in fresh.iterdir():
            new.rename(out / new.name)
        fresh.rmdir()


def train(worker: Worker, args: argparse.Namespace) -> None:
    """Train one piece."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    parts = {
        "vae": AutoencoderKL.from_pretrained(args.vae).to(worker.device).eval(),
        "text_encoder": CLIPTextModel.from_pretrained(args.text_encoder).to(worker.device).eval(),
        "tokenizer": CLIPTokenizer.from_pretrained(args.tokenizer),
    }
    run = Run(worker, args)
    torch.manual_seed(1000 * worker.rank + run.samples % 1000)
    rng = random.Random(f"{worker.rank}-{run.samples}")
    worker.average([*run.parameters, *run.guide.projector.parameters()])
    reader = judges.load_reader(args.guide).requires_grad_(False).to(worker.device)
    examples = Examples(worker, args.pool, parts["vae"], reader)
    alphas = models.noise_schedule().alphas_cumprod.to(worker.device)
    if worker.first:
        size = sum(p.numel() for p in run.parameters) / 1e6
        print(f"UNet {size:.1f}M parameters, {len(examples.specs)} images, ", end="")
        print(f"{run.samples} samples so far", flush=True)
    first_samples, step, losses = run.samples, 0, []
    elapsed, last, saved = 0.0, time.time(), 0.0
    minutes = 0.0
    (args.out / "stop").unlink(missing_ok=True)
    while minutes < args.minutes:
        if step % args.sync == 0:
            worker.average([*run.parameters, *run.guide.projector.parameters()])
            stop = (args.out / "stop").exists()  # `touch work/unet/stop` ends the piece early
            minutes = worker.agree(args.minutes if stop else elapsed / 60)
        lr = args.lr * min(1, (step + 1) / 100)
        if args.decay_minutes:
            lr *= min(1, max(0.01, (args.minutes - minutes) / args.decay_minutes))
        run.optimizer.set_lr(lr)
        latents, features, masks, texts = examples.batch(rng, args.batch)
        with torch.no_grad(), torch.autocast(worker.device, torch.bfloat16):
            ids = tokenize(parts["tokenizer"], texts).to(worker.device)
            states = parts["text_encoder"](ids).last_hidden_state
        loss = diffusion_loss(run.unet, states, latents, masks, alphas)
        aligned = run.guide.loss(features, masks)
        (loss + args.guide_weight * aligned).backward()
        torch.nn.utils.clip_grad_norm_(run.parameters, 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.guide.step()
        decay = min(args.ema, (1 + run.samples / args.batch) / (20 + run.samples / args.batch))
        torch._foreach_lerp_(run.ema, [p.data for p in run.parameters], 1 - decay)
        step += 1
        run.samples += args.batch * worker.count
        losses.append((loss.item(), aligned.item()))
        now = time.time()
        elapsed, last = elapsed + min(now - last, 30), now  # a paused process does not count
        if step % 500 == 0:  # the pool may be growing beside the training
            examples.refresh()
        if worker.first and step % 50 == 0:
            pace = (run.samples - first_samples) / elapsed
            print(
                f"{run.samples} samples  {elapsed / 60:.1f} min  "
                f"loss {np.mean(losses[-100:], 0).round(4)}  lr {lr:.1e}  {pace:.1f} samples/s",
                flush=True,
            )
        if worker.first and (elapsed - saved > 60 * args.save_every):
            saved = elapsed
            run.save()
            preview(run, parts)
            last = time.time()
    worker.average(run.parameters)
    if worker.first:
        run.save()
        preview(run, parts)
        print(f"{run.samples} samples in all", flush=True)


def preview(run: Run, parts: dict[str, Any]) -> None:
    """Save a sheet of images of the averaged weights beside the checkpoint."""
    from PIL import Image

    run.swap_ema()
    run.unet.eval()
    images = sample({**parts, "unet": run.unet}, PREVIEW)
    run.unet.train()
    run.swap_ema()
    Image.fromarray(grid(images, 8)).save(run.args.out / f"preview-{run.samples:08d}.png")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", type=Path, required=True, help="pool of kind 'world'")
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--text-encoder", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--guide", type=Path, required=True, help="made by train_judge.py")
    parser.add_argument("--guide-weight", type=float, default=0.5)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--decay-minutes", type=float, default=0)
    parser.add_argument("--batch", type=int, default=48, help="a step and worker")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--sync", type=int, default=10)
    parser.add_argument("--save-every", type=float, default=10, help="minutes")
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--device", default="auto")
    launch(train, parser.parse_args())


if __name__ == "__main__":
    main()
