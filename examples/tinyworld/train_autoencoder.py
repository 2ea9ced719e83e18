"""Train the autoencoder on crops of rendered images, in two phases.

`--phase encoder` trains the encoder against a fast draft decoder; `--phase decoder` freezes it and
trains the real decoder on its latents, which can go on while the UNet is already learning them.

Loss: L1, L1 of the image's differences (edges), a little L2 and KL. A quarter of the encoder's
steps decode shrunken latents and ask for the shrunken image ("EQ-VAE", Kouzelis et al. 2025,
arXiv 2502.09509): latents that scale like images are easier for a diffusion model to learn.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

import models
import pool
from optim import MuonAdamW
from workers import Worker, default_workers, launch


def _reconstruction_loss(output: Any, target: Any) -> tuple[Any, Any]:
    """Loss and plain L1 of images in -1..1, (n, 3, side, side)."""
    error = output.float() - target
    l1 = error.abs().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return l1 + 0.75 * edges + 0.3 * error.pow(2).mean(), l1


def _encoder_loss(model: Any, draft: Any, images: Any, shrink: bool) -> tuple[Any, Any]:
    import torch.nn.functional as F

    posterior = model.encode(images).latent_dist
    latents, target = posterior.sample(), images
    if shrink:
        latents, target = F.avg_pool2d(latents, 2), F.avg_pool2d(images, 2)
    loss, l1 = _reconstruction_loss(draft(latents), target)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
    return loss + 5e-4 * kl, l1


def _decoder_loss(model: Any, images: Any) -> tuple[Any, Any]:
    import torch

    with torch.no_grad():
        latents = model.encode(images).latent_dist.sample()
        # The UNet's latents are never exact: let the decoder get used to a little noise.
        noise = torch.rand(len(latents), 1, 1, 1, device=latents.device) * 0.1
        latents = latents + torch.randn_like(latents) * noise / model.config.scaling_factor
    return _reconstruction_loss(model.decode(latents).sample, images)


def _batch(images: np.ndarray, rng: np.random.Generator, count: int, side: int) -> Any:
    """Random crops on the latent grid, as a tensor in -1..1."""
    import torch

    crops = []
    for i in rng.integers(len(images), size=count):
        y, x = rng.integers((images.shape[1] - side) // 8 + 1, size=2) * 8
        crops.append(images[i, y : y + side, x : x + side])
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(decode: Any, model: Any, images: np.ndarray) -> float:
    """Peak signal-to-noise ratio of reconstructions, in dB."""
    import torch

    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float().to(model.device) / 127.5 - 1
        y = decode(model.encode(x).latent_dist.mode()).clamp(-1, 1)
    return float(10 * torch.log10(4 / (x - y).pow(2).mean()))


def latent_scale(model: Any, images: np.ndarray) -> float:
    """1 / standard deviation of the latents: what `scaling_factor` is for."""
    import torch

    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float().to(model.device) / 127.5 - 1
        return float(1 / model.encode(x).latent_dist.mode().std())


def train(worker: Worker, args: argparse.Namespace) -> None:
    """Train one phase for `args.minutes`, going on from what is in `args.out`."""
    import torch

    torch.manual_seed(0)  # all workers start alike; their images differ
    rng = np.random.default_rng([worker.rank, int(time.time())])
    images = pool.load_images(args.pool, pool.chunks(args.pool))
    held, images = images[:64], images[64:]
    model = models.autoencoder()
    if (args.out / "config.json").exists():
        model = type(model).from_pretrained(args.out)
    elif args.phase == "decoder":
        raise SystemExit(f"{args.out} holds no encoder yet: run --phase encoder first")
    model = model.to(worker.device)
    if args.phase == "encoder":
        draft = models.draft_decoder().to(worker.device)
        trained = [model.encoder, model.quant_conv, draft]
        decode = draft
    else:
        trained = [model.decoder, model.post_quant_conv]

        def decode(z: Any) -> Any:
            return model.decode(z).sample

    parameters = [p for module in trained for p in module.parameters()]
    worker.average(parameters)
    optimizer = MuonAdamW(parameters, args.lr)
    ema = [p.detach().clone() for p in parameters]
    start, step, fraction, recent = time.time(), 0, 0.0, []
    while fraction < 1:
        if step % args.sync == 0:
            worker.average(parameters)
            fraction = worker.agree((time.time() - start) / (60 * args.minutes))
        lr = args.lr * min(1, (step + 1) / 100) * (0.02 + 0.98 * math.cos(fraction * math.pi / 2))
        optimizer.set_lr(lr)
        whole = fraction > 0.75  # group norms see other statistics in a crop
        crops = (max(1, args.batch // 4), 96) if whole else (args.batch, 48)
        batch = _batch(images, rng, *crops).to(worker.device)
        with torch.autocast(worker.device, torch.bfloat16):
            if args.phase == "encoder":
                loss, l1 = _encoder_loss(model, draft, batch, shrink=rng.random() < 0.25)
            else:
                loss, l1 = _decoder_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.998, (1 + step) / (20 + step))
        torch._foreach_lerp_(ema, [p.data for p in parameters], 1 - decay)
        step += 1
        recent.append(l1.item())
        if worker.first and step % 100 == 0:
            pace = step * args.batch / 4 * worker.count / (time.time() - start)
            print(
                f"{args.phase} step {step}  {time.time() - start:.0f} s  "
                f"L1 {np.mean(recent[-200:]):.4f}  PSNR {psnr(decode, model, held[:32]):.2f}  "
                f"lr {lr:.1e}  {pace:.1f} images/s",
                flush=True,
            )
    if worker.first:
        for p, e in zip(parameters, ema, strict=True):
            p.data.copy_(e)
        if args.phase == "encoder":
            model.register_to_config(scaling_factor=latent_scale(model, images[:512]))
        decoded_images = int(step * args.batch / 4 * worker.count)
        print(
            f"{args.phase}: {decoded_images} images, {step} steps, "
            f"PSNR {psnr(decode, model, held):.2f} dB, scaling {model.config.scaling_factor:.3f}"
        )
        model.save_pretrained(args.out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--phase", choices=["encoder", "decoder"], required=True)
    parser.add_argument("--pool", type=Path, required=True, help="pool of kind 'details'")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--batch", type=int, default=12, help="48-pixel crops a step and worker")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--sync", type=int, default=10)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--device", default="auto")
    launch(train, parser.parse_args())


if __name__ == "__main__":
    main()
