"""Fine-tune the decoder so that it turns the UNet's soft latents into crisp images.

The decoder is trained on latents of the world's images; the UNet's are never that exact, and a
decoder that minimizes pixel errors answers doubt with blur. So it is shown such latents, and
discriminators ask for crispness. Encoder, UNet and text encoder stay as they are.

First, for some chunks of the pool: latents of their images; "SDEdit" latents (Meng et al. 2021,
arXiv 2108.01073: noise added up to `--strength` of the schedule and taken away by the UNet in a few
steps, which is what the UNet would have made of this image, with the image to compare); and latents
generated from captions, for which the present decoder's image, blurred, says where things are.

Then the decoder learns on all three. Each part of the loss (pixels and edges; features of the
guide; discriminators with a hinge loss) gives a gradient on the images that is scaled by its
running size, so the weights are shares and no part drowns another. The vaguer a latent, the more
discriminators count.

    python examples/tinyworld/sharpen_decoder.py --work examples/tinyworld/work

On two cores: 3 minutes for the latents of 6,000 images, then `--minutes`.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

import export
import judges
import models
import pool
from optim import MuonAdamW
from train_text_encoder import tokenize
from workers import Worker, default_workers, launch
from world.captions import caption

KINDS = {"clean": 2, "sdedit": 4, "generated": 2}
"""Latents of each kind in a worker's batch."""
PAIRED = KINDS["clean"] + KINDS["sdedit"]
WEIGHTS = {"pixels": 1.0, "anchor": 0.7, "features": 0.7}


def denoise(unet: Any, x: Any, times: list[int], states: Any, empty: Any, guidance: float) -> Any:
    """Deterministic DDIM of latents x (n, 16, 12, 12) through `times`, to the end."""
    import torch

    alphas = models.noise_schedule().alphas_cumprod
    for t, after in zip(times, [*times[1:], None], strict=True):
        a, s = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
        both = unet(torch.cat([x, x]), t, torch.cat([empty.expand_as(states), states])).sample
        plain, told = both.float().chunk(2)
        v = plain + guidance * (told - plain)
        clean, noise = a * x - s * v, a * v + s * x
        b = alphas[after] if after is not None else torch.tensor(1.0)
        x = b.sqrt() * clean + (1 - b).sqrt() * noise
    return x


