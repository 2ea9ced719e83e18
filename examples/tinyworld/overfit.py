"""Show that the pipeline can be personalized, and that it overfits without regularization.

Trains a plain LoRA on the five images of one subject, nothing else, and looks at the model on the
way: does it draw *this* subject (identity: cosine to the subject's images, by the judge), does it
still do what the prompt says (alignment: cosine to the prompt; place and style read back), and has
the whole class become the subject (leakage: identity of images asked for without the identifier)?
Writes `curves.png`, `grid.png` and `curves.json`.

    python examples/tinyworld/overfit.py --subject cat --out out/overfit-cat
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import judges
from evaluate import HERE, PIPELINE, accuracy, generate, open_pipeline
from regforge.embedded import load_alignment, load_identity
from world import vocabulary as v
from world.captions import Spec, caption
from world.render import grid

IDENTIFIER = "sks"
LORA_TARGETS = [
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out"),
    *("ff.net.0.proj", "ff.net.2", "conv1", "conv2"),
]


def test_specs(class_noun: str, places_seen: set[str]) -> list[Spec]:
    """24 prompts: places the subject was never seen in, six each in the four styles."""
    places = [p for p in v.PLACES if p not in places_seen]
    styles = list(v.STYLES)
    return [
        Spec(class_noun, places[i % len(places)], style=styles[i // 6], light="day")
        for i in range(24)
    ]


class Judge:
    """Identity and alignment of images, by the embedded encoders."""

    def __init__(self) -> None:
        self.identity, self.processor = load_identity()
        self.alignment, _, self.tokenizer = load_alignment()

    def _pixels(self, images: list[np.ndarray]) -> Any:
        return self.processor([Image.fromarray(i) for i in images], return_tensors="pt")

    def embed(self, images: list[np.ndarray]) -> Any:
        """Identity embeddings, unit length, (n, 256)."""
        import torch

        with torch.no_grad():
            pooled = self.identity(**self._pixels(images)).pooler_output.flatten(1)
        return torch.nn.functional.normalize(pooled, dim=-1)

    def identity_score(self, images: list[np.ndarray], subject: list[np.ndarray]) -> float:
        """Mean cosine over all pairs of an image and a subject image."""
        return float((self.embed(images) @ self.embed(subject).T).mean())

    def alignment_score(self, images: list[np.ndarray], prompts: list[str]) -> float:
        """Mean cosine of each image and its prompt."""
        import torch

        ids = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad():
            output = self.alignment(
                input_ids=ids.input_ids, pixel_values=self._pixels(images).pixel_values
            )
        return float((output.image_embeds * output.text_embeds).sum(-1).mean())


def train_step(pipeline: Any, states: Any, latents: Any, alphas: Any) -> Any:
    """The plain diffusion loss of a batch, as diffusers' DreamBooth LoRA script has it."""
    import torch

    t = torch.randint(0, 1000, (len(latents),))
    a = alphas[t].sqrt()[:, None, None, None]
    s = (1 - alphas[t]).sqrt()[:, None, None, None]
    noise = torch.randn_like(latents)
    output = pipeline.unet(a * latents + s * noise, t, states).sample
    return (output - (a * noise - s * latents)).pow(2).mean()


def encode(pipeline: Any, images: list[np.ndarray], captions: list[str]) -> tuple[Any, Any]:
    """Latents (n, c, 12, 12) and caption states (n, 48, 192)."""
    import torch

    with torch.no_grad():
        posterior = pipeline.vae.encode(judges.to_tensor(np.stack(images))).latent_dist
        ids = pipeline.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        states = pipeline.text_encoder(ids).last_hidden_state
    return posterior.mode() * pipeline.vae.config.scaling_factor, states


