"""Runs a dataset recipe, stage by stage, and goes on where an earlier run stopped.

    prompting   vocabulary.json and prompts.jsonl
    rendering   shards of accepted images
    plan        what a run would do, without doing it

Knows the order of the stages and what is handed from one to the next, and no stage's inside.
"""

from regforge.forge.running import Run, RunFailed, Until, run, write_report

__all__ = ["Run", "RunFailed", "Until", "run", "write_report"]
