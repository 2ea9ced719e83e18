"""`--check` finds what is not as it was exported."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from export_samples import contents, export, make_image, ours, photo_folder

TO = ("kohya", "imagefolder", "webdataset")
Edit = Callable[[Path], object]


def overwrite(name: str, content: bytes | Callable[[bytes], bytes] | None) -> Edit:
    def edit(out: Path) -> None:
        before = (out / name).read_bytes()
        (out / name).unlink()  # a hard link of it stays as it is
        if content is not None:
            (out / name).write_bytes(content(before) if callable(content) else content)

    return edit


def replace(name: str, old: str, new: str) -> Edit:
    def replaced(content: bytes) -> bytes:
        assert old.encode() in content
        return content.replace(old.encode(), new.encode(), 1)

    return overwrite(name, replaced)


def remove(name: str) -> Edit:
    return overwrite(name, None)


def swap_captions(out: Path) -> None:
    one, two = out / "images" / "00001.txt", out / "images" / "00002.txt"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def rewrite_tar(out: Path, member: str, content: bytes | None) -> None:
    path = out / "shards" / "00000.tar"
    with tarfile.open(path) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    path.unlink()
    with tarfile.open(path, "w") as tar:
        for name, old in members:
            new = content if name == member else old
            if new is not None:
                info = tarfile.TarInfo(name)
                info.size = len(new)
                tar.addfile(info, io.BytesIO(new))


CHANGES: list[tuple[Edit, list[str]]] = [
    (
        overwrite("images/00003.txt", b"something else"),
        ["kohya: has caption 'something else'", "*: images/00003.txt: says 'something else'"],
    ),
    (swap_captions, ["kohya: images/00001.webp: has caption", "*: images/00001.txt: says"]),
    (overwrite("images/00003.txt", b"a\nb"), ["*: images/00003.txt: says"]),
    (remove("images/00003.txt"), ["kohya: has caption 'teapot'", "*: images/00003.txt: missing"]),
    (
        remove("images/00003.webp"),
        [
            "kohya: images/00003.webp: kohya sd-scripts would not load it",
            "imagefolder: images/00003.webp, which is not among the images",
            "*: images/00003.webp: missing",
        ],
    ),
    (
        overwrite("images/00003.webp", make_image(1, (16, 24), "webp")),
        ["*: images/00003.webp: is 16 x 24, not 16 x 16"],
    ),
    (overwrite("images/00003.webp", b"RIFF"), ["*: images/00003.webp: cannot be read"]),
    (
        lambda out: (out / "images" / "00099.webp").write_bytes(make_image(1)),
        ["kohya: images/00099.webp: is loaded, but was not exported"],
    ),
    (
        remove("subject/02.jpg"),
        ["kohya: subject/02.jpg: kohya sd-scripts would not load it", "*: subject/02.jpg: missing"],
    ),
    (
        replace("kohya.toml", "is_reg = true", "is_reg = false"),
        ["kohya: counts as an instance image, not as a regularization image"],
    ),
    (replace("kohya.toml", '/subject"', '/images"'), ["kohya: images/00001.webp: is loaded twice"]),
    (replace("kohya.toml", "is_reg", "is_regularization"), ["kohya: would refuse it: "]),
    (replace("kohya.toml", "num_repeats = 1", "num_repeats = 1.5"), ["kohya: would refuse it: "]),
    (
        replace("kohya.toml", "num_repeats = 5", "num_repeats = 4"),
        ["kohya: kohya.toml: changed since it was written"],
    ),
    (replace("kohya.toml", '".txt"', '".caption"'), ["kohya: has caption 'teapot', not"]),
    (remove("kohya.toml"), ["kohya: kohya.toml: missing"]),
    (
        overwrite("kohya/reg/1_teapot/00002.txt", b"else"),
        ["kohya: kohya/reg/1_teapot/00002.txt: is not images/00002.txt"],
    ),
    (
        remove("kohya/train/5_sks teapot/01.jpg"),
        ["kohya: kohya/train/5_sks teapot/01.jpg: missing"],
    ),
    (
        replace("README.md", "- metadata.jsonl", "- metadata.csv"),
        ["imagefolder: does not name metadata.jsonl"],
    ),
    (overwrite("README.md", b"# Hello"), ["imagefolder: no YAML"]),
    (
        replace("metadata.jsonl", "teapot, no. 3", "kettle, no. 3"),
        ["imagefolder: has caption", "*: metadata.jsonl: changed since it was written"],
    ),
    (
        lambda out: rewrite_tar(out, "00004.txt", b"else"),
        ["webdataset: 00000.tar/00004.webp: has caption 'else'"],
    ),
    (
        lambda out: rewrite_tar(out, "00004.webp", make_image(1)),
        ["webdataset: shards/00000.tar: 00004.webp is not in it as it should be"],
    ),
    (
        lambda out: rewrite_tar(out, "00020.webp", None),
        ["webdataset: images/00020.webp: WebDataset would not load it"],
    ),
    (remove("shards/00000.tar"), ["webdataset: shards/00000.tar: missing"]),
    (overwrite("shards/00000.tar", b"no tar"), ["webdataset: cannot be read"]),
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("check")
    photo_folder(top / "photos")
    done = export(ours(20), top / "out", *TO, subject=top / "photos", root="/data/t", check=True)
    assert not done.differs
    said = "checked: 20 images and 4 photos, captions and sizes equal"
    assert done.as_text().count(said) == len(TO)
    return top


@pytest.mark.parametrize(("edit", "said"), CHANGES)
def test_every_change_is_found(pristine: Path, out: Path, edit: Edit, said: list[str]) -> None:
    shutil.copytree(pristine / "out", out)
    edit(out)
    expected = [each.partition(": ")[::2] for each in said]
    before = contents(out)
    done = export(ours(20), out, *TO, subject=pristine / "photos", root="/data/t", check=True)
    assert contents(out) == before  # a check mends nothing
    assert done.differs
    found = {target.name: target.checked for target in done.targets}
    for name in TO:
        checked = found[name]
        assert checked
        lines = "\n".join(checked.differences)
        wanted = [text for trainer, text in expected if trainer in (name, "*")]
        assert all(text in lines for text in wanted), lines
        assert bool(lines) == bool(wanted), lines
        assert checked.as_text().startswith("checked: ")


def test_many_differences_are_shortened_for_people_and_whole_for_scripts(out: Path) -> None:
    export(ours(30), out)
    for path in (out / "images").glob("*.txt"):
        path.write_text("else")
    done = export(ours(30), out, check=True)
    count = len(done.as_dict()["targets"][0]["checked"]["differences"])
    assert count == 60  # each as a file, and as kohya reads it
    assert f"checked: {count} differences" in done.as_text()
    assert f"... and {count - 20} more" in done.as_text()
