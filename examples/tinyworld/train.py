"""Train everything that ships, from the artwork up, in one command.

    python examples/tinyworld/train.py --preset cpu        two cores, about three hours
    python examples/tinyworld/train.py --preset gpu        one GPU beside a few cores

Every stage leaves its result in `work/` and is skipped when it is there; the UNet resumes from its
last checkpoint, so the command can be stopped and given again. `--only unet --minutes 9` trains a
piece of it, which is what a job service with short time limits needs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Preset:
    """How long each stage trains (minutes), how many pictures it sees, its batch size."""

    details: int
    encoder: float
    decoder: float
    text: float
    pictures: int
    unet: float
    decay: float
    unet_batch: int
    judge: float


PRESETS = {
    "cpu": Preset(12_000, 7, 8, 6, 36_000, 120, 25, 40, 6),
    "gpu": Preset(40_000, 6, 6, 3, 200_000, 25, 6, 512, 4),
}


def stages(work: Path, p: Preset, device: str) -> dict[str, tuple[Path | None, list[list[str]]]]:
    """Commands by stage, each with the file that says it is done (None: always run)."""
    parts = ["--tokenizer", f"{work}/tokenizer"]
    judge = ["train_judge.py", "--pool", f"{work}/pool", *parts, "--out", f"{work}/judge"]
    on = ["--device", device]
    vae = ["train_autoencoder.py", "--pool", f"{work}/pool-details", "--out", f"{work}/vae", *on]
    batch = ["--batch", "16" if device == "cpu" else "128"]
    return {
        "pool": (
            work / "pool.done",
            [
                ["pool.py", "--kind", "details", "--count", f"{p.details}"]
                + ["--out", f"{work}/pool-details"],
                ["pool.py", "--count", f"{p.pictures}", "--out", f"{work}/pool"],
            ],
        ),
        "encoder": (
            work / "vae" / "config.json",
            [[*vae, *batch, "--phase", "encoder", "--minutes", f"{p.encoder}"]],
        ),
        "decoder": (
            work / "decoder.done",
            [[*vae, *batch, "--phase", "decoder", "--minutes", f"{p.decoder}"]],
        ),
        "tokenizer": (
            work / "tokenizer" / "tokenizer.json",
            [["make_tokenizer.py", "--out", f"{work}/tokenizer"]],
        ),
        "text": (
            work / "text_encoder" / "config.json",
            [
                ["train_text_encoder.py", *parts, "--out", f"{work}/text_encoder"]
                + ["--minutes", f"{p.text}", "--device", device]
            ],
        ),
        "unet": (
            None,
            [
                ["train_unet.py", "--pool", f"{work}/pool", "--vae", f"{work}/vae", *parts, *on]
                + ["--text-encoder", f"{work}/text_encoder", "--out", f"{work}/unet"]
                + ["--batch", f"{p.unet_batch}", "--minutes", f"{p.unet}"]
                + ["--decay-minutes", f"{p.decay}"]
            ],
        ),
        "judge": (
            work / "judge" / "identity" / "config.json",
            [
                [*judge, *on, "--model", model, "--minutes", f"{p.judge}"]
                for model in ("reader", "alignment", "identity")
            ],
        ),
        "export": (None, [["export.py", "--work", f"{work}"]]),
        "evaluate": (None, [["evaluate.py", "--sheet", f"{work}/evaluation.png"]]),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--only", help="run this stage alone")
    parser.add_argument("--minutes", type=float, help="length of this piece of UNet training")
    parser.add_argument("--decay-minutes", type=float, help="its final learning rate decay")
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    if args.minutes is not None:
        decay = args.decay_minutes or 0
        preset = Preset(**{**preset.__dict__, "unet": args.minutes, "decay": decay})
    table = stages(args.work, preset, "cuda" if args.preset == "gpu" else "cpu")
    if args.only and args.only not in table:
        parser.error(f"no stage {args.only!r}; there are: {', '.join(table)}")
    args.work.mkdir(parents=True, exist_ok=True)
    for name, (done, commands) in table.items():
        if args.only and name != args.only:
            continue
        if done and done.exists() and not args.only:
            print(f"== {name}: done already ({done})", flush=True)
            continue
        for command in commands:
            print(f"== {name}: {' '.join(command)}", flush=True)
            subprocess.run(
                [sys.executable, *command], cwd=HERE, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
            )
        if done and done.suffix == ".done":
            done.touch()


if __name__ == "__main__":
    main()
