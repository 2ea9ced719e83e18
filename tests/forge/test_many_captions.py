"""Runs of very many captions: little is held of each."""

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
    tracemalloc.start()
    try:
        assert quietly(recipe, out, until="prompts").prompts == count
        assert quietly(recipe, out, until="prompts").prompts == count
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_million_captions_need_no_gigabyte(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    # Some of what is loaded once is loaded for the first thousands.
    few, many = (peak(n, write_recipe, tmp_path / str(n)) for n in (6000, 11_000))
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
