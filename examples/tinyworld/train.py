"""Train everything that ships, from the artwork up, in one command.

    python examples/tinyworld/train.py --preset cpu        two cores, about three hours
    python examples/tinyworld/train.py --preset gpu        one GPU beside a few cores

Every stage leaves its result in `work/` and is skipped when it is there, except the UNet: it goes
on from its last checkpoint for the preset's minutes, each time the command is given. `--only unet
--minutes 9` trains a piece of it, which is what a job service with short time limits needs.
`--from-shipped` starts from the weights in the package instead of from nothing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Preset:
    """How long each stage trains (minutes), how many images it sees, its batch size."""

    details: int
    encoder: float
    decoder: float
    text: float
    images: int
    unet: float
    decay: float
    unet_batch: int
    sharpen: float
    reader: float
    alignment: float
    identity: float


PRESETS = {
    "cpu": Preset(12_000, 7, 8, 6, 36_000, 120, 60, 64, 12, 6, 6, 10),
    "gpu": Preset(40_000, 6, 6, 3, 200_000, 25, 10, 512, 5, 3, 3, 5),
}


def command(script: str, **options: object) -> list[str]:
    """A script with its options: `command("pool.py", count=5)` is `pool.py --count 5`."""
    words = [script]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def stages(work: Path, p: Preset, device: str) -> dict[str, tuple[Path | None, list[list[str]]]]:
    """Commands by stage, each with the file that says it is done (None: always run)."""
    tokenizer, text_encoder, vae = work / "tokenizer", work / "text_encoder", work / "vae"
    world, details, judge = work / "pool", work / "pool-details", work / "judge"

    def autoencoder(phase: str, minutes: float) -> list[str]:
        batch = 16 if device == "cpu" else 128
        options = {"pool": details, "out": vae, "batch": batch, "device": device}
        return command("train_autoencoder.py", phase=phase, minutes=minutes, **options)

    def judge_model(model: str, minutes: float) -> list[list[str]]:
        options = {"pool": world, "tokenizer": tokenizer, "out": judge, "device": device}
        return [command("train_judge.py", model=model, minutes=minutes, **options)]

    return {
        "pool": (
            work / "pool.done",
            [
                command("pool.py", kind="details", count=p.details, out=details),
                command("pool.py", kind="world", count=p.images, out=world),
            ],
        ),
        "encoder": (vae / "config.json", [autoencoder("encoder", p.encoder)]),
        "decoder": (work / "decoder.done", [autoencoder("decoder", p.decoder)]),
        "tokenizer": (tokenizer / "tokenizer.json", [command("make_tokenizer.py", out=tokenizer)]),
        "text": (
            text_encoder / "config.json",
            [
                command(
                    "train_text_encoder.py",
                    tokenizer=tokenizer,
                    out=text_encoder,
                    minutes=p.text,
                    device=device,
                )
            ],
        ),
        "guide": (judge / "guide.safetensors", judge_model("guide", p.reader)),
        "unet": (
            None,
            [
                command(
                    "train_unet.py",
                    pool=world,
                    vae=vae,
                    text_encoder=text_encoder,
                    tokenizer=tokenizer,
                    guide=judge / "guide.safetensors",
                    save_every=3,
                    out=work / "unet",
                    batch=p.unet_batch,
                    minutes=p.unet,
                    decay_minutes=p.decay,
                    device=device,
                )
            ],
        ),
        "sharpen": (
            None,
            [command("sharpen_decoder.py", work=work, minutes=p.sharpen, device=device)],
        ),
        "alignment": (
            judge / "alignment" / "config.json",
            judge_model("alignment", p.alignment),
        ),
        "identity": (judge / "identity" / "config.json", judge_model("identity", p.identity)),
        "reader": (judge / "reader.safetensors", judge_model("reader", p.reader)),
        "export": (None, [command("export.py", work=work)]),
        "evaluate": (
            None,
            [command("evaluate.py", sheet=work / "evaluation.png"), command("evaluate_judge.py")],
        ),
    }


def start_from_shipped(work: Path) -> None:
    """Fill an empty `work` with the package's weights, to go on from them.

    Only the UNet gets better by this: the others count as done. Images are rendered anew.
    """
    embedded = HERE.parents[1] / "regforge" / "embedded"
    for part in ("vae", "text_encoder", "tokenizer", "unet"):
        shutil.copytree(embedded / "tinyworld" / part, work / part, dirs_exist_ok=True)
    shutil.copytree(embedded / "judge", work / "judge", dirs_exist_ok=True)
    for name in ("guide", "reader"):
        shutil.copy(HERE / f"{name}.safetensors", work / "judge" / f"{name}.safetensors")
    shutil.copy(HERE / "training.json", work / "unet" / "training.json")
    (work / "decoder.done").touch()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument(
        "--from-shipped", action="store_true", help="go on from the package's weights"
    )
    parser.add_argument("--only", help="run this stage alone")
    parser.add_argument("--minutes", type=float, help="length of this piece of UNet training")
    parser.add_argument("--decay-minutes", type=float, help="its final learning rate decay")
    args = parser.parse_args()
    args.work = args.work.resolve()
    preset = PRESETS[args.preset]
    if args.minutes is not None:
        preset = replace(preset, unet=args.minutes, decay=0)
    if args.decay_minutes is not None:
        preset = replace(preset, decay=args.decay_minutes)
    table = stages(args.work, preset, "cuda" if args.preset == "gpu" else "cpu")
    if args.only and args.only not in table:
        parser.error(f"no stage {args.only!r}; there are: {', '.join(table)}")
    args.work.mkdir(parents=True, exist_ok=True)
    if args.from_shipped:
        if (args.work / "unet").exists():
            parser.error(f"{args.work} holds a training already: leave out --from-shipped")
        start_from_shipped(args.work)
    for name, (done, commands) in table.items():
        if args.only and name != args.only:
            continue
        if done and done.exists() and not args.only:
            print(f"== {name}: done already ({done})", flush=True)
            continue
        for words in commands:
            print(f"== {name}: {' '.join(words)}", flush=True)
            subprocess.run([sys.executable, *words], cwd=HERE, check=True)
        if done and done.suffix == ".done":
            done.touch()


if __name__ == "__main__":
    main()
