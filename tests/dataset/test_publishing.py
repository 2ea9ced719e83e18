"""What of a dataset goes to the Hub, and everything that is refused before anything does."""

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_rows import make_row, make_rows
from publishable import build, packed

from regforge.dataset.store import NoDataset, ParquetError, read_rows, read_schema
from regforge.errors import RegforgeError
from regforge.hub import Remote
from regforge.journal import Reporter
from regforge.publishing import RepositoryTaken
from regforge.publishing.package import NotPublishable

DATA = "data/train-00000-of-00001.parquet"
OURS = ["README.md", "caption.j2", DATA, "recipe.yaml", "samples.webp"]
QUIET = Reporter(quiet=True)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return build(tmp_path / "run")


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("built") / "run")


def remote(files: Mapping[str, str], commit: str | None = "0" * 40) -> Remote:
    content = {path: text.encode() for path, text in files.items()}
    return Remote(commit, dict.fromkeys(files, "0" * 40), content.get)


def publish(dataset: Path, **options: int) -> list[str]:
    """All that happens before the first byte goes up; returns the notes."""
    package = packed(dataset, **options)
    package.check(QUIET)
    package.contents(remote({}, None))
    return package.notes


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_dataset_goes_up_as_it_lies_there(built_once: Path) -> None:
    package, shown = packed(built_once), io.StringIO()
    package.check(Reporter(stream=shown))
    assert "checking: 6 of 6 images" in shown.getvalue()
    wanted = package.contents(remote({}, None))
    assert sorted(wanted.files) == sorted(OURS)
    assert wanted.files[DATA] == built_once / DATA
    assert wanted.files["README.md"] == (built_once / "README.md").read_bytes()
    assert wanted.delete == ()
    assert package.own_files == package.notes == []


def test_files_of_the_user_go_and_hidden_ones_and_links_stay(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("outside")
    (dataset / "NOTES.md").write_text("mine")
    (dataset / "more" / "deep").mkdir(parents=True)
    (dataset / "more" / "deep" / "a.txt").write_text("mine")
    (dataset / "more" / "again.txt").symlink_to("deep/a.txt")
    for hidden in (".env", ".git/config", "more/.DS_Store"):
        (dataset / hidden).parent.mkdir(exist_ok=True)
        (dataset / hidden).write_text("x")
    (dataset / "link.txt").symlink_to(tmp_path / "secret.txt")
    (dataset / "linked").symlink_to(tmp_path)
    (dataset / "broken").symlink_to("nowhere")
    os.mkfifo(dataset / "pipe")
    package = packed(dataset)
    assert sorted(package.own_files) == ["NOTES.md", "more/again.txt", "more/deep/a.txt"]
    assert sorted(package.notes) == [
        "broken is not published: it is a link.",
        "link.txt is not published: it is a link.",
        "linked is not published: it is a link.",
        "pipe is not published: it is no file.",
    ]


def test_captions_beside_the_images_shadow_nothing(dataset: Path) -> None:
    for number in range(20):
        (dataset / f"{number}.txt").write_text("a caption")
        (dataset / f"{number}.json").write_text("{}")
    publish(dataset)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.txt", "line one\nmy token is hf_abcdefghijklmnop\n"),
        ("README.md", None),
        ("vocabulary.json", '\n{"key": "very-private-value"}'),
        ("deep/config.yaml", "a: 1\napi: sk-proj-0123456789abcdef\n"),
    ],
)
def test_text_that_looks_like_a_token_is_refused_with_its_place_and_never_shown(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str | None
) -> None:
    monkeypatch.setenv("MY_API_KEY", "very-private-value")
    path, line = dataset / name, 2
    path.parent.mkdir(exist_ok=True)
    if text is None:
        text = path.read_text() + "\nBearer abcdefghijkl\n"
        line = len(text.splitlines())
    path.write_text(text)
    with pytest.raises(NotPublishable, match="looks like a token") as caught:
        packed(dataset)
    assert str(caught.value).startswith(f"{name}:{line} ")
    for secret in ("abcdefgh", "very-private", "01234567"):
        assert secret not in str(caught.value)


def test_a_token_in_a_caption_is_refused_and_never_shown(tmp_path: Path) -> None:
    rows = [*make_rows(0, 1), make_row(2, slots={"color": "hf_abcdefghijklmnop"})]
    package = packed(build(tmp_path / "run", rows), rows=3)
    with pytest.raises(NotPublishable, match="looks like a token") as caught:
        package.check(QUIET)
    assert rows[2].id in str(caught.value)
    assert "abcdefgh" not in str(caught.value)


