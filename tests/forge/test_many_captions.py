"""Runs of very many captions: little is held of each."""

import gc
import tracemalloc
from pathlib import Path

import pytest
from small_runs import WriteRecipe, quietly

from regforge.recipe import load_recipe
from regforge.records import PackedPrompts, Prompt

MANY = {
    "subject": {"images": None},
    "prompts": {
        "sets": {"amplify": 1},
        "slots": [{"name": name, "from": "bank"} for name in ("color", "background", "lighting")],
    },
}


def peak(count: int, write_recipe: WriteRecipe, out: Path) -> int:
    """Bytes that Python held at most while it made captions and read them again."""
    changes = {**MANY, "prompts": {**MANY["prompts"], "count": count}}
    recipe = load_recipe(write_recipe(**changes))
    rarely = gc.get_threshold()
    gc.set_threshold(700)  # what waits to be collected is no memory that is needed
    tracemalloc.start()
    try:
        assert quietly(recipe, out, until="prompts").prompts == count
        assert quietly(recipe, out, until="prompts").prompts == count
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.set_threshold(*rarely)


@pytest.mark.slow
def test_a_million_captions_need_no_gigabyte(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    peak(500, write_recipe, tmp_path / "first")  # what is loaded once
    few, many = (peak(n, write_recipe, tmp_path / str(n)) for n in (1000, 6000))
    assert (many - few) / 5000 < 500


def test_packed_prompts_are_the_same_prompts() -> None:
    prompts = [
        Prompt(n, f"a {n} \u2028 été", "cat", "living", "amplify", {"color": f"{n}", "size": None})
        for n in range(2500)
    ]
    packed = PackedPrompts(iter(prompts))
    assert len(packed) == 2500
    assert list(packed) == prompts
    assert packed[-1] == prompts[-1]
    assert packed[1024] == prompts[1024]
    assert list(packed[1000:1030]) == prompts[1000:1030]
    assert list(packed[:2500]) == prompts
    assert b"".join(packed.content()).decode() == "".join(p.to_json() + "\n" for p in prompts)
    with pytest.raises(IndexError):
        packed[2500]
    assert list(PackedPrompts([])) == []
