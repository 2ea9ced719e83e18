"""The layering that docs/architecture.md promises, checked on the source itself.

Reads every module with `ast` and never imports one, so that it sees lazy imports too, and so that
it works on the small broken packages with which the checker itself is tested below.
"""

import ast
import builtins
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal

import pytest

PACKAGE = "regforge"

# From the roof to the ground. A module imports from its own floor or from one further down.
FLOORS = (
    ("",),  # regforge/__init__.py: what a Python user sees, imported when first used
    ("__main__",),
    ("cli",),
    ("api",),
    ("publishing",),
    ("doctor", "forge", "training", "evaluation", "exporting", "auditing", "reviewing"),
    ("prompts", "images", "dataset"),
    ("providers",),
    ("runs",),
    ("recipe", "records", "embedded", "journal", "files", "hub", "devices", "display"),
    ("image_files",),
    ("words",),
    ("errors", "version"),
)
FLOOR_OF = {part: number for number, floor in enumerate(FLOORS) for part in floor}
STAGES = frozenset({"prompts", "images", "dataset"})

# A second or more to import each; `regforge --help` must not pay for them.
HEAVY = frozenset(
    {"accelerate", "cv2", "datasets", "diffusers", "gguf", "litellm"}
    | {"matplotlib", "pandas", "peft", "pyarrow", "ray", "torch", "transformers"}
)

# Modules that are about tensors from their first line cannot do without torch at the top. They
# count as heavy libraries themselves: only one another may import them at the top, everybody else
# inside functions.
TENSOR_MODULES = frozenset(
    f"{PACKAGE}.{name}"
    for name in (
        "training.checkpoints",
        "training.families.base",
        "training.families.flow",
        "training.families.stable_diffusion",
        "training.loop",
        "training.tokens",
        "training.weights",
    )
)

When = Literal["import time", "later", "type checking"]


@dataclass(frozen=True)
class Import:
    """One import statement's target, as an absolute dotted name, and when it runs."""

    target: str
    line: int
    when: When


