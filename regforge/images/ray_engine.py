"""Draws on every GPU of a machine or a Ray cluster: batches go out, image files come back.

Workers hold renderers like the one of a plain run, and get the same batches as it would draw. What
is asked for goes first, what is expected keeps all workers busy meanwhile. Nothing that a worker
does is final: the driver writes, judges and stores, and gives the batches of a worker that died to
others.
"""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from regforge.errors import RegforgeError
from regforge.images.ray_cluster import ClusterError, await_head, connect, shares
from regforge.images.renderer import (
    EncodedImage,
    ModelIdentity,
    RenderedImage,
    Renderer,
    RenderError,
    batches,
)
from regforge.journal import Journal, Reporter
from regforge.recipe.rendering import Render
from regforge.records import ImageJob
from regforge.version import __version__
from regforge.words import counted, first_line, listed

_DEEP = 3
"""Batches that a worker has at a time: it draws one, encodes another, and has the next one."""
_AHEAD = 8
"""Batches for each worker that are spoken of early: as long as a shard is judged, and drawn again
what was refused, they are drawn."""
_MOST_DEATHS = 5
"""Workers that may die of one batch, or while they load the model."""
_PATIENCE = 10.0
"""Seconds without an answer until it is looked into why. After 60 without the head of its cluster,
Ray ends the process."""
_PACKAGES = ("torch", "diffusers", "transformers", "pillow")
"""Those that decide about the bytes of images."""

Opener = Callable[..., Renderer]
"""Opens a renderer, as `images.open_renderer` does."""


@dataclass(frozen=True)
class _Loaded:
    """What a worker says of itself once its model is loaded."""

    identity: ModelIdentity
    batch_size: int
    device: str
    versions: dict[str, str]


@dataclass(frozen=True)
class _Drawn:
    """A batch, and the batch size that memory suffices for."""

    images: list[RenderedImage | EncodedImage]
    batch_size: int


@dataclass(frozen=True)
class _Answer:
    """What a worker sends: an error is one that people can put right.

    `lines` is what it would have said, `events` what it would have logged.
    """

    result: _Loaded | _Drawn | RegforgeError
    lines: list[str]
    events: list[tuple[str, dict[str, Any]]]


class _Notes(Journal):
    """The log of a worker, until it is sent."""

    def __init__(self) -> None:
        super().__init__(None)
        self.taken: list[tuple[str, dict[str, Any]]] = []

    def event(self, event: str, **fields: Any) -> None:
        self.taken.append((event, fields))


class _Drawer:
    """What a worker runs; its methods run in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said, self._journal = io.StringIO(), _Notes()
        self._renderer: Renderer | None = None

    def load(self, opener: Opener, render: Render, batch_size: int | None) -> _Answer:
        """Load the model."""

        def work() -> _Loaded:
            reporter = Reporter(stream=self._said)
            self._renderer = opener(
                render, journal=self._journal, reporter=reporter, batch_size=batch_size
            )
            torch = sys.modules.get("torch")  # who has not loaded it draws with something else
            gpu = torch is not None and torch.cuda.is_available() and render.device != "cpu"
            return _Loaded(
                self._renderer.identity,
                self._renderer.batch_size,
                torch.cuda.get_device_name() if torch and gpu else "CPU",
                _versions(),
            )

        return self._answer(work)

    def draw(self, jobs: Sequence[ImageJob], render: Render, batch_size: int) -> _Answer:
        """Draw a batch and encode it, while another thread draws the next one."""
        from regforge.images.staging import encoded

        assert self._renderer is not None
        renderer = self._renderer

        def work() -> _Drawn:
            renderer.batch_size = batch_size
            return _Drawn(list(renderer.render(jobs)), renderer.batch_size)

        answer = self._answer(work)
        if isinstance(answer.result, _Drawn):
            images = answer.result.images
            images[:] = [encoded(image, render, renderer.identity) for image in images]
        return answer

    def _answer(self, work: Callable[[], _Loaded | _Drawn]) -> _Answer:
        with self._lock:
            result: _Loaded | _Drawn | RegforgeError
            try:
                result = work()
            except RegforgeError as error:
                result = error
            answer = _Answer(result, self._said.getvalue().splitlines(), self._journal.taken)
            self._said.seek(0)
            self._said.truncate()
            self._journal.taken = []
        return answer


def _versions() -> dict[str, str]:
    return {"regforge": __version__, **{name: metadata.version(name) for name in _PACKAGES}}


@dataclass(eq=False)
class _Worker:
    name: str
    """Its successor's too."""
    actor: Any
    ready: bool = False


_Batch = list[ImageJob]