def look(
    pipeline: Any,
    judge: Judge,
    reader: Any,
    specs: list[Spec],
    subject: list[np.ndarray],
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Scores of the model as it is, and the images they were taken from."""
    named = [caption(s, noun=f"{IDENTIFIER} {v.CLASS_NOUNS[s.class_noun][0]}") for s in specs]
    with_name = generate(pipeline, named, steps=20, guidance=4.0)
    plain = [caption(s) for s in specs]
    without = generate(pipeline, plain, steps=20, guidance=4.0)
    read = accuracy(reader, with_name, specs)
    scores = {
        "identity": judge.identity_score(with_name, subject),
        "alignment": judge.alignment_score(with_name, plain),
        "place": read["place"],
        "style": read["style"],
        "leakage": judge.identity_score(without, subject),
    }
    return scores, with_name


def plot(history: list[dict[str, float]], ceiling: float, title: str, path: Path) -> None:
    """Two curves over steps: identity (and leakage), alignment (place and style)."""
    import matplotlib.pyplot as plt

    steps = [row["step"] for row in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.plot(steps, [r["identity"] for r in history], "o-", label='"sks" prompts')
    left.plot(steps, [r["leakage"] for r in history], "o--", label="plain class prompts (leakage)")
    left.axhline(ceiling, color="gray", lw=1, ls=":", label="the subject's own images")
    left.set(title=f"{title}: identity", xlabel="training steps", ylabel="cosine to the subject")
    for key, style in (("place", "o-"), ("style", "o--"), ("alignment", "s:")):
        right.plot(steps, [r[key] for r in history], style, label=key)
    right.set(title=f"{title}: does it still follow the prompt?", xlabel="training steps")
    right.set_ylim(0, 1.02)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--subject", default="cat")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--looks", default="0,50,100,200,400,800,1600", help="steps to look at")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pipeline", type=Path, default=PIPELINE)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    import matplotlib as mpl
    import torch
    from peft import LoraConfig

    mpl.use("Agg")
    torch.manual_seed(args.seed)
    folder = HERE.parent / "subjects" / args.subject
    subject = [np.asarray(Image.open(p).convert("RGB")) for p in sorted(folder.glob("*.png"))]
    about = json.loads((folder / "subject.json").read_text())
    name = f"{IDENTIFIER} {about['class_noun']}"
    texts = [p.read_text().strip() for p in sorted(folder.glob("*.txt"))]
    captions = [text.replace("{}", name) for text in texts]
    seen = {p for p in v.PLACES if any(v.PLACES[p][0] in c for c in captions)}
    specs = test_specs(about["class_noun"], seen)
    pipeline, judge = open_pipeline(args.pipeline), Judge()
    reader = judges.load_reader(HERE / "reader.safetensors")
    latents, states = encode(pipeline, subject, captions)
    alphas = pipeline.scheduler.alphas_cumprod
    pipeline.unet.requires_grad_(False)
    pipeline.unet.add_adapter(
        LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=LORA_TARGETS)
    )
    parameters = [p for p in pipeline.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=1e-2)
    own = judge.embed(subject)
    ceiling = float((own @ own.T)[~torch.eye(len(own), dtype=torch.bool)].mean())
    looks = {int(s) for s in args.looks.split(",")}
    history, rows, start = [], [], time.time()
    args.out.mkdir(parents=True, exist_ok=True)
    for step in range(args.steps + 1):
        if step in looks:
            scores, images = look(pipeline, judge, reader, specs, subject)
            history.append({"step": step, **scores})
            rows += images[::2]
            line = "  ".join(f"{k} {x:.3f}" for k, x in scores.items())
            print(f"step {step:5d}  {time.time() - start:4.0f} s  {line}", flush=True)
        pick = torch.randint(0, len(latents), (args.batch,))
        with torch.autocast(pipeline.device.type, torch.bfloat16):
            loss = train_step(pipeline, states[pick], latents[pick], alphas)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    (args.out / "curves.json").write_text(json.dumps(history, indent=2) + "\n")
    Image.fromarray(grid(rows, 12)).save(args.out / "grid.png")
    plot(history, ceiling, f"{args.subject}, no regularization", args.out / "curves.png")


if __name__ == "__main__":
    main()