def modules_of(package: Path) -> dict[str, Path]:
    """Dotted name -> file, for every module below the package's folder."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def imports_of(module: str, modules: dict[str, Path]) -> list[Import]:
    path = modules[module]
    holder = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = parsed(path.read_text(encoding="utf-8"))
    return [
        Import(target, node.lineno, when)
        for node, when in _import_nodes(tree, "import time")
        for target in _targets(node, holder, modules)
    ]


def _import_nodes(node: ast.AST, when: When) -> Iterator[tuple[ast.Import | ast.ImportFrom, When]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, when
    elif isinstance(node, ast.If) and _asks_for_type_checking(node.test):
        for child in node.body:
            yield from _import_nodes(child, "type checking")
        for child in node.orelse:
            yield from _import_nodes(child, when)
    else:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and when == "import time":
            when = "later"
        for child in ast.iter_child_nodes(node):
            yield from _import_nodes(child, when)


def _asks_for_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


def _targets(
    node: ast.Import | ast.ImportFrom, holder: str, modules: dict[str, Path]
) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parts = holder.split(".")
        base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
    for alias in node.names:
        submodule = f"{base}.{alias.name}"
        yield submodule if submodule in modules else base


def part_of(module: str) -> str:
    """The part of the package that a module belongs to: its first name below `regforge`."""
    return module.removeprefix(PACKAGE).lstrip(".").partition(".")[0]


def problems_in(package: Path, tensor_modules: frozenset[str] = frozenset()) -> list[str]:
    """Everything in the package that breaks the layering, a line each."""
    modules = modules_of(package)
    graph = {name: imports_of(name, modules) for name in sorted(modules)}
    unknown = sorted({part_of(name) for name in graph} - FLOOR_OF.keys())
    if unknown:
        return [f"{part}: has no floor; give it one here and in the docs" for part in unknown]
    return [
        *_broken_floors(graph),
        *_cycles(graph),
        *_heavy_imports(graph, tensor_modules),
    ]


def _ours(imports: list[Import]) -> Iterator[Import]:
    return (each for each in imports if each.target.partition(".")[0] == PACKAGE)


def _broken_floors(graph: dict[str, list[Import]]) -> Iterator[str]:
    for module, imports in graph.items():
        here = part_of(module)
        for each in _ours(imports):
            there = part_of(each.target)
            place = f"{module}:{each.line}"
            if there not in FLOOR_OF:
                yield f"{place}: imports {each.target}, which does not exist"
            elif FLOOR_OF[there] < FLOOR_OF[here]:
                yield f"{place}: imports {each.target} from a floor above"
            elif here != there and {here, there} <= STAGES:
                yield f"{place}: imports {each.target}, another stage"


def _cycles(graph: dict[str, list[Import]]) -> Iterator[str]:
    """Cycles between parts and between modules, however lazy the import, typing included."""
    parts: dict[str, set[str]] = {part_of(module): set() for module in graph}
    modules: dict[str, set[str]] = {}
    for module, imports in graph.items():
        ours = list(_ours(imports))
        parts[part_of(module)] |= {part_of(each.target) for each in ours} - {part_of(module)}
        modules[module] = {each.target for each in ours} - {module}
    for dependencies in (parts, modules):
        try:
            TopologicalSorter(dependencies).prepare()
        except CycleError as error:
            yield f"cycle: {' <- '.join(error.args[1])}"


def _heavy_imports(graph: dict[str, list[Import]], tensor_modules: frozenset[str]) -> Iterator[str]:
    for module, imports in graph.items():
        if module in tensor_modules:
            continue
        for each in imports:
            heavy = each.target.partition(".")[0] in HEAVY or each.target in tensor_modules
            if heavy and each.when == "import time":
                yield f"{module}:{each.line}: imports {each.target} at its top; do it where used"
    yield from (
        f"{name}: listed as a tensor module, but not there"
        for name in tensor_modules - graph.keys()
    )


def test_regforge_keeps_its_layering(repo: Path) -> None:
    assert problems_in(repo / PACKAGE, TENSOR_MODULES) == []


def test_docs_name_files_that_are_there(repo: Path) -> None:
    text = (repo / "docs" / "architecture.md").read_text(encoding="utf-8")
    walks = text[text.index("## Three walks") : text.index("## Embedded models")]
    named = set(re.findall(r"`([a-z_/]+\.py)`", walks)) - {"benchmarks/routes.py"}
    tables = re.findall(r"^\| `(\w+)` \|[^|]*\| (`.*) \|$", text, re.MULTILINE)
    for part, order in tables:
        if (repo / PACKAGE / part).is_dir():
            named |= {f"{part}/{name}.py" for name in re.findall(r"`([a-z_/]+[a-z_])`", order)}
    assert len(named) > 60
    assert {name for name in named if not (repo / PACKAGE / name).is_file()} == set()


def bare_errors_in(package: Path) -> list[str]:
    """Exception classes of ours that the command line would show as a traceback."""
    builtin = {name for name in dir(builtins) if name.endswith(("Error", "Exception", "Warning"))}
    return [
        f"{path.relative_to(package)}:{node.lineno}: {node.name} is no RegforgeError"
        for path in sorted(package.rglob("*.py"))
        for node in ast.walk(parsed(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and node.name != "RegforgeError" and node.bases
        if {base.id for base in node.bases if isinstance(base, ast.Name)} <= builtin
        and any(isinstance(base, ast.Name) for base in node.bases)
    ]


def test_benchmarks_and_examples_import_what_is_there(repo: Path) -> None:
    """Nobody runs most of them for weeks."""
    modules = modules_of(repo / PACKAGE)
    missing = []
    for path in [*repo.glob("benchmarks/*.py"), *repo.glob("examples/*/*.py")]:
        for node, _ in _import_nodes(parsed(path.read_text(encoding="utf-8")), "import time"):
            home = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if home == PACKAGE or not home.startswith(f"{PACKAGE}."):
                continue
            source = modules[home].read_text(encoding="utf-8") if home in modules else ""
            missing += [
                f"{path.name}:{node.lineno}: {home}.{alias.name}"
                for alias in node.names
                if f"{home}.{alias.name}" not in modules
                and not re.search(rf"\b{alias.name}\b", source)
            ]
    assert missing == []


def test_our_errors_are_regforge_errors(repo: Path) -> None:
    assert bare_errors_in(repo / PACKAGE) == []


def test_docs_and_checker_name_the_same_parts(repo: Path) -> None:
    text = (repo / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [part for part in FLOOR_OF if part and f"`{part}`" not in text]
    assert missing == []


# The checker must be worth its word: each planted violation is found, and alone.

CLEAN = {
    "__init__.py": "",
    "cli.py": "def run():\n    from regforge import forge\n",
    "forge.py": "from regforge.version import V\nfrom regforge.prompts import sampling\n",
    "prompts/__init__.py": "",
    "prompts/sampling.py": "from ..errors import Oops\nfrom . import phrases\n",
    "prompts/phrases.py": "def load():\n    import torch\n",
    "images/__init__.py": (
        "import typing\nif typing.TYPE_CHECKING:\n    import torch\nelse:\n    import json\n"
    ),
    "version.py": "V = 1\n",
    "errors.py": "class RegforgeError(Exception): ...\nclass Oops(RegforgeError, OSError): ...\n",
}


def plant(folder: Path, **files: str) -> Path:
    package = folder / PACKAGE
    for name, text in (CLEAN | files).items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


def test_checker_accepts_a_clean_package(tmp_path: Path) -> None:
    assert problems_in(plant(tmp_path)) == []
    assert bare_errors_in(plant(tmp_path)) == []


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("errors.py", "from regforge import cli", "errors:1: imports regforge.cli from a floor"),
        ("errors.py", "def f():\n    import regforge.forge", "errors:2: imports regforge.forge"),
        (
            "prompts/phrases.py",
            "from ..forge import x",
            "prompts.phrases:1: imports regforge.forge",
        ),
        ("errors.py", "from regforge import anything", "errors:1: imports regforge from a floor"),
        ("images/__init__.py", "from regforge import prompts", "regforge.prompts, another stage"),
        ("images/__init__.py", "import regforge.dataset.store", "another stage"),
        ("prompts/phrases.py", "def f():\n    from . import sampling", "cycle: regforge.prompts."),
        ("training.py", "import regforge.nowhere", "which does not exist"),
        ("muddle.py", "", "muddle: has no floor"),
        ("errors.py", "import torch", "errors:1: imports torch at its top"),
        ("errors.py", "try:\n    from torch.nn import Module\nexcept ImportError: ...", "errors:2"),
        ("errors.py", "class A:\n    import cv2", "errors:2: imports cv2 at its top"),
        (
            "errors.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import regforge.cli",
            "errors:3: imports regforge.cli from a floor above",
        ),
    ],
)
def test_checker_finds_a_planted_violation(
    tmp_path: Path, file: str, text: str, complaint: str
) -> None:
    problems = problems_in(plant(tmp_path, **{file: text + "\n"}))
    # An import from above closes a cycle as well; that may be said too, and nothing else.
    found = [problem for problem in problems if not problem.startswith("cycle")] or problems
    assert len(found) == 1, problems
    assert complaint in found[0]


def test_checker_finds_a_cycle_on_one_floor(tmp_path: Path) -> None:
    package = plant(
        tmp_path,
        **{
            "training.py": "def f():\n    from regforge import evaluation\n",
            "evaluation.py": "from regforge import training\n",
        },
    )
    problems = problems_in(package)
    # Between the parts (the lazy import counts there too), and between the two modules.
    assert len(problems) == 2, problems
    assert all(p.startswith("cycle: ") and "training" in p for p in problems)


def test_checker_lets_tensor_modules_have_torch_and_treats_them_as_heavy(tmp_path: Path) -> None:
    package = plant(
        tmp_path,
        **{
            "embedded/__init__.py": "",
            "embedded/network.py": "import torch\n",
            "embedded/model.py": "def f():\n    from regforge.embedded import network\n",
            "training.py": "from regforge.embedded.network import Network\n",
        },
    )
    problems = problems_in(package, frozenset({"regforge.embedded.network", "regforge.gone"}))
    assert sorted(problems) == [
        "regforge.gone: listed as a tensor module, but not there",
        "regforge.training:1: imports regforge.embedded.network at its top; do it where used",
    ]


def test_checker_finds_an_error_that_would_be_a_traceback(tmp_path: Path) -> None:
    package = plant(tmp_path, **{"forge.py": "class Boom(ValueError): ...\nclass Fine: ...\n"})
    assert bare_errors_in(package) == ["forge.py:1: Boom is no RegforgeError"]
