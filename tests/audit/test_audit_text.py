"""The table that is printed, the JSON, the verdict."""

import io
import json
import subprocess
import sys
from typing import Any

import pytest
from audit_samples import KNOWN, InMemory, audit, checked, closed, example

from regforge.auditing import Audit, Check, audit_dataset
from regforge.journal import Reporter

HOSTILE = "sks \x1b[31m\x07 \u202egnp.exe \ud83d </script><script>alert(1)</script>\n" + "x" * 300


def test_lines_are_short_and_aligned() -> None:
    rows = [closed(0, HOSTILE), *(closed(n, f"a red owl number {n}") for n in range(1, 9))]
    text = audit(rows, dataset={"name": "a/b" * 60}).as_text()
    assert max(map(len, text.splitlines())) <= 100
    table = [line for line in text.splitlines() if line[2:4] in ("ok", "lo", "BA", "? ")]
    assert len(table) == 16
    assert len({line.index(line[26:].strip()[0], 26) for line in table}) == 1
    assert "\x1b" not in text
    assert "\u202e" not in text
    text.encode()  # half a surrogate pair would stop here
    assert "\n\nNot fit for training as it is: " in text


def test_text_says_what_to_do_with_examples() -> None:
    rows = [closed(0), closed(1), closed(2, data={"image_digest": f"{1:064x}"})]
    text = audit(rows).as_text()
    done = text.partition("What to do")[2]
    assert "Keep one of each" in done
    assert "e.g. 001.png 002.png" in done


@pytest.mark.parametrize(
    ("grades", "grade", "verdict"),
    [
        (("good", "unknown"), "good", "fit for training"),
        (("good", "look"), "look", "usable; 1 thing worth a look: check 1"),
        (("look", "look"), "look", "usable; 2 things worth a look: check 0, check 1"),
        (("bad", "look", "bad"), "bad", "not fit for training as it is: check 0, check 2"),
    ],
)
def test_the_worst_grade_is_the_verdict(grades: Any, grade: str, verdict: str) -> None:
    checks = [Check(f"check {n}", each, "found") for n, each in enumerate(grades)]
    found = Audit("owls", 3, checks)
    assert (found.grade, found.verdict) == (grade, verdict)


def test_json_has_the_same_keys_whatever_was_found() -> None:
    hostile = [example(n, text) for n, text in enumerate(["an owl", HOSTILE] * 9)]
    few, many = audit([example(0)]).as_dict(), audit(hostile).as_dict()
    for found in (few, many):
        assert json.loads(json.dumps(found)) == found
        assert list(found) == [
            "dataset", "layout", "revision", "images", "grade", "verdict", "notes", "checks",
        ]  # fmt: skip
        for check in found["checks"]:
            assert list(check) == ["name", "grade", "finding", "advice", "numbers", "examples"]
    assert [c["name"] for c in few["checks"]] == [c["name"] for c in many["checks"]]


def test_an_empty_dataset_is_said_to_be_empty() -> None:
    found = audit([])
    assert found.images == 0
    assert "Nothing to audit." in found.as_text()
    assert found.as_dict()["checks"] == []


def test_hashes_that_are_stored_spare_opening_the_images() -> None:
    stored = InMemory([closed(n) for n in range(3)])
    audit_dataset(stored)
    assert stored.opened == 0
    foreign = InMemory([example(n) for n in range(3)])
    found = audit_dataset(foreign)
    assert foreign.opened == 3
    assert found.notes == ("was read to its end",)


@pytest.mark.slow
def test_an_audit_loads_no_exporter() -> None:
    code = "import sys, regforge.auditing; print([m for m in sys.modules if '.exporting' in m])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_progress_is_reported() -> None:
    said = io.StringIO()
    audit([example(n) for n in range(40)], reporter=Reporter(stream=said))
    assert "40 images" in said.getvalue()


def test_a_good_set_is_fit_for_training() -> None:
    """Everything known, everything different: no check has a word of blame."""
    colors, places = ("red", "blue", "green", "white"), ("on a beach", "in a cave", "in a forest")
    rows = [
        closed(
            n,
            f"a photo of a {colors[n % 4]} owl {places[n % 3]}, number {n}",
            class_noun="owl",
            slots={"color": colors[n % 4], "background": places[n % 3]},
            data=KNOWN | {"seed": n, "model": "embedded/nothing"},
        )
        for n in range(240)
    ]
    more = {"slots": ("color", "background"), "license": "mit"}
    found = audit(rows, dataset=more, identifier="sks")
    assert found.verdict == "fit for training", found.as_text()
    assert checked(found, "slot coverage").numbers["slots"]["color"]["evenness"] == 1
