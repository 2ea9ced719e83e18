"""Who is told how many train together."""

import pytest
import torch

from regforge.training import TrainingSetup, processes
from regforge.training.processes import start_processes

NAMES = [name for names in (processes._COUNT, processes._INDEX) for name in names]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "LOCAL_RANK", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("count", "index"), [("WORLD_SIZE", "RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")]
)
def test_launchers_in_their_words(monkeypatch: pytest.MonkeyPatch, count: str, index: str) -> None:
    assert processes.launched() == 1
    assert processes.is_first_process()
    monkeypatch.setenv(count, "2")
    monkeypatch.setenv(index, "1")
    assert processes.launched() == 2
    assert not processes.is_first_process()
    monkeypatch.setenv(index, "0")
    assert processes.is_first_process()


def test_the_launcher_may_say_that_it_is_to_be_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_processes(torch.device("cuda")).device is None
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert start_processes(torch.device("cuda")).device == torch.device("cpu")


def test_processes_that_cannot_talk_train_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("they could")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingSetup, match="2 processes were started, and accelerate joins 1"):
        start_processes(torch.device("cuda"))
