"""An export's folder: shared, gone on with, never mixed up, never harmed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from export_samples import Memory, contents, export, ours

from regforge.exporting.trainer import ExportError
from regforge.files import StorageError
from regforge.records import Example
from regforge.runs import FolderInUse, OwnedFolder


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in out.rglob("*") if path.is_file())
    stats = {path.relative_to(out).as_posix(): path.stat() for path in files}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def whole(tmp_path: Path, dataset: Memory, *to: str, **options: Any) -> dict[str, bytes]:
    """What an export holds that nothing disturbed."""
    export(dataset, tmp_path / "whole", *to, root="/data/t", **options)
    return contents(tmp_path / "whole")


def test_trainers_share_images_in_later_calls_too(tmp_path: Path, out: Path) -> None:
    dataset = ours(20)
    export(dataset, out, "kohya", root="/data/t")
    before = stamps(out)
    export(dataset, out, "imagefolder", root="/data/t")
    assert dataset.reads == 1
    changed = {name for name, stamp in stamps(out).items() if before.get(name) != stamp}
    assert changed == {"README.md", "README-imagefolder.md", "export.json"}
    assert contents(out) == whole(tmp_path, ours(20), "kohya", "imagefolder")


def test_the_same_again_writes_nothing_and_says_the_same(photos: Path, out: Path) -> None:
    dataset = ours(20)
    first = export(dataset, out, "kohya", "webdataset", subject=photos)
    before = stamps(out)
    assert export(dataset, out, "kohya", "webdataset", subject=photos) == first
    assert stamps(out) == before
    assert dataset.reads == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resolution": 512}, "--resolution 16, not 512"),
        ({"identifier": "xyz"}, "--identifier sks, not xyz"),
        ({"limit": 3}, "--limit None, not 3"),
        ({"root": "/elsewhere"}, "--root /data/t, not /elsewhere"),
        ({"prior_weight": 0.5}, "--prior-weight 1.0, not 0.5"),
        ({"class_noun": "urn"}, "--class-noun teapot, not urn"),
    ],
)
def test_other_settings_need_another_folder(out: Path, options: dict[str, Any], said: str) -> None:
    export(ours(8), out, root="/data/t")
    before = contents(out)
    with pytest.raises(ExportError, match=said) as caught:
        export(ours(8), out, **{"root": "/data/t"} | options)
    assert "--out" in str(caught.value)
    assert contents(out) == before


def test_an_export_of_an_older_version_is_gone_on_with(out: Path) -> None:
    export(ours(4), out)
    manifest = json.loads((out / "export.json").read_text())
    del manifest["identity"]["settings"]["family"]
    (out / "export.json").write_text(json.dumps(manifest))
    export(ours(4), out, "onetrainer")
    assert (out / "onetrainer" / "config.json").exists()


def test_another_dataset_needs_another_folder(out: Path) -> None:
    export(ours(8), out)
    redrawn = ours(8)
    row = redrawn.rows[3]
    redrawn.rows[3] = replace(row, metadata=row.metadata | {"image_digest": "0" * 64})
    for other in (ours(8, seed=1), redrawn):
        with pytest.raises(ExportError, match="another dataset"):
            export(other, out)


def test_a_folder_of_somebody_is_left_alone(out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    with pytest.raises(ExportError, match="no export of regforge"):
        export(ours(8), out)
    assert contents(out) == {"thesis.tex": b"x"}
    with pytest.raises(ExportError, match="is a file"):
        export(ours(8), out / "thesis.tex")
    (out / "export.json").write_text("{}")
    with pytest.raises(ExportError, match="cannot be read"):
        export(ours(8), out)


def test_a_file_of_the_user_is_not_written_over(photos: Path, out: Path) -> None:
    export(ours(8), out)
    (out / "README.md").write_text("my own notes")
    with pytest.raises(ExportError, match=r"README\.md is there already"):
        export(ours(8), out, "imagefolder")
    assert (out / "README.md").read_text() == "my own notes"
    (out / "subject" / "01.jpg").write_bytes(b"mine")
    with pytest.raises(ExportError, match=r"01\.jpg is there already"):
        export(ours(8), out, subject=photos)
    assert (out / "subject" / "01.jpg").read_bytes() == b"mine"
    with pytest.raises(ExportError, match="lies in the folder that is written"):
        export(ours(8), out, subject=out / "subject")


def test_an_edited_configuration_is_kept_and_told(out: Path) -> None:
    config = out / "kohya.toml"
    export(ours(8), out)
    edited = config.read_text().replace("batch_size = 2", "batch_size = 4")
    config.write_text(edited)
    for _ in range(2):
        done = export(ours(8), out)
        assert config.read_text() == edited
        assert "kohya.toml was changed" in done.targets[0].notes[-1]
    config.unlink()
    export(ours(8), out)
    assert "batch_size = 2" in config.read_text()


def test_what_was_deleted_comes_back(photos: Path, out: Path) -> None:
    to = ("kohya", "webdataset")
    export(ours(8), out, *to, subject=photos)
    before = contents(out)
    lost = ["images/00002.webp", "images/00005.txt", "metadata.jsonl", "subject/01.txt"]
    lost += ["kohya/reg/1_teapot/00003.webp", "shards/00000.tar", "README-kohya.md", "kohya.toml"]
    edited = "images/00001.txt"
    for name in (*lost, edited):  # an edit in place would change its hard link too
        (out / name).unlink()
    (out / edited).write_bytes(b"my own words")
    export(ours(8), out, *to, subject=photos)
    after = contents(out)
    assert after.pop(edited) == b"my own words"
    assert {name for name in after if after[name] != before[name]} <= {"shards/00000.tar"}
    assert after.keys() == before.keys() - {edited}


# ------------------------------------------------------------------------------- photos come later


def test_photos_may_come_later_and_all_trainers_get_them(
    tmp_path: Path, photos: Path, out: Path
) -> None:
    export(ours(40), out, "kohya", "imagefolder", root="/data/t")
    export(ours(40), out, "imagefolder", subject=photos, root="/data/t")
    assert contents(out) == whole(tmp_path, ours(40), "kohya", "imagefolder", subject=photos)
    assert not export(ours(40), out, "kohya", subject=photos, root="/data/t", check=True).differs


def test_photos_do_not_go_away_or_change_unsaid(photos: Path, out: Path) -> None:
    export(ours(8), out, subject=photos)
    with pytest.raises(ExportError, match="name them again with --subject"):
        export(ours(8), out)
    (photos / "IMG_0.txt").write_text("another caption of sks")
    with pytest.raises(ExportError, match="other photos"):
        export(ours(8), out, subject=photos)


# ----------------------------------------------------------------------------------- interruptions


class Cut(BaseException):
    """The power goes."""


@dataclass
class Interrupted(Memory):
    """A dataset whose reader is killed before an image."""

    at: int = 0

    def examples(self, *, images: bool = True) -> Iterator[Example]:
        for number, row in enumerate(super().examples(images=images)):
            if images and number == self.at:
                raise Cut
            yield row


def interrupt(dataset: Memory, out: Path, at: int) -> None:
    with pytest.raises(Cut):
        export(Interrupted(dataset.rows, slots=dataset.slots, at=at), out, root="/data/t")
    assert not (out / "export.json").exists()


@pytest.mark.parametrize("at", [0, 1, 11, 19])
def test_an_interrupted_export_goes_on(tmp_path: Path, out: Path, at: int) -> None:
    interrupt(ours(20), out, at)
    before = stamps(out)
    export(ours(20), out, root="/data/t")
    kept = [name for name in before if name.startswith("images/")]
    assert len(kept) == 2 * at
    assert all(stamps(out)[name] == before[name] for name in kept)
    assert contents(out) == whole(tmp_path, ours(20))


def test_an_interrupted_export_is_not_gone_on_with_another_dataset(out: Path) -> None:
    interrupt(ours(20), out, 5)
    with pytest.raises(ExportError, match="another dataset"):
        export(ours(20, seed=3), out, root="/data/t")


def test_a_damaged_file_of_an_interrupted_export_is_written_anew(tmp_path: Path, out: Path) -> None:
    interrupt(ours(10), out, 9)
    for path in (out / "images").iterdir():
        path.write_bytes(b"")
    export(ours(10), out, root="/data/t")
    assert contents(out) == whole(tmp_path, ours(10))


@pytest.mark.parametrize("number", [1, 4, 10, 21, 22, 23, 24, 25])
def test_killed_while_a_file_takes_its_name_nothing_is_half_there(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    expected = whole(tmp_path, ours(10), "kohya", "webdataset")
    calls, rename = [0], Path.replace

    def cut(self: Path, target: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            raise Cut
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", cut)
        with pytest.raises(Cut):
            export(ours(10), out, "kohya", "webdataset", root="/data/t")
    for name, content in contents(out).items():
        assert name.startswith(".export") or content == expected[name]
    export(ours(10), out, "kohya", "webdataset", root="/data/t")
    assert contents(out) == expected


def test_what_killed_writes_left_is_deleted_and_locks_nothing(tmp_path: Path, out: Path) -> None:
    expected = whole(tmp_path, ours(4))
    out.mkdir()
    for _ in range(2):
        for name in (".unfinished-0123456789abcdef", "images/.unfinished-0123456789abcdef"):
            if (out / name).parent.exists():
                (out / name).write_bytes(b"half")
        if (out / "export.json").exists():  # killed between that and the end
            identity = json.loads((out / "export.json").read_text())["identity"]
            (out / ".export-unfinished.json").write_text(json.dumps({"identity": identity}))
        export(ours(4), out, root="/data/t")
        assert contents(out) == expected


def test_two_exports_at_once_are_refused(out: Path) -> None:
    with OwnedFolder(out).locked(), pytest.raises(FolderInUse):
        export(ours(4), out)


@pytest.mark.parametrize(
    "change", [lambda rows: rows[:-1], lambda rows: rows[::-1], lambda rows: [*rows, *rows]]
)
def test_a_dataset_that_changes_while_it_is_read_is_no_export(
    out: Path, change: Callable[[list[Example]], list[Example]]
) -> None:
    class Moving(Memory):
        def examples(self, *, images: bool = True) -> Iterator[Example]:
            yield from change(self.rows) if images else self.rows

    with pytest.raises(ExportError, match="changed while it was read"):
        export(Moving(ours(6).rows), out)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    with pytest.raises((StorageError, ExportError), match="blocked"):
        export(ours(4), blocked / "out")


def test_export_json_tells_where_it_came_from_and_no_secret(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canaryCANARYcanaryCANARY")
    done = export(ours(8), out, "kohya", "imagefolder")
    record = json.loads((out / "export.json").read_text())
    assert record["source"]["name"] == "me/teapots"
    assert set(record["targets"]) == {"kohya", "imagefolder"}
    everything = b"".join(contents(out).values()) + done.as_text().encode()
    assert b"CANARY" not in everything
    assert os.environ["HF_TOKEN"]