def test_a_path_of_this_machine_in_a_column_is_said(tmp_path: Path) -> None:
    rows = [make_row(0), make_row(1, model="/home/me/models/sdxl", template="../mine.j2")]
    notes = publish(build(tmp_path / "run", rows), rows=2)
    assert len(notes) == 2
    assert "`model` names a file or folder of this machine" in notes[0]
    assert notes[0].endswith("/home/me/models/sdxl")
    assert "`template`" in notes[1]


def flip(at: float) -> Callable[[Path], None]:
    """Damages the data at this part of it."""

    def change(folder: Path) -> None:
        content = bytearray((folder / DATA).read_bytes())
        content[int(at * len(content))] ^= 0xFF
        (folder / DATA).write_bytes(content)

    return change


def rewrite(edited: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    """Writes other rows."""
    return lambda folder: pq.write_table(edited(pq.read_table(folder / DATA)), folder / DATA)


def swap_an_image(table: pa.Table) -> pa.Table:
    images, field = table.column("image").to_pylist(), table.schema.field("image")
    images[1] = {**images[1], "bytes": images[0]["bytes"]}
    at = table.schema.get_field_index("image")
    return table.set_column(at, field, pa.array(images, field.type))


SPOILT: list[tuple[Callable[[Path], object], str]] = [
    (flip(1 / 3), "cannot be read|was drawn"),
    (flip(0.99999), "cannot be read"),
    (lambda folder: (folder / DATA).write_bytes(b""), "cannot be read"),
    (rewrite(lambda t: t.slice(0, 5)), "holds 5 images, and the run says that there are 6"),
    (rewrite(lambda t: t.take([1, 0, 2, 3, 4, 5])), "-000000 is there twice, or not in its place"),
    (rewrite(lambda t: t.take([0, 0, 2, 3, 4, 5])), "-000000 is there twice, or not in its place"),
    (rewrite(lambda t: t.drop_columns(["slots"])), "has other columns"),
    (rewrite(swap_an_image), "-000001 is not the one that was drawn"),
    (lambda folder: (folder / "README.md").unlink(), "no card"),
    (
        lambda folder: shutil.copy(folder / DATA, folder / "data" / "train-extra.parquet"),
        r"get data/train-extra\.parquet as part",
    ),
    (
        lambda folder: (folder / "teapots.py").write_text("# no script that loads it"),
        r"could not load the dataset.*teapots\.py",
    ),
]


@pytest.mark.parametrize(("spoil", "says"), SPOILT)
def test_a_folder_that_is_not_what_the_run_made_is_refused(
    dataset: Path, spoil: Callable[[Path], object], says: str
) -> None:
    spoil(dataset)
    with pytest.raises((NotPublishable, ParquetError, NoDataset), match=says):
        publish(dataset)


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_changes_nothing(built_once: Path, at: float, bit: int) -> None:
    content = bytearray((built_once / DATA).read_bytes())
    content[int(at * len(content))] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        broken = Path(folder) / "dataset"
        shutil.copytree(built_once, broken)
        (broken / DATA).write_bytes(content)
        try:
            publish(broken)
        except RegforgeError:
            return
        assert list(read_rows(broken)) == list(read_rows(built_once))


def test_a_damaged_footer_is_a_sentence(built_once: Path, tmp_path: Path) -> None:
    content, refused = (built_once / DATA).read_bytes(), set()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    for bit in (0, 1):
        for at in range(len(content) - footer, len(content), 59):
            broken = bytearray(content)
            broken[at] ^= 1 << bit
            (tmp_path / "broken.parquet").write_bytes(broken)
            try:
                read_schema(tmp_path / "broken.parquet")
            except ParquetError as error:
                refused.add(type(error.__cause__).__name__)
    assert len(refused) > 1, refused


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("configs:", "other_configs:", "`configs` is missing"),
        ("data/train-*.parquet", "data/*.parquet", "`configs` is not what regforge wrote"),
        ("split: train", "split: test", "`configs` is not what regforge wrote"),
        ("description: content", "details: content", "`configs` is not what regforge wrote"),
        ("content ", "content 0", "names the content 0"),
        ("dtype: int64", "dtype: int32", "`dataset_info` is not what regforge wrote"),
        ("---\nlicense", "license", "`configs` is missing"),
        ("<!-- regforge:end -->", "", "lost one of regforge's markers"),
    ],
)
def test_a_card_wrong_about_files_is_refused(dataset: Path, old: str, new: str, says: str) -> None:
    edit(dataset / "README.md", old, new)
    for number in range(20):
        (dataset / f"{number}.txt").write_text("a caption that would shadow the images")
    with pytest.raises(NotPublishable, match=says) as caught:
        publish(dataset)
    assert "Run the recipe again" in str(caught.value)