def prepare(pipeline: Any, folder: Path, index: int, count: int, strength: float) -> Any:
    """Latents of chunk `index`: of all its images, SDEdit ones of the first, generated ones.

    Returns:
        Arrays by name: clean, sdedit, generated (n, 16, 12, 12) with unit variance; start (n,), the
        times that SDEdit began at; anchor (n, 3, 24, 24), the generated images, blurred.
    """
    import torch
    import torch.nn.functional as F

    vae, scale = pipeline.vae, pipeline.vae.config.scaling_factor
    alphas, rng = models.noise_schedule().alphas_cumprod, np.random.default_rng(index)
    torch.manual_seed(index)
    images, specs = pool.load_images(folder, [index]), pool.load_specs(folder, [index])
    found: dict[str, list[Any]] = {name: [] for name in (*KINDS, "start", "anchor")}

    def read(texts: list[str]) -> Any:
        ids = tokenize(pipeline.tokenizer, texts).to(vae.device)
        return pipeline.text_encoder(ids).last_hidden_state

    with torch.no_grad(), torch.autocast(vae.device.type, torch.bfloat16):
        empty = read([""])
        for i in range(0, len(images), 50):
            x = judges.to_tensor(images[i : i + 50]).to(vae.device)
            found["clean"].append(vae.encode(x).latent_dist.mode().float() * scale)
        clean = torch.cat(found["clean"])
        for i in range(0, count, 25):
            start, steps = int(rng.integers(40, strength * 1000)), int(rng.integers(4, 7))
            times = [round(start * (k + 1) / steps) for k in reversed(range(steps))]
            z, states = clean[i : i + 25], read([caption(x) for x in specs[i : i + 25]])
            noisy = alphas[start].sqrt() * z + (1 - alphas[start]).sqrt() * torch.randn_like(z)
            guidance = float(rng.choice([1, 3]))
            found["sdedit"].append(denoise(pipeline.unet, noisy, times, states, empty, guidance))
            found["start"].append(torch.full((25,), start))
        times = [1000 * (20 - k) // 20 - 1 for k in range(20)]
        for i in range(count, count + count // 2, 25):
            states = read([caption(x) for x in specs[i : i + 25]])
            noise = torch.randn(25, models.LATENT_CHANNELS, 12, 12, device=vae.device)
            z = denoise(pipeline.unet, noise, times, states, empty, float(rng.choice([3, 4, 5])))
            found["generated"].append(z)
            found["anchor"].append(F.avg_pool2d(vae.decode(z / scale).sample.float(), 4))
    return {name: torch.cat(parts).float().cpu().numpy() for name, parts in found.items()}


def discriminator() -> Any:
    """Logits from patches of an image and from the cells of three of the guide's stages."""
    import torch
    from torch import nn
    from torch.nn.utils.parametrizations import spectral_norm as sn

    class Discriminator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pixels = nn.Sequential(
                sn(nn.Conv2d(3, 32, 4, 2, 1)),
                nn.LeakyReLU(0.2),
                sn(nn.Conv2d(32, 64, 4, 2, 1)),
                nn.LeakyReLU(0.2),
                sn(nn.Conv2d(64, 128, 3, 1, 1)),
                nn.LeakyReLU(0.2),
                sn(nn.Conv2d(128, 1, 3, 1, 1)),
            )
            self.cells = nn.ModuleList(
                nn.Sequential(
                    sn(nn.Conv2d(c, 64, 1)), nn.LeakyReLU(0.2), sn(nn.Conv2d(64, 1, 3, 1, 1))
                )
                for c in (64, 96, 160)
            )

        def forward(self, images: Any, features: list[Any]) -> list[Any]:
            heads = [head(f).float() for head, f in zip(self.cells, features, strict=True)]
            # Spectral norms keep logits small; the hinge wants them to reach 1.
            return [10 * x for x in (self.pixels(images).float(), *heads)]

    torch.manual_seed(0)
    return Discriminator()


class Examples:
    """Prepared latents and their images in memory."""

    def __init__(self, arrays: list[Any], images: list[np.ndarray], seed: int) -> None:
        self.arrays, self.images = arrays, images
        self.rng = np.random.default_rng(seed)

    def batch(self) -> tuple[Any, Any, Any, Any]:
        """Latents, images (unrelated ones for generated latents), anchors, vagueness (n,) 0..1."""
        import torch

        z, shown, anchors, vague = [], [], [], []
        for name in (name for name, count in KINDS.items() for _ in range(count)):
            chunk = int(self.rng.integers(len(self.arrays)))
            arrays, images = self.arrays[chunk], self.images[chunk]
            row = other = int(self.rng.integers(len(arrays[name])))
            latent, start = arrays[name][row], 1.0
            if name == "clean":
                start = float(max(0, self.rng.uniform(-0.4, 0.4)))
                latent = latent + start * self.rng.standard_normal(latent.shape, np.float32)
            elif name == "sdedit":
                start = float(arrays["start"][row] / arrays["start"].max())
            else:
                anchors.append(arrays["anchor"][row])
                other = int(self.rng.integers(len(images)))
            z.append(latent)
            shown.append(images[other])
            vague.append(start)
        return (
            torch.from_numpy(np.stack(z)),
            judges.to_tensor(np.stack(shown)),
            torch.from_numpy(np.stack(anchors)),
            torch.tensor(vague),
        )


def pixel_loss(output: Any, target: Any) -> Any:
    """L1, edges and a little L2, of images in -1..1."""
    error = output - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 0.75 * edges + 0.3 * error.pow(2).mean()


def load_examples(worker: Worker, args: argparse.Namespace, pipeline: Any) -> Examples:
    """Prepare the chunks' latents, shared out over the workers, and load them all."""
    folder, prepared = args.work / "pool", args.work / "sharpen"
    prepared.mkdir(exist_ok=True)
    chunks = pool.chunks(folder)[: args.chunks]
    for index in chunks[worker.rank :: worker.count]:
        if not (prepared / f"{index:04d}.npz").exists():
            arrays = prepare(pipeline, folder, index, args.count, args.strength)
            np.savez(prepared / f"unfinished-{worker.rank}.npz", **arrays)
            (prepared / f"unfinished-{worker.rank}.npz").rename(prepared / f"{index:04d}.npz")
            print(f"latents of chunk {index}", flush=True)
    worker.agree(0)  # wait for the others' chunks
    arrays = [dict(np.load(prepared / f"{index:04d}.npz")) for index in chunks]
    return Examples(arrays, [pool.load_images(folder, [i]) for i in chunks], worker.rank)


def train(worker: Worker, args: argparse.Namespace) -> None:
    """Fine-tune for `args.minutes`; the discriminators start to count after `args.warmup`."""
    import torch
    import torch.nn.functional as F

    pipeline = export.assemble(args.work).to(worker.device)
    examples = load_examples(worker, args, pipeline)
    vae = pipeline.vae.float().requires_grad_(False)
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    for p in parameters:
        p.requires_grad_(True)
    critic = discriminator().to(worker.device)
    guide = judges.load_reader(args.work / "judge" / "guide.safetensors")
    guide = guide.tower.requires_grad_(False).to(worker.device)
    optimizer = MuonAdamW(parameters, args.lr)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), 1e-3, betas=(0.5, 0.99))
    ema = [p.detach().clone() for p in parameters]
    torch.manual_seed(1000 + worker.rank)
    sizes: dict[str, float] = {}
    logs: list[list[float]] = []
    start, step, minutes = time.time(), 0, 0.0

    def look(images: Any) -> list[Any]:
        stages = guide(images, output_hidden_states=True).hidden_states[1:4]
        cells = [F.layer_norm(f.float().permute(0, 2, 3, 1), (f.shape[1],)) for f in stages]
        return [f.permute(0, 3, 1, 2) for f in cells]

    while minutes < args.minutes:
        if step % 10 == 0:
            worker.average([*parameters, *critic.parameters()])
            minutes = worker.agree((time.time() - start) / 60)
        lr = args.lr * min(1, (step + 1) / 50)
        if minutes >= args.warmup:  # a decoder that runs ahead of its critic oscillates
            done = (minutes - args.warmup) / (args.minutes - args.warmup)
            lr *= 0.4 * (0.02 + 0.98 * math.cos(min(1, done) * math.pi / 2))
        optimizer.set_lr(lr)
        z, images, anchors, vague = (x.to(worker.device) for x in examples.batch())
        with torch.autocast(worker.device, torch.bfloat16):
            decoded = vae.decode(z / vae.config.scaling_factor).sample
            output = decoded.detach().float().requires_grad_()
            features = look(output)
            with torch.no_grad():
                real = look(images)
            pairs = zip(features, real, strict=True)
            losses = {
                "pixels": pixel_loss(output[:PAIRED], images[:PAIRED]),
                "anchor": (F.avg_pool2d(output[PAIRED:], 4) - anchors).abs().mean(),
                "features": sum((f[:PAIRED] - r[:PAIRED]).abs().mean() for f, r in pairs),
            }
            if minutes >= args.warmup:
                losses["critic"] = -sum(x.mean() for x in critic(output, features)) / 4
        share = (0.25 + args.adversarial * vague.clamp(0, 1))[:, None, None, None]
        share = share * min(1, max(0, minutes - args.warmup))  # rises for a minute
        counted = {"pixels": PAIRED, "features": PAIRED, "anchor": KINDS["generated"]}
        gradient = torch.zeros_like(output)
        for name, loss in losses.items():
            (g,) = torch.autograd.grad(loss, output, retain_graph=True)
            size = float(g.norm()) / counted.get(name, len(z)) ** 0.5  # of one image
            sizes[name] = 0.95 * sizes.get(name, size) + 0.05 * size
            # At the first step the anchors are the decoder's own images, and their gradient zero.
            gradient += WEIGHTS.get(name, share) * g / max(sizes[name], 1e-6)
        decoded.backward((gradient / len(z)).to(decoded.dtype))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.998, (1 + step) / (20 + step))
        torch._foreach_lerp_(ema, [p.data for p in parameters], 1 - decay)
        if minutes >= args.warmup - 0.5:  # the critic learns a little before it counts
            with torch.autocast(worker.device, torch.bfloat16):
                good = critic(images, real)
                bad = critic(output.detach(), [f.detach() for f in features])
                hinge = sum(
                    F.relu(1 - g).mean() + F.relu(1 + b).mean()
                    for g, b in zip(good, bad, strict=True)
                )
            hinge.backward()
            critic_optimizer.step()
        critic_optimizer.zero_grad(set_to_none=True)
        step += 1
        logs.append([float(losses[name].detach()) for name in WEIGHTS])
        if worker.first and step % 100 == 0:
            means = dict(zip(WEIGHTS, np.mean(logs[-100:], 0).round(3).tolist(), strict=True))
            crisp = [float(x.diff(dim=-1).abs().mean()) for x in (output[PAIRED:], images)]
            print(f"step {step}  {60 * minutes:.0f} s  {means}", end="  ")
            print(f"sharpness {crisp[0] / crisp[1]:.2f}", flush=True)
    if worker.first:
        for p, e in zip(parameters, ema, strict=True):
            p.data.copy_(e)
        vae.half().save_pretrained(args.work / "vae")
        shutil.rmtree(args.work / "sharpen")
        print(f"{step} steps, {step * len(z) * worker.count} images")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="what train.py made")
    parser.add_argument("--chunks", type=int, default=6, help="of 1,000 images")
    parser.add_argument("--count", type=int, default=500, help="SDEdit latents of a chunk")
    parser.add_argument("--strength", type=float, default=0.45, help="share of the schedule")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--warmup", type=float, default=3, help="minutes without discriminators")
    parser.add_argument("--adversarial", type=float, default=0.8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--device", default="auto")
    launch(train, parser.parse_args())


if __name__ == "__main__":
    main()
