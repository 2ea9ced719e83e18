"""Datasets made to harm whoever reads them: each follows from its number, and nothing else.

`write_hostile` writes number n below a folder and returns what a victim would name. Some link to
files of a folder of secrets, which hold `CANARY`: no program should read those, or put what they
say anywhere. Nothing outside of the given folder is written.
"""

import io
import json
import os
import socket
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from layouts import as_parquet, as_tar, as_zip, items, png, with_jsonl, with_text_files, write
from odd_images import ODD, chunk, cut, file_of, noise
from odd_images import png as raw_png
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from regforge.records import arrow_schema

CANARY = "canary-5f0e1d2c3b4a"
DEEP = "[" * 100_000
HUGE = 9 * 10**18

NAMES = [
    "new\nline.png",
    "tab\t.png",
    "-rf.png",
    "--out=x.png",
    "$(touch x).png",
    "`id`.png",
    "%s%n.png",
    "{{ 7*7 }}.png",
    "<script>.png",
    "a'b\"c.png",
    "a\\..\\b.png",
    "..png",
    "...png",
    "CON.png",
    "x" * 250 + ".png",
    "\u202egnp.png",
    "🐈‍⬛.png",
    "a.b.c.png",
    " .png",
    "#1.png",
    "\udcff\udcfe.png",
    "caf\u00e9.png",
    "cafe\u0301.png",
    "A.PNG",
    "a.png",
    "\x1b[31m.png",
    "00001.png",
    "metadata.png",
]
TEXTS: list[str | bytes] = [
    "",
    " \n\t ",
    "\0",
    "a\0cat",
    "\ufeffa cat",
    "a cat\r\nasleep\u2028here\x85",
    "\x1b[31ma cat",
    "a cat".encode("utf-16"),
    "eine schöne Katze".encode("latin-1"),
    b"\xff\xfe\x00",
    b"\xed\xa0\x80",
    "x" * 2_000_000,
    "cat, " * 100_000,
    "{{ 7*7 }} {% for x in y %}",
    "__cat__ {a|b} <lora:x:1> (a:1.3)",
    "a cat\u202etac a",
    "../../../etc/passwd",
    "hf_" + "a" * 34,
    "%s%n%d",
    "(" * 50_000,
    "🐈" * 10_000,
]
VALUES: list[Any] = [
    None,
    "",
    0,
    -1,
    HUGE,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    True,
    [],
    {},
    [[]],
    {"a": {"b": [1]}},
    "\ud800",
    "a cat",
    "x" * 100_000,
    ["a cat", None, 3],
    "../../secret/secret.txt",
    "/etc/passwd",
    "file:///etc/passwd",
    "http://127.0.0.1:9/a.png",
    {"bytes": None, "path": "/etc/passwd"},
    "2024-01-01",
]
PATTERNS: list[Any] = [
    "../secret/*",
    "/etc/*",
    "**/" * 50,
    "a" + "*a" * 40,
    "[",
    "{" * 500,
    None,
    3,
    [],
    {"train": None},
    DEEP[:500],
    ["*.png"] * 2000,
    {"split": "train", "path": "../secret/secret.png"},
    [{"split": "train"}],
    "data/../../secret/*",
]

Maker = Callable[["Hostile"], Path | None]


class Hostile:
    """What makers work with.

    Attributes:
        rng: Draws everything.
        folder: The dataset's; makers may return another path to name.
        secret: The folder of secrets.
    """

    def __init__(self, rng: Random, folder: Path, secret: Path) -> None:
        self.rng = rng
        self.folder = folder
        self.secret = secret

    def good(self, most: int = 3) -> None:
        """Some images with captions that are as they should be."""
        write(self.folder, with_text_files(items(*["a good cat"] * self.rng.randint(1, most))))

    def link(self, name: str, target: str) -> None:
        """A link, absolute, relative or by way of other links."""
        path, kind = self.folder / name, self.rng.choice(["absolute", "relative", "chain"])
        path.parent.mkdir(parents=True, exist_ok=True)
        to = Path(target) if target.startswith("/") else self.secret / target
        if kind == "chain":
            for number in range(self.rng.randint(1, 30)):
                step = path.with_name(f".step-{path.name}-{number}")
                step.symlink_to(to)
                to = Path(step.name)
        path.symlink_to(os.path.relpath(to, path.parent) if kind == "relative" else to)

    def value(self) -> Any:
        return self.rng.choice(VALUES)


