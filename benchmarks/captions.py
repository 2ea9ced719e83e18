"""Writing captions from a vocabulary: seconds, captions a second, peak memory.

python benchmarks/captions.py

The vocabulary is the phrase banks' for one class noun, with all their clashes. Every caption is
sampled, redrawn where phrases do not go together, put through the template, counted in tokens and
compared with all others. Each count runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time

from regforge.journal import Journal, Reporter
from regforge.prompts.filling import fill_vocabulary
from regforge.prompts.tokens import token_budget
from regforge.prompts.vocabulary import Vocabulary
from regforge.prompts.writing import write_prompts
from regforge.recipe import Recipe


def recipe_for(class_noun: str, count: int, exclude: tuple[str, ...]) -> Recipe:
    """A recipe whose phrases all come from the banks: nobody is asked."""
    kind = "living" if class_noun in ("dog", "cat", "person") else "object"
    slots = ["shape", "color", "texture", "background", "lighting", "style"]
    if kind == "living":
        slots.insert(3, "motion")
    return Recipe.model_validate(
        {
            "name": "captions",
            "subject": {"class_noun": class_noun, "kind": kind, "identifier": "sks"},
            "prompts": {
                "count": count,
                "exclude": exclude,
                "slots": [{"name": name, "from": "bank"} for name in slots],
                "max_tokens": 77,
            },
        }
    )


def measure(class_noun: str, count: int, exclude: tuple[str, ...]) -> dict[str, float]:
    """Write captions and forget them."""
    recipe = recipe_for(class_noun, count, exclude)
    vocabulary: Vocabulary = fill_vocabulary(
        recipe, None, journal=Journal(None), reporter=Reporter(quiet=True)
    )
    budget = token_budget(recipe.render, recipe.prompts.max_tokens)
    budget.count("loads what it needs")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    written = sum(1 for _ in write_prompts(recipe, vocabulary, budget=budget))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    unit = 1024 if sys.platform == "darwin" else 1
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "captions": written,
        "seconds": wall,
        "cpu": cpu,
        "before": before / 1024 / unit,
        "peak": after / 1024 / unit,
        "clashes": len(vocabulary.incompatible),
    }


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--class-noun", default="dog", help="dog, cat and person have 7 slots")
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--exclude", nargs="*", default=[], help="such as dreambench")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.class_noun, args.one, tuple(args.exclude))))
        return
    print(f"{platform.machine()}, Python {platform.python_version()}, {args.class_noun}")
    print("   captions  seconds   cpu s  captions/s  us each  peak MB  of these before")
    for count in args.counts:
        command = [sys.executable, __file__, "--class-noun", args.class_noun]
        command += ["--exclude", *args.exclude, "--one", str(count)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        each = found["cpu"] / count
        print(
            f"{count:11,} {found['seconds']:8.1f} {found['cpu']:7.1f} {1 / each:11,.0f} "
            f"{each * 1e6:8.1f} {found['peak']:8.0f} {found['before']:16.0f}"
        )


if __name__ == "__main__":
    main()
