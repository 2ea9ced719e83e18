"""Teach the text encoder to read, before any image is seen.

Two tasks on captions alone: say what the caption tells (class noun, colour, place, ...) from the
mean of the hidden states, and say which word stands at each position from the state there. The
first makes meaning easy to read for the UNet (it more than doubled the sample efficiency of our
first models); the second keeps words apart that mean the same here. The UNet is then trained on the
frozen encoder. No caption holds a made-up word: an identifier shall be as new to this encoder as it
is to the ones that people personalize.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import judges
import models
from world import vocabulary as v
from world.captions import Caption, random_spec, varied_caption

SLOTS: dict[str, list[str | None]] = {**judges.SLOTS, "place": ["", *v.PLACES]}


def random_captions(rng: random.Random, count: int) -> list[Caption]:
    """Captions over all combinations, held-out ones too: text alone gives no image away."""
    specs = (random_spec(rng, held_out=None) for _ in range(count))
    return [varied_caption(s, rng) for s in specs]


def tokenize(tokenizer: Any, texts: list[str]) -> Any:
    """Token ids, int64 (n, 48), padded and cut as pipelines do."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def main() -> None:
    """Train for `--minutes`, then print the accuracy on fresh captions."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--teacher",
        type=Path,
        help="a text encoder whose states to match, so that a UNet trained on it can go on",
    )
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    import torch
    import torch.nn.functional as F
    from transformers import CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    if args.device == "cpu":
        torch.set_num_threads(1)
    rng = random.Random(0)
    tokenizer = CLIPTokenizer.from_pretrained(args.tokenizer)
    encoder = models.text_encoder(tokenizer).to(args.device)
    heads = torch.nn.ModuleDict(
        {slot: torch.nn.Linear(models.TEXT_WIDTH, len(values)) for slot, values in SLOTS.items()}
    ).to(args.device)
    speller = torch.nn.Linear(models.TEXT_WIDTH, len(tokenizer)).to(args.device)
    teacher = None
    if args.teacher:
        teacher = CLIPTextModel.from_pretrained(args.teacher).float().to(args.device).eval()
    parameters = [p for m in (encoder, heads, speller) for p in m.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)

    def forward(captions: list[Caption]) -> tuple[Any, dict[str, float]]:
        ids = tokenize(tokenizer, [c.text for c in captions]).to(args.device)
        with torch.autocast(args.device, torch.bfloat16):
            states = encoder(ids).last_hidden_state
            summary = states.mean(1)
            readings = {slot: head(summary).float() for slot, head in heads.items()}
            words = ids != tokenizer.pad_token_id
            spelling = speller(states[words]).float()
        loss, right = 0.25 * F.cross_entropy(spelling, ids[words]), {}
        if teacher:
            with torch.no_grad(), torch.autocast(args.device, torch.bfloat16):
                wanted = teacher(ids).last_hidden_state.float()
            distance = F.mse_loss(states.float(), wanted) / wanted.var()
            loss = loss + 10 * distance
            right["unlike the teacher"] = distance.item()
        right["spelling"] = float((spelling.argmax(-1) == ids[words]).float().mean())
        for slot, logits in readings.items():
            told = [SLOTS[slot].index(getattr(c.tells, slot)) for c in captions]
            truth = torch.tensor(told, device=args.device)
            loss = loss + F.cross_entropy(logits, truth)
            right[slot] = float((logits.argmax(-1) == truth).float().mean())
        return loss, right

    start, step = time.time(), 0
    while (fraction := (time.time() - start) / (60 * args.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 100) * max(0.02, 1 - fraction)
        loss, right = forward(random_captions(rng, args.batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 100 == 0:
            scores = "  ".join(f"{slot} {share:.2f}" for slot, share in right.items())
            print(
                f"{step}  {time.time() - start:.0f} s  loss {loss.item():.3f}  {scores}", flush=True
            )
    encoder.eval()
    with torch.no_grad():
        _, right = forward(random_captions(random.Random("held out"), 1000))
    print(f"{step} steps of {args.batch}; accuracy on fresh captions:")
    print("  ".join(f"{slot} {share:.3f}" for slot, share in right.items()))
    encoder.save_pretrained(args.out)


if __name__ == "__main__":
    main()
