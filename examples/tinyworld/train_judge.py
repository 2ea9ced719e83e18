"""Train the judge on images of the world alone, apart from the generator.

Four models:

    guide       attributes from images; the UNet (`guide.py`) and the next two learn from it
    alignment   images against captions and against class nouns alone, contrastively (CLIP,
                Radford et al. 2021), its image tower also copying the guide's features; of a pool
                of kind 'judge', so that it knows the class of drawings that it never saw
    identity    two images of the same drawing against all others, whatever place, light, pose
                (InfoNCE, van den Oord et al. 2018); drawings are bent, recoloured and marked with
                emblems at random, so that there is no end of them and fine details decide
    reader      attributes from images again, from another seed: nothing learns from this one, it
                measures the generator
"""

from __future__ import annotations

import argparse
import random
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import judges
import pool
from optim import MuonAdamW
from train_text_encoder import tokenize
from workers import Worker, default_workers, launch
from world import drawings, vocabulary
from world.captions import article, random_spec, varied_caption
from world.drawings import Drawing, Emblem
from world.render import render

LIGHTS = list(vocabulary.LIGHTS)


def _augment(images: Any, rng: np.random.Generator) -> Any:
    """Blur, noise and shifts as generated images have them, so that the judge is not fooled."""
    import torch
    import torch.nn.functional as F

    if rng.random() < 0.5:
        share = rng.random()
        images = F.avg_pool2d(images, 3, 1, 1) * share + images * (1 - share)
    dy, dx = (int(d) for d in rng.integers(-4, 5, size=2))
    images = torch.roll(images, (dy, dx), (2, 3))
    return images + torch.randn_like(images) * 0.08 * rng.random()


class Loop:
    """A training loop over a time budget: warm-up, then linear decay; averages over workers."""

    def __init__(
        self, worker: Worker, parameters: Any, minutes: float, lr: float, skip: tuple[Any, ...] = ()
    ) -> None:
        self.worker, self.parameters, self.minutes, self.lr = worker, list(parameters), minutes, lr
        worker.average(self.parameters)
        self.optimizer = MuonAdamW(self.parameters, lr, weight_decay=0.02, skip=skip)
        self.start, self.step, self.fraction = time.time(), 0, 0.0

    def running(self) -> bool:
        """Whether there is time for another step."""
        if self.step % 10 == 0:
            self.worker.average(self.parameters)
            spent = (time.time() - self.start) / (60 * self.minutes)
            self.fraction = self.worker.agree(spent)
        return self.fraction < 1

    def update(self, loss: Any, note: str) -> None:
        """One optimizer step on `loss`."""
        import torch

        self.optimizer.set_lr(self.lr * min(1, (self.step + 1) / 60) * max(0.01, 1 - self.fraction))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.worker.first and self.step % 100 == 0:
            seconds = time.time() - self.start
            print(f"{self.step} steps  {seconds:.0f} s  loss {loss.item():.3f}  {note}", flush=True)


def save_half(model: Any, folder: Path) -> None:
    """Save in half precision, leaving the model as it is."""
    import copy

    copy.deepcopy(model).half().save_pretrained(folder)


def train_reader(worker: Worker, args: argparse.Namespace) -> None:
    """Attributes from images; `guide` and `reader` differ in their seeds alone.

    Goes on from what an earlier piece of training left.
    """
    import torch
    import torch.nn.functional as F
    from safetensors.torch import save_file

    seed = ["guide", "reader"].index(args.model)
    torch.manual_seed(100 * seed)  # all workers start alike
    rng = np.random.default_rng([seed, worker.rank])
    indices = pool.chunks(args.pool)
    images, specs = pool.load_images(args.pool, indices), pool.load_specs(args.pool, indices)
    truth = {slot: judges.labels(specs, slot) for slot in judges.SLOTS}
    # What nobody names a colour of has one all the same: an elephant is gray, named or not.
    truth["color"][truth["color"] == judges.SLOTS["color"].index(None)] = -1
    weights = args.out / f"{args.model}.safetensors"
    model = judges.load_reader(weights).train() if weights.exists() else judges.reader()
    model = model.to(worker.device, memory_format=torch.channels_last)
    loop = Loop(worker, model.parameters(), args.minutes, args.lr)
    while loop.running():
        rows = rng.integers(1000, len(images), size=args.batch)  # the first chunk is for testing
        x = _augment(judges.to_tensor(images[rows]).to(worker.device), rng)
        with torch.autocast(worker.device, torch.bfloat16):
            logits = model(x)
        told = {slot: truth[slot][rows].to(worker.device) for slot in logits}
        loss = sum(
            F.cross_entropy(logits[s], told[s], label_smoothing=0.02, ignore_index=-1)
            * (2 if s in ("class_noun", "color", "texture") else 1)
            for s in logits
        )
        share = (logits["class_noun"].argmax(-1) == told["class_noun"]).float().mean()
        loop.update(loss, f"class {share:.2f}")
    if worker.first:
        model.eval()
        with torch.no_grad():
            logits = model(judges.to_tensor(images[:1000]).to(worker.device))
        for slot, values in logits.items():
            told = truth[slot][:1000]
            right = (values.argmax(-1).cpu() == told)[told >= 0].float().mean()
            print(f"  {slot:12s} {right:.3f}")
        args.out.mkdir(parents=True, exist_ok=True)
        state = {k: t.half().contiguous().cpu() for k, t in model.state_dict().items()}
        save_file(state, weights)