class RayRenderer(Renderer):
    """A `Renderer` whose batches are drawn by the workers of a Ray cluster, as `EncodedImage`s.

    Uses the cluster that this process is connected to already, else the one at RAY_ADDRESS, else it
    starts one on this machine. All workers have loaded the model when it is made.

    Args:
        opener: What each worker opens its renderer with.
        workers: How many; one for each GPU, or for each machine if there is none, if left out. More
            than there are GPUs share them.

    Raises:
        ClusterError: There is no cluster, or workers cannot live on it.
        RegforgeError: What a worker says that it cannot load.
    """

    def __init__(
        self,
        render: Render,
        *,
        journal: Journal,
        reporter: Reporter,
        batch_size: int | None = None,
        opener: Opener,
        workers: int | None = None,
    ) -> None:
        import ray

        self._ray: Any = ray
        self._render, self._wished = render, (opener, render, batch_size)
        self._journal, self._reporter = journal, reporter
        self._urgent, self._expected = deque[_Batch](), deque[_Batch]()
        self._running: dict[Any, tuple[_Worker, _Batch]] = {}  # loading is a batch of nothing
        self._deaths = Counter[str]()
        self._said = set[str]()
        self._workers: list[_Worker] = []
        self._loaded: list[_Loaded] = []
        self._seen, self._gone = time.monotonic(), False  # the head of the cluster
        self._ours = not ray.is_initialized()
        if self._ours:
            connect()
        try:
            workers, self._options = shares(workers, gpus=render.device != "cpu")
            journal.event("workers", count=workers, **self._options)
            self._workers = [self._start(f"worker {n}") for n in range(workers)]
            while not all(worker.ready for worker in self._workers):
                self._next()
        except BaseException:
            self.close()
            raise
        self.identity = self._loaded[0].identity
        self.batch_size = min(each.batch_size for each in self._loaded)
        self.ahead = _AHEAD * workers * self.batch_size
        devices = Counter(each.device for each in self._loaded)
        on = listed([f"{count} x {name}" for name, count in devices.items()])
        reporter.say(f"Drawing with {counted(workers, 'worker')} of Ray ({on})")

    def expect(self, jobs: Sequence[ImageJob]) -> None:
        """See `Renderer.expect`."""
        self._expected += batches(jobs, self.batch_size, self.identity)

    def render(self, jobs: Sequence[ImageJob]) -> Iterator[RenderedImage | EncodedImage]:
        """See `Renderer.render`."""
        left = {_key(job) for job in jobs}
        asked = frozenset(left)
        self._expected = deque(b for b in self._expected if _key(b[0]) not in asked)
        coming = {_key(job) for b in (*self._urgent, *self._batches()) for job in b}
        self._urgent += (
            batch
            for batch in batches(jobs, self.batch_size, self.identity)
            if not coming.issuperset(map(_key, batch))
        )
        while left:
            self._hand_out()
            for image in self._next():
                key = _key(image.job)
                if key in left or key not in asked:  # after a change of batch size, some come twice
                    left.discard(key)
                    yield image

    def close(self) -> None:
        """Send the workers home, and stop Ray if it was started here."""
        if self._gone:
            return
        for worker in self._workers:
            self._ray.kill(worker.actor)
        if self._ours:
            self._ray.shutdown()

    # ----------------------------------------------------------------------------------- workers

    def _start(self, name: str) -> _Worker:
        """Start a worker, which loads the model; Ray gives it as many threads as it has CPUs."""
        options = {**self._options, "max_concurrency": _DEEP, "max_restarts": 0}
        worker = _Worker(name, self._ray.remote(_Drawer).options(**options).remote())
        self._running[worker.actor.load.remote(*self._wished)] = worker, []
        return worker

    def _batches(self) -> Iterator[_Batch]:
        return (batch for _, batch in self._running.values())

    def _hand_out(self) -> None:
        """Give each worker its fill: first one batch to each, then a second one to each.

        A batch of which a worker may have died is drawn by one that has nothing else to lose.
        """
        busy = Counter[_Worker]()
        for worker, batch in self._running.values():
            busy[worker] += self._weight(batch)
        for deep in range(1, _DEEP + 1):
            for worker in self._workers:
                queue = self._urgent or self._expected
                if not queue or not worker.ready:
                    continue
                weight = self._weight(queue[0])
                if busy[worker] < deep and busy[worker] + weight <= _DEEP:
                    busy[worker] += weight
                    batch = queue.popleft()
                    answer = worker.actor.draw.remote(batch, self._render, self.batch_size)
                    self._running[answer] = worker, batch

    def _weight(self, batch: _Batch) -> int:
        return _DEEP if batch and self._deaths[batch[0].id] else 1

    def _next(self) -> list[RenderedImage | EncodedImage]:
        """Wait until a worker answers; returns what it drew."""
        if time.monotonic() - self._seen > _PATIENCE:
            self._require_head()
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=_PATIENCE)
        if not done:
            self._say_who_is_missing()
            return []
        worker, batch = self._running[done[0]]
        try:
            answer: _Answer = self._ray.get(done[0])
        except self._ray.exceptions.RayError as error:
            if missing := re.search(r"No module named '[\w.]+'", str(error)):
                raise ClusterError(
                    f"A worker of Ray cannot draw: {missing[0]}.",
                    hint="Install regforge, in the same versions, on all machines of the cluster.",
                ) from error
            if isinstance(error, self._ray.exceptions.RayTaskError):
                raise  # a bug
            self._replace(worker, error)
            return []
        del self._running[done[0]]
        for line in answer.lines:
            self._say(line)
        for event, fields in answer.events:
            self._journal.event(event, **fields)
        if isinstance(answer.result, RegforgeError):
            raise answer.result
        if isinstance(answer.result, _Loaded):
            self._welcome(worker, answer.result)
            return []
        del self._deaths[batch[0].id]
        self._lower(answer.result.batch_size)
        return answer.result.images

    def _say(self, line: str) -> None:
        """Say what all workers say, once."""
        if line not in self._said:
            self._said.add(line)
            self._reporter.say(line)

    # ------------------------------------------------------------------------- when it goes wrong

    def _welcome(self, worker: _Worker, loaded: _Loaded) -> None:
        """Take in a worker that has loaded the model, if it will draw what the others draw."""
        self._loaded.append(loaded)
        first, here = self._loaded[0], _versions()
        other = [name for name in here if loaded.versions[name] != here[name]]
        if "regforge" in other or loaded.identity != first.identity:
            raise ClusterError(
                f"Workers differ: {loaded.device} has {loaded.identity.model} in "
                f"{loaded.identity.dtype} and regforge {loaded.versions['regforge']}; "
                f"{first.device} has {first.identity.dtype}, and this machine regforge "
                f"{here['regforge']}.",
                hint="Set render.dtype, and install the same on all machines.",
            )
        for name in other:
            self._say(
                f"A worker has {name} {loaded.versions[name]}, not {here[name]} as this machine: "
                "its images can differ in detail."
            )
        self._deaths.pop(worker.name, None)
        worker.ready = True

    def _lower(self, size: int) -> None:
        """Let all workers draw smaller batches once memory did not suffice for one of them."""
        if size >= self.batch_size:
            return
        self.batch_size = size
        for queue in (self._urgent, self._expected):
            whole = list(queue)
            queue.clear()
            queue += (b[at : at + size] for b in whole for at in range(0, len(b), size))

    def _replace(self, worker: _Worker, error: Exception) -> None:
        """Start a worker in place of one that died, and have its batches drawn again."""
        self._require_head()
        lost = [batch for each, batch in self._running.values() if each is worker and batch]
        self._running = {key: of for key, of in self._running.items() if of[0] is not worker}
        self._urgent.extendleft(reversed(lost))
        causes = [batch[0].id for batch in lost] or [worker.name]
        self._deaths.update(causes)
        reason = _why(error)
        self._journal.event("worker_died", reason=reason)
        cause = max(causes, key=self._deaths.__getitem__)
        if self._deaths[cause] >= _MOST_DEATHS:
            doing = f"drawing image {cause}" if lost else f"loading {self._render.model}"
            raise RenderError(
                f"{_MOST_DEATHS} workers of Ray died while {doing}: {reason}.",
                hint="If main memory does not suffice, take fewer --workers or a smaller "
                "render.batch_size. Nothing that was made is lost.",
            )
        self._reporter.say("A worker of Ray died; another one draws its images.")
        with suppress(Exception):
            self._ray.kill(worker.actor)
        self._workers[self._workers.index(worker)] = self._start(worker.name)

    def _require_head(self) -> None:
        """See that the head of the cluster answers: some time after it is gone, Ray ends us."""
        try:
            await_head(self._seen + 2 * _PATIENCE)
        except ClusterError:
            self._gone = True
            raise
        self._seen = time.monotonic()

    def _say_who_is_missing(self) -> None:
        if missing := sum(not worker.ready for worker in self._workers):
            self._say(
                f"Waiting for {missing} of {counted(len(self._workers), 'worker')} of Ray, which "
                "load the model or find no free place in the cluster."
            )


def _key(job: ImageJob) -> tuple[str, int]:
    return job.id, job.attempt


def _why(error: Exception) -> str:
    """What Ray says about a death, in one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    because = next((line for line in lines if "because" in line), first_line(error))
    return because.partition(" Worker exit detail")[0][:300].rstrip(".")
