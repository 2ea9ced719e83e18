"""What is to be measured on a GPU runs from end to end, with tiny models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def measured(repo: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(repo / "benchmarks" / "gpu.sh"), *arguments],
        env=os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_all_rows_are_measured_beside_the_loops_of_others(repo: Path, tmp_path: Path) -> None:
    ran = measured(repo, "--dry-run", "--parts", "sd15,sdxl,flux", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    counts = dict.fromkeys((row["part"] for row in rows), 0)
    for row in rows:
        counts[row["part"]] += 1
        assert row["rate"] > 0
        assert f"| {row['part']} | {row['row']} | " in (tmp_path / "results.md").read_text()
    assert counts == {
        "sd15 images": 7,
        "sd15 training steps": 3,
        "sdxl images": 7,
        "sdxl training steps": 3,
        "flux images": 6,
        "flux training steps": 2,
    }


@pytest.mark.slow
def test_a_row_that_fails_is_written_down_and_told(repo: Path, tmp_path: Path) -> None:
    ran = measured(repo, "--dry-run", "--parts", "flux", "--minutes", "0", "--out", str(tmp_path))
    assert ran.returncode == 1
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert len(rows) == 8
    assert all("the time was over" in row["failed"] for row in rows)
