"""A small dataset in an old and a new version, for tests of publishing."""

from collections.abc import Mapping
from pathlib import Path

from hub_server import LoopbackHub

from regforge.hub import Contents, Published, Remote, publish_files

OLD: Mapping[str, bytes] = {
    "README.md": b"---\nlicense: mit\n---\nOld.\n",
    "data/train-0.parquet": b"PAR1 old",
    "data/train-1.parquet": b"PAR1 stays",
    "data/train-2.parquet": b"PAR1 goes",
}
NEW: Mapping[str, bytes] = {
    "README.md": b"---\nlicense: mit\n---\nNew.\n",
    "data/train-0.parquet": b"PAR1 new" * 1000,
    "data/train-1.parquet": b"PAR1 stays",
    "data/train-3.parquet": b"PAR1 added" * 1000,
    "recipe.yaml": b"class: teapot\n",
    "samples.jpg": b"\xff\xd8 samples",
}
REPO = "me/teapots"


def new_version(remote: Remote) -> Contents:
    """The new version, whatever is there."""
    return Contents(NEW, delete=("data/train-2.parquet", "never/there.txt"))


def publish(tag: str | None = "v2", **options: object) -> Published:
    """Publish the new version."""
    return publish_files(
        REPO, new_version, message="New teapots", private=False, tag=tag, **options
    )  # type: ignore[arg-type]


def with_old_version(hub: LoopbackHub) -> str:
    """Put the old version there, tagged v1."""
    commit = hub.put(REPO, OLD, title="Old teapots")
    hub.tag(REPO, "v1")
    return commit


def from_folder(folder: Path, files: Mapping[str, bytes]) -> dict[str, Path | bytes]:
    """The same files on disk."""
    sources: dict[str, Path | bytes] = {}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        sources[name] = path
    return sources