def class_captions(draw: random.Random) -> list[str]:
    """A caption of each class noun that says nothing else, in one of its wordings."""
    start = draw.choice(["", *vocabulary.STYLES["photo"]])
    nouns = [draw.choice(phrases) for phrases in vocabulary.CLASS_NOUNS.values()]
    return [f"{start} {article(noun)}{noun}".strip() for noun in nouns]


def train_alignment(worker: Worker, args: argparse.Namespace) -> None:
    """Images against captions; goes on from what an earlier piece of training left."""
    import torch
    import torch.nn.functional as F
    from transformers import CLIPTokenizer, VisionTextDualEncoderModel

    rng, draw = np.random.default_rng(worker.rank), random.Random(worker.rank)
    indices = pool.chunks(args.pool)
    images, specs = pool.load_images(args.pool, indices), pool.load_specs(args.pool, indices)
    tokenizer = CLIPTokenizer.from_pretrained(args.tokenizer)
    teacher = judges.load_reader(args.out / "guide.safetensors").tower.to(worker.device)
    if (args.out / "alignment" / "config.json").exists():
        model = VisionTextDualEncoderModel.from_pretrained(args.out / "alignment", dtype="float32")
    else:
        model = judges.dual_encoder(tokenizer, judges.convnext_tower())
    model = model.to(worker.device).train()
    heads = torch.nn.ModuleDict(
        {s: torch.nn.Linear(judges.EMBEDDING, len(v)) for s, v in judges.SLOTS.items()}
    ).to(worker.device)
    copier = torch.nn.Linear(256, 256).to(worker.device)
    parameters = [*model.parameters(), *heads.parameters(), *copier.parameters()]
    words = model.text_model.get_input_embeddings().weight
    loop = Loop(worker, parameters, args.minutes, args.lr, skip=(words,))
    target = torch.arange(args.batch, device=worker.device)
    while loop.running():
        rows = rng.integers(1000, len(images), size=args.batch)
        captions = [varied_caption(specs[i], draw) for i in rows]
        ids = tokenize(tokenizer, [c.text for c in captions]).to(worker.device)
        x = _augment(judges.to_tensor(images[rows]).to(worker.device), rng)
        with torch.autocast(worker.device, torch.bfloat16):
            output = model(input_ids=ids, pixel_values=x)
            alone = tokenize(tokenizer, class_captions(draw)).to(worker.device)
            nouns = model.get_text_features(input_ids=alone).pooler_output
            with torch.no_grad():
                features = teacher(x).pooler_output.flatten(1)
        logits = output.logits_per_image.float()
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        copied = copier(output.vision_model_output.pooler_output.float())
        standard = F.layer_norm(features.float(), (256,))
        loss = loss + F.mse_loss(copied, standard)
        named = output.image_embeds.float() @ F.normalize(nouns.float(), dim=-1).T
        classes = judges.labels([specs[i] for i in rows], "class_noun").to(worker.device)
        loss = loss + F.cross_entropy(named * model.logit_scale.exp(), classes)
        # Reading the caption's attributes from its embedding teaches the words quickly.
        text = output.text_embeds.float() * 8
        for slot, head in heads.items():
            known = [i for i, c in enumerate(captions) if getattr(c.tells, slot) != ""]
            told = judges.labels([captions[i].tells for i in known], slot).to(worker.device)
            loss = loss + 0.2 * F.cross_entropy(head(text[known]), told)
        share = (logits.argmax(-1) == target).float().mean()
        known = (named.argmax(-1) == classes).float().mean()
        loop.update(loss, f"matched {share:.2f} of 1 in {args.batch}, class {known:.2f}")
    if worker.first:
        save_half(model.eval(), args.out / "alignment")
        judges.image_processor().save_pretrained(args.out / "alignment")
        tokenizer.save_pretrained(args.out / "alignment")


