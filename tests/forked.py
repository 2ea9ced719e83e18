"""Runs `regforge` as a process of its own, forked from one that has imported what is heavy.

    session = Forked("run", "recipe.yaml", "--out", "made")
    session.send_signal(signal.SIGKILL)
    assert session.wait() == -signal.SIGKILL

It is killed and interrupted as any other, and at work in a tenth of a second instead of six. What
libraries read from the environment while they are imported is as it was when the first one started.
"""

import gc
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import regforge

HERE = Path(regforge.__file__).parent
LIBRARIES = [
    *("datasets", "imagehash", "litellm", "matplotlib.pyplot", "peft", "scipy.fftpack"),
    "diffusers.pipelines.auto_pipeline",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.models.auto.processing_auto",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "transformers.models.convnext.modeling_convnext",
    "transformers.models.resnet.modeling_resnet",
    "transformers.models.vision_text_dual_encoder.modeling_vision_text_dual_encoder",
    *(
        ".".join(path.relative_to(HERE.parent).with_suffix("").parts)
        for path in sorted(HERE.rglob("*.py"))
        if not path.stem.startswith("__")
    ),
]


class Forked:
    """A command at work, much like a `subprocess.Popen`.

    Args:
        words: What is typed after `regforge`.
        first: Called in the process before the command.
    """

    def __init__(self, *words: object, first: Callable[[], object] | None = None) -> None:
        # For what it is forked from: more threads would wait for one another, and not outlive it.
        os.environ["OMP_NUM_THREADS"] = "1"
        self._files = [tempfile.NamedTemporaryFile(prefix="said-") for _ in "oe"]  # noqa: SIM115
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LIBRARIES)
        files = [each.name for each in self._files]
        arguments = [*map(str, words)], Path.cwd(), dict(os.environ), files, first
        self._process = context.Process(target=_command, args=arguments)
        self._process.start()

    @property
    def out(self) -> str:
        """What it has printed."""
        return Path(self._files[0].name).read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        """What it has told beside that."""
        return Path(self._files[1].name).read_text(encoding="utf-8")

    def poll(self) -> int | None:
        """The exit code; None as long as there is none."""
        return self._process.exitcode

    @property
    def pid(self) -> int:
        """The number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def send_signal(self, number: int) -> None:
        """Send the process a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 300) -> int:
        """The exit code, negative if a signal ended it."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise AssertionError(f"it hangs; it said: {self.out}{self.err}")
        return self._process.exitcode


TORCHRUN, MPI = ("", "WORLD_SIZE"), ("OMPI_COMM_WORLD_", "OMPI_COMM_WORLD_SIZE")


def side_by_side(*words: object, launcher: tuple[str, str] = TORCHRUN) -> list[Forked]:
    """The same command twice, told of each other in a launcher's variables."""
    prefix, count = launcher
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {count: "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    if launcher == MPI:
        shared["ACCELERATE_USE_CPU"] = "True"
    ranks = [{f"{prefix}RANK": rank, f"{prefix}LOCAL_RANK": rank} for rank in "01"]
    return [Forked(*words, first=partial(_told, shared | each)) for each in ranks]


def _told(variables: dict[str, str]) -> None:
    os.environ.update(variables)


def _command(
    words: list[str],
    folder: Path,
    environment: dict[str, str],
    files: list[str],
    first: Callable[[], object] | None,
) -> None:
    gc.freeze()  # what was there before the fork is never garbage
    gc.set_threshold(50_000)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["regforge", *words]
    if first is not None:
        first()
    from regforge import cli

    cli.main()
