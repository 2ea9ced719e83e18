"""`regforge doctor`: library versions, devices, embedded models and Hub settings of this machine.

Changes nothing, reaches no network, loads no weights, and never shows a secret.
"""

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import typer

from regforge.devices import pick_device
from regforge.embedded.language_model import INSTALL_COMMAND, LanguageModelMissing
from regforge.embedded.language_model.smollm import find_weights
from regforge.files import embedded_folder
from regforge.journal import printable
from regforge.version import __version__

State = Literal["ok", "absent", "problem"]

EXTRAS_THAT_MATTER = ("evaluation",)

_MARKS: dict[State, tuple[str, str]] = {
    "ok": ("ok", typer.colors.GREEN),
    "absent": ("--", typer.colors.YELLOW),
    "problem": ("!!", typer.colors.RED),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One finding, below its group's heading; `absent` is what the essentials do not need."""

    group: str
    name: str
    value: str
    state: State = "ok"
    hint: str | None = None


def examine() -> list[Check]:
    """Examine everything, in the order in which it is shown."""
    return [*_system(), *_libraries(), *_embedded_models(), *_hub()]


def is_healthy(checks: Sequence[Check]) -> bool:
    """Whether regforge can do its work here: nothing essential is missing."""
    return all(check.state != "problem" for check in checks)


def as_dict(checks: Sequence[Check]) -> dict[str, Any]:
    """The findings as plain data, for `--json`."""
    return {
        "regforge": __version__,
        "ok": is_healthy(checks),
        "checks": [asdict(check) for check in checks],
    }


def as_text(checks: Sequence[Check]) -> str:
    """The findings as a table for people, in colors."""
    width = max(len(check.name) for check in checks)
    lines = [f"regforge {__version__}"]
    for group, members in groupby(checks, key=lambda check: check.group):
        lines += ["", typer.style(group, bold=True)]
        for check in members:
            mark, color = _MARKS[check.state]
            found = f"{check.name:<{width}}  {printable(check.value)}"
            lines.append(f"  {typer.style(mark, fg=color)}  {found}")
            if check.hint:
                lines.append(f"      {'':<{width}}  -> {printable(check.hint)}")
    problems = [check.name for check in checks if check.state == "problem"]
    verdict = typer.style("All essentials are in place.", fg=typer.colors.GREEN)
    if problems:
        verdict = typer.style(f"To put right: {', '.join(problems)}.", fg=typer.colors.RED)
    return "\n".join([*lines, "", verdict])


def _system() -> Iterator[Check]:
    group = "System"
    yield Check(group, "python", f"{platform.python_version()} ({sys.executable})")
    yield Check(group, "platform", platform.platform(terse=True))
    yield Check(group, "processor cores", str(os.cpu_count() or "unknown"))
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        yield Check(group, "torch device", f"torch cannot be imported: {error}", "problem")
        return
    device = pick_device(None)
    described, bfloat16 = device.type, "works"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory / 2**30
        described = f"cuda: {torch.cuda.device_count()} x {properties.name}, {memory:.0f} GiB"
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        bfloat16 = "native" if native else "emulated (float16 is faster here)"
    else:
        if device.type == "cpu":
            capability = torch.backends.cpu.get_cpu_capability()
            described = f"cpu ({capability}, {torch.get_num_threads()} threads)"
        try:
            ones = torch.ones(2, 2, dtype=torch.bfloat16, device=device)
            torch.mm(ones, ones)
        except (RuntimeError, TypeError):
            bfloat16 = "not supported"
    yield Check(group, "torch device", described)
    yield Check(group, "bfloat16", bfloat16)


def _libraries() -> Iterator[Check]:
    # Those that regforge's own metadata asks for, so that there is no second list.
    from packaging.requirements import Requirement

    group = "Libraries"
    try:
        wanted = [Requirement(line) for line in metadata.requires("regforge") or []]
    except metadata.PackageNotFoundError:
        hint = "pip install -e . in the checkout"
        yield Check(group, "regforge", "not installed, only importable", "problem", hint)
        return
    for requirement in wanted:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            fix = f'pip install "{requirement.name}{requirement.specifier}"'
            yield _library(requirement.name, str(requirement.specifier), "problem", fix)
            continue
        for extra in EXTRAS_THAT_MATTER:
            if requirement.marker.evaluate({"extra": extra}):
                fix = f'optional: pip install "regforge[{extra}]"'
                yield _library(requirement.name, str(requirement.specifier), "absent", fix)


def _library(name: str, versions: str, if_missing: State, fix: str) -> Check:
    from packaging.specifiers import SpecifierSet

    group = "Libraries"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(group, name, "not installed", if_missing, fix)
    # Local parts such as +cu126 name a build, not another version; prereleases are the user's call.
    if SpecifierSet(versions).contains(version, prereleases=True):
        return Check(group, name, version)
    return Check(group, name, f"{version} (regforge asks for {versions})", "problem", fix)


def _embedded_models() -> Iterator[Check]:
    group = "Embedded models"
    reinstall = "it is part of the package: install regforge again"
    for name, marker, title in (
        ("tinyworld", "model_index.json", "diffusion pipeline"),
        ("judge", "*/model.safetensors", "judge"),
    ):
        folder = embedded_folder(name)
        if any(folder.glob(marker)):
            yield Check(group, title, f"{name}, {_megabytes(folder)}")
        else:
            yield Check(group, title, f"{name} is missing", "problem", reinstall)
    try:
        size = _megabytes(find_weights().parent)
        yield Check(group, "language model", f"SmolLM2-135M, {size}")
    except LanguageModelMissing:
        hint = f"optional: {INSTALL_COMMAND}"
        yield Check(group, "language model", "weights not installed", "absent", hint)


def _megabytes(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{size / 1e6:.0f} MB"


def _hub() -> Iterator[Check]:
    group = "Hugging Face Hub"
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint:  # without a user name and password, which mirrors behind a login carry
        host = urlsplit(endpoint).netloc
        endpoint = endpoint.replace(host, host.rpartition("@")[2], 1)
    yield Check(group, "endpoint", endpoint or "the default")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    yield Check(group, "offline mode", "on (HF_HUB_OFFLINE)" if offline else "off")
    try:
        from huggingface_hub import get_token
    except ImportError:  # already a problem among the libraries
        return
    if get_token():
        yield Check(group, "token", "yes")
    else:
        hint = "optional, for gated models and publishing: hf auth login"
        yield Check(group, "token", "no", "absent", hint)