def write_secrets(folder: Path) -> Path:
    """What no dataset may get at; every file says `CANARY`."""
    chunks = PngInfo()
    chunks.add_text("parameters", f"{CANARY}\nSteps: 1, Seed: 1")
    image = file_of(noise((8, 6), 99), pnginfo=chunks)
    row = {"image": [image], "text": [f"a cat, {CANARY}"], "width": [8], "height": [6]}
    files: dict[str, str | bytes] = {
        "secret.png": image,
        "secret.txt": f"a cat, {CANARY}",
        "metadata.jsonl": json.dumps({"file_name": "000.png", "text": f"a cat, {CANARY}"}),
        "metadata.csv": f"file_name,text\n000.png,{CANARY}\n",
        "README.md": f"---\nlicense: {CANARY}\n---\n",
        "secret.parquet": as_parquet(row),
        "secret.zip": as_zip({"a.png": image, "a.txt": CANARY.encode()}),
        "secret.tar": as_tar({"a.png": image, "a.txt": CANARY.encode()}),
        "000.png": image,
        "000.txt": f"a cat, {CANARY}",
    }
    return write(folder, files)


def links_to_secrets(at: Hostile) -> None:
    at.good()
    pairs = {
        "000.txt": "secret.txt",
        "zz.png": "secret.png",
        "more": ".",
        "metadata.jsonl": "metadata.jsonl",
        "metadata.csv": "metadata.csv",
        "README.md": "README.md",
        "data/train-00000-of-00001.parquet": "secret.parquet",
        "x.parquet": "secret.parquet",
        "all.zip": "secret.zip",
        "all.tar": "secret.tar",
        "001.json": "metadata.jsonl",
        "zz.txt": "/etc/passwd",
        "zy.caption": "/proc/self/environ",
        "export.json": "secret.txt",
        "images": ".",
    }
    for name in at.rng.sample(sorted(pairs), at.rng.randint(1, 6)):
        (at.folder / name).unlink(missing_ok=True)
        at.link(name, pairs[name])


def links_in_circles(at: Hostile) -> None:
    at.good()
    for name in ("itself.png", "itself.txt", "loop", "000.caption", "metadata.jsonl"):
        if at.rng.random() < 0.6:
            (at.folder / name).symlink_to(name)
    (at.folder / "deep").mkdir()
    (at.folder / "deep" / "up").symlink_to("..")
    (at.folder / "deep" / "again").symlink_to(at.folder)
    (at.folder / "there.png").symlink_to("back.png")
    (at.folder / "back.png").symlink_to("there.png")


def no_files(at: Hostile) -> None:
    """Pipes, sockets, devices and folders where files should be."""
    at.good()
    names = [
        "a.png",
        "000.txt",
        "metadata.jsonl",
        "metadata.csv",
        "README.md",
        "x.parquet",
        "y.zip",
    ]
    for name in at.rng.sample(names, 4):
        path = at.folder / name
        path.unlink(missing_ok=True)
        kind = at.rng.choice(["pipe", "device", "folder", "socket", "memory"])
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "socket" and len(str(path)) < 100:
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(path))
        else:
            devices = ["/dev/zero", "/dev/random", "/dev/full", "/dev/tty"]
            path.symlink_to("/proc/self/mem" if kind == "memory" else at.rng.choice(devices))


def named_link(at: Hostile) -> Path:
    """A run whose dataset is a link."""
    write(at.folder, {"recipe.yaml": "{}", "state.json": "{}"})
    at.link("dataset", ".")
    return at.folder