def test_no_trace_is_left(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    temporary, cache = tmp_path / "tmp", tmp_path / "cache"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    for name in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE", "DOWNLOADED_DATASETS_PATH"):
        if hasattr(datasets.config, name):
            monkeypatch.setattr(datasets.config, name, cache / name)
    before = sorted(dataset.rglob("*"))
    publish(dataset)
    assert list(temporary.iterdir()) == []
    assert not cache.exists()
    assert sorted(dataset.rglob("*")) == before


def test_other_needs_a_name_and_a_link(tmp_path: Path) -> None:
    from publishable import recipe

    dataset = build(tmp_path / "run", made_by=recipe(license="other"))
    card = dataset / "README.md"
    with pytest.raises(NotPublishable, match="does not say which one"):
        packed(dataset)
    edit(card, "license: other\n", "license: other\nlicense_name: mine\nlicense_link: LICENSE\n")
    with pytest.raises(NotPublishable, match="names LICENSE, and there is no such file"):
        packed(dataset)
    (dataset / "LICENSE").write_text("Do what you like.")
    assert packed(dataset).own_files == ["LICENSE"]
    edit(card, "license_link: LICENSE", "license_link: https://example.org/license")
    assert packed(dataset)


def test_stale_files_of_ours_are_deleted_and_nobody_else_s(built_once: Path) -> None:
    package = packed(built_once)
    there = {
        "README.md": (built_once / "README.md").read_text(),
        "data/train-00000-of-00002.parquet": "",
        "data/train-00001-of-00002.parquet": "",
        "data/extra.parquet": "",
        "data/validation-00000-of-00001.parquet": "",
        "vocabulary.json": "",
        "NOTES.md": "",
        ".gitattributes": "",
        "eval/train-1.parquet": "",
    }
    wanted = package.contents(remote(there))
    assert wanted.delete == (
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "vocabulary.json",
    )
    assert sorted(wanted.files) == sorted(OURS)


@pytest.mark.parametrize(
    "there",
    [
        {DATA: "", "README.md": "---\nlicense: mit\n---\n# Precious\n"},
        {"data/train-00000-of-00009.parquet": ""},
        {"recipe.yaml": "of soup"},
        {"README.md": "# Soup\n", "bowls/01.JPG": ""},
        {".gitattributes": "", "soup.zip": ""},
    ],
)
def test_a_repository_of_something_else_is_left_be(built_once: Path, there: dict[str, str]) -> None:
    wanted = packed(built_once).contents
    with pytest.raises(RepositoryTaken, match="regforge did not make") as caught:
        wanted(remote(there))
    assert caught.value.exit_code == 2


def test_a_repository_with_a_readme_alone_is_filled(built_once: Path) -> None:
    there = {"README.md": "---\nlicense: mit\nviewer: false\n---\n# Soon\n"}
    there |= dict.fromkeys((".gitattributes", "LICENSE.txt", ".github/x.json", "HOW.md"), "")
    wanted = packed(built_once).contents(remote(there))
    card = wanted.files["README.md"].decode()
    assert card.endswith("<!-- regforge:end -->\n\n# Soon\n")
    assert "license: cc-by-4.0\n" in card
    assert "viewer: false\n" in card


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (".huggingface.yaml", "configs: [{config_name: default, data_files: '*.csv'}]"),
        ("teapots.py", ""),
        ("samples.webp/what", ""),
    ],
)
def test_files_there_that_mislead_are_refused(built_once: Path, path: str, text: str) -> None:
    there = {"README.md": (built_once / "README.md").read_text(), path: text, "x.csv": "a\n1\n"}
    with pytest.raises(NotPublishable):
        packed(built_once).contents(remote(there))


def test_a_path_that_leads_out_of_a_folder_goes_nowhere(
    built_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    there = {
        "README.md": (built_once / "README.md").read_text(),
        "../../../out.txt": "x",
        str(tmp_path / "absolute.txt"): "x",
    }
    packed(built_once).contents(remote(there))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tmp"]


def test_the_recipe_s_digest_counts(built_once: Path) -> None:
    from publishable import SLOTS

    from regforge.publishing.package import pack

    package = pack(built_once, "teapots", rows=6, recipe_digest="f" * 64, slots=SLOTS)
    with pytest.raises(NotPublishable, match="of another recipe"):
        package.check(QUIET)
