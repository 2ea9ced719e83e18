"""Which images the grid shows, and what it looks like."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rows import make_image, make_row, make_rows
from PIL import Image
from report_samples import make_image as plain

from regforge.dataset.card_parts import SampleChooser, as_webp, samples_grid
from regforge.records import ImageRow


def choose_samples(rows: list[ImageRow], count: int = 16) -> list[ImageRow]:
    chooser = SampleChooser(len(rows))
    for row in rows:
        chooser.add(row)
    chosen = chooser.choose(count)
    return [row for row in rows if row.id in chosen]


def test_prompt_sets_are_shown_by_their_share_and_rare_phrases_too() -> None:
    rows = [
        make_row(
            n, image=b"", prompt_set="against" if n == 900 else "naive" if n % 4 == 0 else "amplify"
        )
        for n in range(1000)
    ]
    shown = [row.prompt_set for row in choose_samples(rows, 16)]
    assert shown.count("against") == 1
    assert 3 <= shown.count("naive") <= 5
    assert len(shown) == 16
    rows = [
        make_row(n, image=b"", prompt_set="amplify", slots={"color": f"colour {max(0, n - 195)}"})
        for n in range(200)
    ]
    shown = {row.slots["color"] for row in choose_samples(rows, 6)}
    assert shown == {f"colour {n}" for n in range(5)}


def test_they_come_in_their_order_and_are_always_the_same() -> None:
    rows = make_rows(*range(60))
    shown = choose_samples(rows)
    assert [row.index for row in shown] == sorted({row.index for row in shown})
    assert choose_samples(rows) == shown


@settings(max_examples=60)
@given(
    sets=st.lists(st.sampled_from(["naive", "against", "amplify", "import"]), max_size=60),
    count=st.integers(0, 20),
)
def test_as_many_are_chosen_as_asked_for_if_there_are(sets: list[str], count: int) -> None:
    rows = [make_row(index, image=b"", prompt_set=name) for index, name in enumerate(sets)]
    shown = choose_samples(rows, count)
    assert len(shown) == min(count, len(rows))
    assert count < len(set(sets)) or {row.prompt_set for row in shown} == set(sets)


def test_choosing_among_very_many_keeps_few() -> None:
    chooser, row = SampleChooser(100_000), make_row(0)
    for _ in range(100_000):
        chooser.add(row)
    assert sum(len(rows) for rows in chooser._candidates.values()) < 2100


def test_large_images_become_small_and_small_ones_larger_by_whole_numbers() -> None:
    for size, shown in [
        ((1024, 1024), (256, 256)),
        ((1024, 512), (256, 128)),
        ((96, 96), (288, 288)),
        ((100, 50), (300, 150)),
        ((250, 250), (250, 250)),
    ]:
        row = make_row(0, image=plain("red", size))
        pixels = np.asarray(samples_grid([row])).astype(int)
        red = (pixels[:, :, 0] > 200) & (pixels[:, :, 1] < 60)
        rows, columns = np.nonzero(red)
        # The frame around the image takes one pixel on each side.
        found = (np.ptp(columns) + 3, np.ptp(rows) + 3)
        assert found == shown, size


def test_the_grid_has_as_many_columns_as_asked_for_and_room_for_captions() -> None:
    rows = [make_row(n, image=make_image(n, (256, 256)), text="a photo") for n in range(6)]
    wide, narrow = samples_grid(rows, columns=3), samples_grid(rows, columns=2)
    assert wide.width > narrow.width
    assert wide.height < narrow.height
    long = [make_row(n, image=make_image(n, (256, 256)), text="a photo " * 20) for n in range(6)]
    assert samples_grid(long, columns=3).height > wide.height


@pytest.mark.parametrize(
    "text", ["", "w" * 500, "very " * 300, "\u8336\u58f6 \U0001fad6 t\u00e9", "a\nb\tc"]
)
def test_any_caption_stays_within_its_tile(text: str) -> None:
    row = make_row(0, image=plain("white", (256, 256)), text=text)
    grid = samples_grid([row])
    assert grid.width == 256 + 32
    assert grid.height < 450
    margin = np.asarray(grid)[:, -14:]
    assert (margin == 255).all()


def test_the_file_is_a_webp_of_the_same_bytes_each_time_blank_without_rows() -> None:
    grids = [as_webp(samples_grid(make_rows(*range(5)))) for _ in range(2)]
    assert grids[0] == grids[1]
    with Image.open(io.BytesIO(grids[0])) as opened:
        assert opened.format == "WEBP"
    assert (np.asarray(samples_grid([])) == 255).all()