def damaged_images(at: Hostile) -> None:
    at.good()
    for number in range(6):
        kind = at.rng.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
        content = bytearray(file_of(noise((40, 30), number), kind))
        match at.rng.randrange(4):
            case 0:
                content = content[: at.rng.randrange(len(content))]
            case 1:
                for _ in range(20):
                    content[at.rng.randrange(len(content))] = at.rng.randrange(256)
            case 2:
                content = bytearray(at.rng.randbytes(at.rng.randrange(200)))
            case 3:
                content = content[:20] + bytearray(at.rng.randbytes(300))
        suffix = at.rng.choice(["png", "jpg", "webp", "gif", "bmp", "tiff", "PNG"])
        (at.folder / f"x{number}.{suffix}").write_bytes(bytes(content))


def odd_images(at: Hostile) -> None:
    for number, name in enumerate(at.rng.sample(sorted(ODD), 5)):
        content, _, suffix = ODD[name]
        (at.folder / f"x{number}.{suffix}").write_bytes(content)
        (at.folder / f"x{number}.txt").write_text("an odd cat")


def bombs(at: Hostile) -> None:
    """Small files that say they are large."""
    at.good()
    zeros = zlib.compress(bytes(3 * 10**7))
    text = chunk(b"zTXt", b"parameters\0\0" + zeros)
    profile = chunk(b"iCCP", b"icc\0\0" + zeros)
    whole = png(1)
    made: dict[str, Callable[[], bytes]] = {
        "huge.png": lambda: raw_png(60_000, 60_000, 8, 2, b"\0"),
        "large.png": lambda: raw_png(29_000, 3_000, 8, 0, bytes(29_001 * 30)),
        "text.png": lambda: whole[:33] + text + whole[33:],
        "profile.png": lambda: whole[:33] + profile + whole[33:],
        "chunks.png": lambda: whole[:33] + chunk(b"tEXt", b"a\0b") * 50_000 + whole[33:],
        "huge.bmp": lambda: (
            b"BM"
            + struct.pack(
                "<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24, *[0] * 6
            )
        ),
        "huge.gif": lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(20),
        "frames.gif": lambda: file_of(
            noise((8, 6)),
            "GIF",
            save_all=True,
            append_images=[noise((8, 6), n) for n in range(400)],
        ),
        "tags.tiff": lambda: (
            b"II*\0\x08\0\0\0"
            + struct.pack("<H", 65535)
            + struct.pack("<HHII", 256, 4, 2**31, 8) * 5000
        ),
        "loop.tiff": lambda: b"II*\0\x08\0\0\0" + struct.pack("<HI", 0, 8),
        "wide.jpg": lambda: file_of(Image.new("L", (65_000, 1_300)), "JPEG"),
        "exif.jpg": lambda: file_of(
            noise(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(5000)
        ),
        "said.png": lambda: file_of(
            noise(), pnginfo=_said("Steps: 1, Seed: " + '"' * 50_000 + ", " * 20_000)
        ),
    }
    write(at.folder, {name: made[name]() for name in at.rng.sample(sorted(made), 3)})


def _said(text: str) -> PngInfo:
    chunks = PngInfo()
    chunks.add_text("parameters", text)
    return chunks


def hostile_texts(at: Hostile) -> None:
    for number in range(6):
        (at.folder / f"{number}.png").write_bytes(png(number))
        text = at.rng.choice(TEXTS)
        name = f"{number}{at.rng.choice(['.txt', '.caption', '.TXT'])}"
        (at.folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


def hostile_names(at: Hostile) -> None:
    at.good()
    for number, name in enumerate(at.rng.sample(NAMES, 8)):
        path = at.folder / name
        path.write_bytes(png(number))
        if len(os.fsencode(name)) < 250:
            path.with_name(f"{name[:-4]}.txt").write_text(f"a cat, number {number}")


def alike_names(at: Hostile) -> None:
    stems = ["caf\u00e9", "cafe\u0301", "CAF\u00c9", "caf\u00e9.", "K", "\u212a", "ſ", "s"]
    for number, stem in enumerate(stems):
        suffix = at.rng.choice([".png", ".PNG", ".Png", ".jpg"])
        write(at.folder, {f"{stem}{suffix}": png(number), f"{stem}.txt": f"cat {number}"})
        write(at.folder, {f"{stem}.TXT": "another cat"})
    rows = [
        {"file_name": unicodedata.normalize("NFD", stem) + ".png", "text": "x"} for stem in stems
    ]
    if at.rng.random() < 0.5:
        (at.folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def many_and_deep(at: Hostile) -> None:
    deep = at.folder.joinpath(*["d"] * 150)
    write(deep, {"a.png": png(0), "a.txt": "a deep cat"})
    write(at.folder, {f"{n:05d}.txt": "no image" for n in range(2000)})
    (at.folder / "one.png").write_bytes(png(1))


def hostile_jsonl(at: Hostile) -> None:
    at.good(2)
    lines: list[str] = [json.dumps({"file_name": "000.png", "text": "a cat"})]
    for _ in range(at.rng.randint(1, 4)):
        row = {"file_name": at.rng.choice(["000.png", "../secret/000.png", at.value()])}
        for key in ("text", "caption", "slots", "seed", "kind", "class_noun", "scores", "x\ud800"):
            if at.rng.random() < 0.5:
                row[key] = at.value()
        if at.rng.random() < 0.3:
            row = {"file_name": "000.png", "slots": {"color": at.value(), "": at.value()}}
        lines.append(json.dumps(row))
    ugly = [
        "{",
        "[1]",
        DEEP,
        '{"file_name": ' + DEEP,
        "null",
        "\x00",
        "9" * 5000,
        "{}",
        "x" * 18_000_000,
    ]
    if at.rng.random() < 0.5:
        lines.insert(at.rng.randrange(2), at.rng.choice(ugly))
    encoding = at.rng.choice(["utf-8", "utf-8", "utf-8", "utf-16", "latin-1"])
    content = "\n".join(lines).encode(encoding, errors="replace")
    (at.folder / "metadata.jsonl").write_bytes(content)


def hostile_csv(at: Hostile) -> None:
    at.good(2)
    wide = ",".join(f"c{number}" for number in range(200_000))
    tables = [
        f"file_name,text\n000.png,{'x' * 200_000}\n",
        f"file_name,text\n000.png,{'x' * 17_000_000}\n",
        'file_name,text\n000.png,"never closed\n' + "x\n" * 100_000,
        f"file_name,{wide}\n000.png\n" + "000.png\n" * 500,
        "file_name,text\n000.png,a,b,c,d\n",
        "file_name,file_name,text,text\n000.png,001.png,a,b\n",
        "file_name,text\n000.png,a\0cat\n",
        "",
        "\n\n",
        "file_name",
        "text\na\n",
        "sep=;\nfile_name;text\n000.png;a\n",
        "file_name,text\n../secret/000.png,a\n",
        "file_name,seed\n000.png," + "9" * 5000 + "\n",
    ]
    encoding = at.rng.choice(["utf-8", "utf-8", "utf-16", "utf-8-sig"])
    (at.folder / "metadata.csv").write_bytes(at.rng.choice(tables).encode(encoding))


def hostile_sidecars(at: Hostile) -> None:
    at.good(4)
    for number in range(4):
        content = json.dumps({"caption": at.value(), "slots": at.value(), "seed": at.value()})
        text = at.rng.choice([content, DEEP, '{"a": ' * 50_000, "[]", "null", "x", "{}" * 1000])
        (at.folder / f"{number:03d}.txt").unlink(missing_ok=True)
        (at.folder / f"{number:03d}.json").write_text(text)


def hostile_card(at: Hostile) -> None:
    at.good()
    aliases = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
    )
    (at.folder / f"{'a' * 60}.png").write_bytes(png(9))  # what patterns take longest with
    pattern = at.rng.choice(PATTERNS)
    config = {"config_name": at.rng.choice(["default", 3, None, "x" * 1000]), "data_files": pattern}
    fronts = [
        aliases,
        f"configs: {json.dumps([config])}",
        f"configs: {json.dumps([{**config, 'data_dir': '../secret'}])}",
        f"configs: {json.dumps(at.value())}".encode("utf-8", "replace").decode(),
        "license: !!python/object/apply:os.system ['touch x']",
        "license: " + DEEP,
        "a: " * 5000,
        "date: 2024-13-45\nlicense: mit",
        "? [a, b]\n: c",
    ]
    (at.folder / "README.md").write_text(f"---\n{at.rng.choice(fronts)}\n---\n", errors="replace")


def hostile_run(at: Hostile) -> Path:
    """A run's folder as a stranger would hand it on."""
    texts = ["{}", "", DEEP, "[]", "null", '{"recipe_digest": 3, "images": "x"}', "\xff"]
    write(at.folder / "dataset", with_text_files(items("a cat", "a cat too")))
    recipe = at.rng.choice(["name: x", "{}", "a: &a [*a]", DEEP, "\x00", "subject: 3\ndataset: []"])
    write(at.folder, {"recipe.yaml": recipe, "state.json": at.rng.choice(texts)})
    if at.rng.random() < 0.5:
        (at.folder / "vocabulary.json").write_text(at.rng.choice([DEEP, "[]", '{"slots": 3}']))
    else:
        (at.folder / "vocabulary.json").symlink_to(
            at.rng.choice(["/dev/zero", at.secret / "secret.txt"])
        )
    return at.folder


def hostile_export(at: Hostile) -> None:
    write(at.folder / "images", with_text_files(items("a cat", "a cat too")))
    write(at.folder, {"export.json": at.rng.choice([DEEP, "{}", "[]", "x"]), "other.png": png(7)})


def hostile_parquet(at: Hostile) -> Path | None:
    image = png(1)
    struct_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    nested: pa.DataType = pa.string()
    for _ in range(60):
        nested = pa.list_(nested)
    two = [image, png(2)]
    columns: list[dict[str, Any]] = [
        {"image": [1, 2], "text": ["a", "b"]},
        {"image": ["/etc/passwd", "b"], "text": ["a", "b"]},
        {"image": [None, None], "text": ["a", "b"]},
        {
            "image": pa.array([None, {"bytes": None, "path": "/etc/passwd"}], struct_),
            "text": ["a", "b"],
        },
        {
            "image": pa.array([{"bytes": image, "path": "../../x.png"}] * 2, struct_),
            "text": ["a", "b"],
        },
        {"image": pa.array([two, two], pa.list_(pa.binary())), "text": ["a", "b"]},
        {"image": two, "text": pa.array([b"\xff\xfe", b"a"]), "width": [8, 8], "height": [6, 6]},
        {"image": two, "text": [["a"], ["b", None]], "width": ["8", "8"], "height": [6.0, -1.0]},
        {"image": two, "text": ["a", None], "width": [HUGE, -HUGE], "height": [0, 2**31]},
        {"image": two, "id": ["../../x", "/etc/x"], "text": ["a", "b"], "slots": ["x", "y"]},
        {"image": two, "id": ["x", "x"], "text": ["a", "b"], "seed": [float("nan"), 1e308]},
        {"image": two, "x": pa.array([None, None], nested), "text": ["a", "b"]},
        {"image": [], "text": pa.array([], pa.string())},
        {"bytes": two, "path": ["a", "b"]},
        {"image": [image] * 3000, "text": ["a cat"] * 3000},
        {"image": [b"", b"x"], "text": ["a", "b"], "width": [8, 8], "height": [6, 6]},
        {f"c{number}": [number] for number in range(3000)} | {"image": [image]},
    ]
    content = as_parquet(at.rng.choice(columns))
    if at.rng.random() < 0.4:  # cut or bent
        broken = bytearray(content)
        for _ in range(at.rng.randint(1, 30)):
            broken[at.rng.randrange(len(broken))] = at.rng.randrange(256)
        content = bytes(broken) if at.rng.random() < 0.6 else cut(content, at.rng.random())
    names = ["x.parquet", "data/train-00000-of-00001.parquet", "data/train-00000-of-00003.parquet"]
    name = at.rng.choice(names)
    write(at.folder, {name: content})
    if at.rng.random() < 0.3:
        write(at.folder, {"y.parquet": as_parquet({"other": [1]})})
    return at.folder / name if at.rng.random() < 0.3 else None


def false_dataset(at: Hostile) -> None:
    """Columns as regforge writes them, with anything in them."""
    schema = arrow_schema(["color"])
    rows = []
    for number in range(4):
        row: dict[str, Any] = {field.name: None for field in schema}
        row["image"] = at.rng.choice(
            [
                None,
                {"bytes": cut(png(number)), "path": "a"},
                {"bytes": png(number), "path": "/etc/x"},
            ]
        )
        row["id"] = at.rng.choice([None, "", "x", f"../../{number}", f"0123-{number:06d}"])
        row["text"] = at.rng.choice([None, "a cat", "\x00", "x" * 1000])
        row["width"], row["height"] = at.rng.choice([(8, 6), (0, 0), (-1, 2**31 - 1), (None, None)])
        row["image_digest"] = at.rng.choice([None, "0" * 64, "zz", ""])
        row["perceptual_hash"] = at.rng.choice([None, "f" * 16, "zz", "f" * 400, "-1"])
        row["seed"] = at.rng.choice([None, -1, 2**62])
        row["recipe_digest"] = at.rng.choice([None, "x"])
        rows.append(row)
    path = at.folder / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def parquet_metadata(at: Hostile) -> None:
    at.good(2)
    tables: list[dict[str, Any]] = [
        {"file_name": [1, 2], "text": ["a", "b"]},
        {"file_name": ["000.png"], "text": [b"\xff"]},
        {"file_name": [{"a": "000.png"}], "text": ["a"]},
        {"file_name": ["../secret/000.png"], "text": ["a"]},
        {"text": ["a"]},
        {"file_name": pa.array([], pa.string())},
    ]
    content = as_parquet(at.rng.choice(tables))
    (at.folder / "metadata.parquet").write_bytes(cut(content) if at.rng.random() < 0.3 else content)


def hostile_zip(at: Hostile) -> Path | None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (
            "a.png",
            "../../slip.png",
            "/tmp/slip.png",
            "a/../b.png",
            "c\\..\\d.png",
            "e.png/",
        ):
            archive.writestr(name, png(len(name)))
        archive.writestr("a.txt", "a cat")
        _worse(at, archive)
    content = bytearray(buffer.getvalue())
    match at.rng.randrange(6):
        case 0:
            content = content[: at.rng.randrange(len(content))]
        case 1:
            for _ in range(10):
                content[-at.rng.randrange(1, min(2000, len(content)))] = at.rng.randrange(256)
        case 2:  # a password, or a way of packing that nobody knows
            at_entry = content.index(b"PK\x01\x02")
            content[at_entry + at.rng.choice([8, 10])] = at.rng.choice([1, 99])
    write(at.folder, {"all.zip": bytes(content)})
    if at.rng.random() < 0.3:
        write(at.folder, {"more.zip": as_zip({"a.png": png(5)})})
    return at.folder / "all.zip" if at.rng.random() < 0.4 else None


def _worse(at: Hostile, archive: zipfile.ZipFile) -> None:
    match at.rng.randrange(8):
        case 0:
            entry = zipfile.ZipInfo("link.png")
            entry.external_attr = 0o120777 << 16
            archive.writestr(entry, str(at.secret / "secret.png"))
        case 1:
            archive.writestr("bomb.png", png(1) + bytes(200_000_000))
            archive.writestr("bomb.txt", bytes(900_000))
        case 2:
            for number in range(20_000):
                archive.writestr(f"many/{number}", "")
        case 3:
            archive.writestr("inner.zip", as_zip({"a.png": png(3)}))
        case 4:
            archive.writestr(
                "metadata.jsonl", at.rng.choice([DEEP, "{", '{"file_name": "../../x"}'])
            )
        case 5:
            for _ in range(3):
                archive.writestr("twice.png", png(at.rng.randrange(9)))
        case 6:
            archive.writestr("x.tar", as_tar({"a.png": png(1)}))
        case 7:
            archive.writestr("bomb.bmp", file_of(noise((8, 6)), "BMP") + bytes(100_000_000))


def hostile_tar(at: Hostile) -> Path | None:
    mode = at.rng.choice(["w", "w", "w:gz", "w:bz2", "w:xz"])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=at.rng.choice([1, 2])) as tar:  # type: ignore[call-overload]
        for name in ("a.png", "../../slip.png", "/tmp/slip.png", "b/../c.png", "a.txt", "\x01.png"):
            _member(tar, name, png(len(name)) if name.endswith("png") else b"a cat")
        for kind in at.rng.sample(
            [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE],
            2,
        ):
            entry = tarfile.TarInfo("link.png")
            entry.type, entry.linkname = kind, str(at.secret / "secret.png")
            tar.addfile(entry)
        match at.rng.randrange(4):
            case 0:
                _member(tar, "bomb.png", png(1) + bytes(150_000_000))
            case 1:
                _member(tar, "a.json", at.rng.choice([DEEP, "[]", "{"]).encode())
            case 2:
                _member(tar, "x" * 5000 + ".png", png(3))
            case 3:
                _member(tar, "many.txt", b"x" * 2_000_000)
    content = bytearray(buffer.getvalue())
    match at.rng.randrange(6):
        case 0:
            content = content[: at.rng.randrange(len(content))]
        case 1:
            for _ in range(10):
                content[at.rng.randrange(min(len(content), 3000))] = at.rng.randrange(256)
        case 2 if mode == "w":  # a size that is none
            content[124:136] = at.rng.choice(
                [b"-0000000001\0", b"77777777777\0", b"\xff" * 12, b"\x80" + b"\x7f" * 11]
            )
            content[148:156] = f"{sum(content[:148]) + 256 + sum(content[156:512]):06o}\0 ".encode()
    name = at.rng.choice(["all.tar", "all.tar.gz", "all.tgz"])
    write(at.folder, {name: bytes(content)})
    return at.folder / name if at.rng.random() < 0.4 else None


def bomb_in_tar(at: Hostile) -> None:
    """A gigabyte and a half of zeros, packed into a few megabytes."""
    entry = tarfile.TarInfo("large.mp4")
    entry.size = 1_500_000_000
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    parts = [packer.compress(entry.tobuf())]
    parts += [packer.compress(bytes(10_000_000)) for _ in range(150)]
    good = as_tar({"a.png": png(0), "a.txt": b"a cat"})
    pad = bytes(-entry.size % 512)
    parts += [packer.compress(pad + good), packer.flush()]
    write(at.folder, {"all.tar.gz": b"".join(parts)})


def _member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def metadata_of_good(at: Hostile) -> None:
    """Nothing wrong: what must still be read."""
    write(at.folder, with_jsonl(items("a cat", "another cat")))


MAKERS: list[Maker] = [
    links_to_secrets,
    links_in_circles,
    no_files,
    named_link,
    damaged_images,
    odd_images,
    bombs,
    hostile_texts,
    hostile_names,
    alike_names,
    hostile_jsonl,
    hostile_csv,
    hostile_sidecars,
    hostile_card,
    hostile_run,
    hostile_export,
    hostile_parquet,
    false_dataset,
    parquet_metadata,
    hostile_zip,
    hostile_tar,
    bomb_in_tar,
    many_and_deep,
    metadata_of_good,
]


def write_hostile(number: int, folder: Path, secret: Path, seed: int = 0) -> tuple[Path, str]:
    """Write a dataset.

    Args:
        number: Which.
        folder: A new folder for it.
        secret: What `write_secrets` wrote.
        seed: Others of the same kinds.

    Returns:
        What to name to a program, and what kind it is.
    """
    maker = MAKERS[number % len(MAKERS)]
    folder.mkdir(parents=True)
    at = Hostile(Random(f"{seed}/{number}"), folder, secret)
    return maker(at) or folder, maker.__name__
