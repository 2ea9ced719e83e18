"""What commands print on: poor consoles, full disks, readers that leave, no console at all."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from shell import Shell

from regforge import cli

CAPTIONS = ["a чёрный teapot", "a 赤い teapot", "a crème teapot ☃"]

RECIPE = """\
name: tea
subject: {class_noun: teapot, identifier: null}
prompts:
  count: 4
  template: caption.j2
  slots: [{name: color, values: [чёрный, 赤い, crème, brûlé]}]
  sets: {amplify: 1}
render: {model: nobody/nothing}  # whose tokenizer takes no time to load
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with a recipe and a dataset whose captions have characters from everywhere."""
    from forge.small_runs import write_captioned

    write_captioned(tmp_path / "set", CAPTIONS)
    (tmp_path / "tea.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "caption.j2").write_text("☃ {{ color }} {{ class_noun }}", encoding="utf-8")
    return tmp_path


COMMANDS = {
    "check": ["check", "tea.yaml"],
    "prompts": ["prompts", "tea.yaml", "--fresh"],
    "export": "export set --to kohya --family sdxl --out crème-красный --class-noun teapot".split(),
    "audit": ["audit", "set", "--class-noun", "чайник"],
    "init": ["init", "a crème чайник ☃.yaml", "--force"],
}


def printed(monkeypatch: pytest.MonkeyPatch, encoding: str, *words: str) -> tuple[int, bytes]:
    """Runs a command whose console has an encoding; returns its code and what it printed."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for _ in "oe")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(sys, "argv", ["regforge", *words])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    monkeypatch.undo()
    assert isinstance(out.buffer, io.BytesIO)
    return int(leaving.value.code or 0), out.buffer.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("encoding", ["cp1252", "cp932", "ascii"])
def test_a_console_that_lacks_characters(
    monkeypatch: pytest.MonkeyPatch, written: Path, encoding: str, command: str
) -> None:
    monkeypatch.chdir(written)
    code, told = printed(monkeypatch, encoding, *COMMANDS[command])
    assert code == 0
    assert "?" in told.decode(encoding)


@pytest.mark.parametrize("command", ["check", "prompts", "audit", "export"])
@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-16"])
def test_json_is_json_and_whole_on_every_console(
    monkeypatch: pytest.MonkeyPatch, written: Path, encoding: str, command: str
) -> None:
    monkeypatch.chdir(written)
    code, told = printed(monkeypatch, encoding, *COMMANDS[command], "--json")
    assert code == 0
    found = json.loads(told.decode(encoding))
    if command == "check":
        assert len(found["captions"]) == 4
        assert all("☃" in caption for caption in found["captions"])


def test_a_terminal_gets_no_commands_from_a_recipe(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a.j2").write_text("\x1b]0;owned\x07{{ class_noun | a }} \x9b2J", encoding="utf-8")
    recipe = "name: a\nsubject: {class_noun: teapot}\nprompts: {count: 1, slots: [], template: a.j2"
    (tmp_path / "a.yaml").write_text(recipe + ", sets: {amplify: 1}}\n")
    assert shell("check", "a.yaml") == 0, shell.err
    assert "\\u001b]0;owned" in shell.out
    assert not {"\x1b", "\x07", "\x9b"} & {*shell.out}


def in_a_shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash, in which `regforge` is this one."""
    line = f'regforge() {{ "{sys.executable}" -m regforge "$@"; }}; set -o pipefail; {command}'
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("regforge schema > /dev/full", 1, "error: The result could not be printed: No space"),
        ("regforge --help > /dev/full", 1, "error: The result could not be printed: No space"),
        ("regforge schema | head -1", 0, ""),
        ("regforge schema >&-", 0, ""),
        ("regforge schema 2>&- | tail -1", 0, ""),
        ("regforge schema <&- >&- 2>&-", 0, ""),
        ("regforge check absent.yaml 2>&-", 2, ""),
        ("regforge check absent.yaml 2> /dev/full", 2, ""),
        ("regforge check absent.yaml 2>&1 | true", 2, ""),
        ("regforge frobnicate 2> /dev/full", 2, ""),
        ("regforge frobnicate >&- 2>&-", 2, ""),
    ],
)
def test_nobody_who_listens(command: str, code: int, said: str, tmp_path: Path) -> None:
    done = in_a_shell(command, tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2> >(true)"])
def test_work_is_not_in_vain_where_progress_cannot_be_told(redirection: str, written: Path) -> None:
    done = in_a_shell(f"regforge prompts tea.yaml {redirection}", written)
    assert done.returncode == 0, done.stdout
    assert "4 captions in" in done.stdout
    assert len((written / "runs/tea/prompts.jsonl").read_text("utf-8").splitlines()) == 4


def test_a_closed_stderr_is_no_file_of_ours(tmp_path: Path) -> None:
    """Descriptor 2 would be the next file's, and what C libraries complain about would be in it."""
    (tmp_path / "opening.py").write_text(
        "import regforge.cli as c, regforge.doctor as d\n"
        "d.examine = lambda: [print(open('new', 'w').fileno())][:0]\n"
        "c.main()\n"
    )
    done = in_a_shell(f'"{sys.executable}" opening.py doctor 2>&-', tmp_path)
    assert int(done.stdout.split()[0]) > 2


@pytest.mark.parametrize("command", ["check", "audit"])
def test_ctrl_c_exits_with_130(
    command: str, monkeypatch: pytest.MonkeyPatch, shell: Shell, written: Path
) -> None:
    import regforge.auditing
    import regforge.forge.plan

    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(regforge.forge.plan, "make_plan", interrupted)
    monkeypatch.setattr(regforge.auditing, "audit_dataset", interrupted)
    assert shell(*COMMANDS[command]) == 130
    assert "Interrupted" in shell.err
    assert "Traceback" not in shell.err