@dataclass(frozen=True)
class Identity:
    """What two images of the same thing share."""

    drawing: Drawing
    emblem: Emblem | None
    color: str | None
    texture: str | None


def random_identity(rng: random.Random) -> Identity:
    """A drawing with or without emblem, tint and pattern; two in three are bent first."""
    known = [d for d in drawings.load("extras") if d.purpose == "train"]
    drawing = rng.choice([*drawings.load("classes"), *known])
    if rng.random() < 0.67:
        drawing = drawings.bend(drawing, rng)
    return Identity(
        drawing,
        emblem=pool.random_emblem(rng) if rng.random() < 0.35 else None,
        color=rng.choice(list(vocabulary.COLORS)) if rng.random() < 0.15 else None,
        texture=rng.choice(list(vocabulary.TEXTURES)) if rng.random() < 0.1 else None,
    )


def identity_pairs(rng: random.Random, count: int) -> list[np.ndarray]:
    """Two images each of `count` identities: uint8 (2, side, side, 3).

    One identity in five gets a twin, the same drawing with another emblem, so that the drawing
    alone does not give it away.
    """
    rows: list[np.ndarray] = []
    while len(rows) < count:
        identity = random_identity(rng)
        twins = [identity]
        if rng.random() < 0.15 and len(rows) + 1 < count:
            twins.append(replace(identity, emblem=pool.random_emblem(rng)))
        for twin in twins:
            pair = []
            for _ in range(2):
                spec = random_spec(rng, held_out=None)
                pose = rng.choice([None, None, *vocabulary.MOTIONS])
                spec = replace(spec, color=twin.color, texture=twin.texture, motion=pose)
                if rng.random() < 0.7:
                    spec = replace(spec, style="photo", light=rng.choice(LIGHTS))
                seed = rng.getrandbits(32)
                pair.append(render(spec, seed, drawing=twin.drawing, emblem=twin.emblem).image)
            rows.append(np.stack(pair))
    return rows


def train_identity(worker: Worker, args: argparse.Namespace) -> None:
    """Two images of the same identity against all others in the batch.

    Rendering costs as much as training, so pairs are kept and drawn again: each step paints a
    half of a batch anew and takes the batch from the last few thousand pairs.
    """
    import torch
    import torch.nn.functional as F
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    from transformers import AutoModel

    rng, draw = np.random.default_rng(worker.rank), random.Random(f"{time.time()} {worker.rank}")
    if (args.out / "identity" / "config.json").exists():
        model = AutoModel.from_pretrained(args.out / "identity", dtype="float32")  # go on
    else:
        model = judges.load_reader(args.out / "guide.safetensors").tower
    model = model.to(worker.device).train()
    temperature = torch.nn.Parameter(torch.tensor(2.5, device=worker.device))
    loop = Loop(worker, [*model.parameters(), temperature], args.minutes, args.lr)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98), use_buffers=True)
    pairs = deque(identity_pairs(draw, 4 * args.batch), maxlen=6000)
    target = torch.arange(args.batch, device=worker.device)
    while loop.running():
        pairs.extend(identity_pairs(draw, args.batch // 2))
        chosen = rng.choice(len(pairs), size=args.batch, replace=False)
        views = np.stack([pairs[i] for i in chosen])
        x = judges.to_tensor(np.concatenate([views[:, 0], views[:, 1]])).to(worker.device)
        with torch.autocast(worker.device, torch.bfloat16):
            pooled = model(_augment(x, rng)).pooler_output.flatten(1).float()
        unit = F.normalize(pooled, dim=-1)
        logits = unit[: args.batch] @ unit[args.batch :].T * temperature.exp()
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        share = (logits.argmax(-1) == target).float().mean()
        loop.update(loss, f"matched {share:.2f} of 1 in {args.batch}")
        average.update_parameters(model)
    if worker.first:
        save_half(average.module.eval(), args.out / "identity")
        judges.image_processor().save_pretrained(args.out / "identity")


def train(worker: Worker, args: argparse.Namespace) -> None:
    """Train the model that `--model` names."""
    import torch

    torch.manual_seed(0)  # all workers start alike; their images differ
    stages = {
        "guide": train_reader,
        "alignment": train_alignment,
        "identity": train_identity,
        "reader": train_reader,
    }
    stages[args.model](worker, args)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", choices=["guide", "alignment", "identity", "reader"], required=True
    )
    parser.add_argument("--pool", type=Path, required=True, help="pool of kind 'world'")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--device", default="auto")
    launch(train, parser.parse_args())


if __name__ == "__main__":
    main()
