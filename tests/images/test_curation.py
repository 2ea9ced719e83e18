"""What is refused, why, and compared with what."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from regforge.images.curation import AlignmentModelError, AlignmentScorer, Curator, Verdict
from regforge.recipe.models import Alignment, Curate
from regforge.records import ImageRow

SUBJECTS = Path(__file__).parents[2] / "examples" / "subjects"


def encoded(pixels: np.ndarray | Image.Image, kind: str = "WEBP", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}), **options)
    return buffer.getvalue()


def smooth(seed: int, size: int = 64) -> Image.Image:
    """An image with broad shapes, as images have."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def plain(color: tuple[int, int, int] | int, size: int = 64) -> Image.Image:
    return Image.new("RGB", (size, size), (color,) * 3 if isinstance(color, int) else color)


def judged(curator: Curator, image: bytes, name: str = "x", **options) -> Verdict:
    """The verdict; an image without a reason against it is accepted."""
    verdict = curator.judge(image, id=name, caption="a photo of a teapot", **options)
    if not verdict.reasons:
        curator.accept(name, verdict)
    return verdict


def row(name: str, image: bytes, verdict: Verdict) -> ImageRow:
    return ImageRow(
        image, "a photo", "teapot", "object", "naive", {}, "", 1, 64, 64, "m", None, "s", 1, 1.0,
        None, "t", "d", verdict.image_digest, verdict.perceptual_hash, verdict.scores, name,
    )  # fmt: skip


def test_a_good_image_is_accepted_with_its_hashes() -> None:
    image = encoded(smooth(0))
    verdict = judged(Curator(Curate()), image)
    assert verdict.reasons == ()
    assert verdict.image_digest == hashlib.sha256(image).hexdigest()
    assert verdict.perceptual_hash == str(imagehash.phash(smooth(0)))
    assert len(verdict.perceptual_hash) == 16
    assert verdict.scores == {"alignment": None, "duplicate_distance": None}


def noise(level: float, spread: float) -> np.ndarray:
    return np.random.default_rng(0).normal(level, spread, (64, 64, 3)).clip(0, 255).astype(np.uint8)


def night_with_a_hot_pixel() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 9, (64, 64, 3), dtype=np.uint8)
    pixels[5, 5] = 255
    return pixels


KINDS = ("WEBP", "PNG", "JPEG")


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        *((encoded(plain(level)), "black") for level in (0, 4, 10)),
        (encoded(night_with_a_hot_pixel()), "black"),
        *((encoded(plain(c), kind), "a single colour") for c in (255, 127) for kind in KINDS),
        (encoded(plain((200, 30, 30)), "JPEG"), "a single colour"),
        (encoded(noise(180, 1)), "a single colour"),
    ],
)
def test_images_that_show_nothing_are_refused(file: bytes, reason: str) -> None:
    assert judged(Curator(Curate()), file).reasons == (reason,)


def test_a_small_subject_on_white_and_scenes_at_night_or_in_red_are_kept() -> None:
    image = plain(255, size=512)
    ImageDraw.Draw(image).ellipse((250, 250, 262, 262), fill="gray")
    assert judged(Curator(Curate()), encoded(image)).reasons == ()
    night = np.asarray(smooth(1)) // 12  # values up to 21
    red = np.asarray(smooth(2)) * np.array([1, 0, 0], np.uint8)
    for pixels in (night, red):
        assert judged(Curator(Curate()), encoded(pixels)).reasons == ()


def test_constant_and_flagged_images_pass_if_nobody_minds() -> None:
    assert judged(Curator(Curate(constant=False)), encoded(plain(0))).reasons == ()
    image = encoded(smooth(0))
    flagged = judged(Curator(Curate()), image, nsfw=True)
    assert flagged.reasons == ("flagged by the safety checker",)
    assert judged(Curator(Curate(nsfw=False)), image, nsfw=True).reasons == ()
    reasons = judged(Curator(Curate()), encoded(plain(0)), nsfw=True).reasons
    assert reasons == ("black", "flagged by the safety checker")


def test_the_same_file_is_refused_and_named_unless_the_first_was_refused() -> None:
    curator, image = Curator(Curate()), encoded(smooth(0))
    judged(curator, image, "refused", nsfw=True)
    assert judged(curator, image, "first").reasons == ()
    second = judged(curator, image, "second")
    assert second.reasons == ("same as image first",)
    assert second.scores["duplicate_distance"] == 0


@pytest.mark.parametrize(
    ("distance", "reason"),
    [
        (None, "same as image first"),
        (0, "looks like image first (distance 0)"),
        (4, "looks like image first (distance 0)"),
    ],
)
def test_the_same_pixels_are_refused_also_after_a_break(distance: int | None, reason: str) -> None:
    curate = Curate(max_duplicate_distance=distance)
    one, other = encoded(smooth(0), "PNG"), encoded(smooth(0), "WEBP")
    curator, resumed = Curator(curate), Curator(curate)
    resumed.admit_known([row("first", one, judged(curator, one, "first"))])
    assert judged(curator, other, "second").reasons == (reason,)
    assert judged(resumed, other, "second").reasons == (reason,)


def test_a_look_alike_is_refused_up_to_the_distance_and_kept_above() -> None:
    first, second = encoded(smooth(0)), encoded(smooth(0).rotate(3))
    bits = imagehash.phash(smooth(0)) - imagehash.phash(smooth(0).rotate(3))
    assert 0 < bits < 16
    for most, refused in [(bits, True), (bits - 1, False), (None, False)]:
        curator = Curator(Curate(max_duplicate_distance=most))
        judged(curator, first, "first")
        verdict = judged(curator, second, "second")
        assert verdict.reasons == ((f"looks like image first (distance {bits})",) * refused)
        assert verdict.scores["duplicate_distance"] == bits


def test_judging_remembers_nothing_and_an_image_is_no_copy_of_itself() -> None:
    curator, image = Curator(Curate()), encoded(smooth(0))
    for _ in range(2):
        verdict = curator.judge(image, id="first", caption="", nsfw=False)
        assert verdict.reasons == ()
    curator.accept("first", verdict)
    assert curator.judge(image, id="first", caption="", nsfw=False) == verdict


def test_the_nearest_of_many_is_found_as_by_comparing_one_by_one() -> None:
    curator = Curator(Curate(max_duplicate_distance=None))
    rng = np.random.default_rng(0)
    hashes = [int(h) for h in rng.integers(0, 2**63, 700)]
    bits = {}
    for number, value in enumerate(hashes):
        curator.accept(f"{number}", Verdict(f"{value:016x}", f"{number}", {}, ()))
        bits[number] = value
    image = encoded(smooth(3))
    verdict = curator.judge(image, id="new", caption="")
    own = int(verdict.perceptual_hash, 16)
    assert verdict.scores["duplicate_distance"] == min((own ^ v).bit_count() for v in hashes)


@pytest.mark.parametrize("distance", [None, 4])
def test_a_resumed_session_judges_as_one_that_never_stopped(distance: int | None) -> None:
    curate = Curate(max_duplicate_distance=distance)
    images = [encoded(smooth(n)) for n in (0, 1, 0, 2)] + [encoded(smooth(1).rotate(2))]
    whole = Curator(curate)
    expected = [judged(whole, image, f"{n}") for n, image in enumerate(images)]

    first = Curator(curate)
    known = [(f"{n}", image, judged(first, image, f"{n}")) for n, image in enumerate(images[:2])]
    resumed = Curator(curate)
    for _ in range(2):  # told twice, it knows them once
        resumed.admit_known(row(*each) for each in known)
    found = [judged(resumed, image, f"{n}") for n, image in enumerate(images) if n >= 2]
    assert found == expected[2:]
    assert expected[2].reasons == ("same as image 0",)


def test_finished_images_are_known_without_their_pixels() -> None:
    image = encoded(smooth(0))
    verdict = judged(Curator(Curate()), image)
    resumed = Curator(Curate())
    for _ in range(2):
        resumed.admit_known([replace(row("first", image, verdict), image=b"")])
    assert resumed.judge(image, id="first", caption="").reasons == (), "known once, not twice"
    assert judged(resumed, image, "second").reasons == ("same as image first",)


@pytest.mark.parametrize("junk", [b"", b"junk", encoded(smooth(0))[:200]])
def test_what_is_no_image_is_refused(junk: bytes) -> None:
    verdict = judged(Curator(Curate()), junk)
    assert verdict.reasons == ("not a readable image",)
    assert verdict.perceptual_hash == ""


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["WEBP", "PNG", "JPEG", "GIF"]),
    cut=st.integers(1, 400),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=5),
)
def test_a_damaged_file_gives_a_verdict_and_no_traceback(kind, cut, flips) -> None:
    content = bytearray(encoded(smooth(0, 16), kind))
    for place, mask in flips:
        content[int(place * len(content))] ^= mask
    damaged = bytes(content[: max(1, len(content) - cut)])
    verdict = judged(Curator(Curate()), damaged)
    assert verdict.image_digest == hashlib.sha256(damaged).hexdigest()
    assert verdict.perceptual_hash or verdict.reasons, "what cannot be read is refused"


class FixedScorer:
    """Knows the alignment of each caption."""

    def __init__(self, **known: float) -> None:
        self.known = known

    def scores(self, images, captions):
        assert all(isinstance(image, Image.Image) for image in images)
        return [self.known[caption] for caption in captions]


def test_an_image_that_does_not_show_its_caption_is_refused_below_the_minimum() -> None:
    curator = Curator(Curate(alignment=Alignment(min=0.2)), scorer=FixedScorer(good=0.2, bad=0.11))
    image = encoded(smooth(0))
    bad = curator.judge(image, id="0", caption="bad")
    assert bad.reasons == ("does not show its caption (alignment 0.11 < 0.20)",)
    assert bad.scores["alignment"] == 0.11
    assert curator.judge(image, id="1", caption="good").reasons == ()
    lenient = Curator(Curate(alignment=Alignment()), scorer=FixedScorer(bad=-1.0))
    verdict = lenient.judge(image, id="0", caption="bad")
    assert (verdict.reasons, verdict.scores["alignment"]) == ((), -1.0)


@pytest.mark.slow
def test_the_embedded_judge_prefers_the_right_caption_and_batches_do_not_matter() -> None:
    paths = sorted(SUBJECTS.glob("*/*.png"))[:6]
    images = [Image.open(path).convert("RGB") for path in paths]
    captions = [path.with_suffix(".txt").read_text().replace("sks ", "") for path in paths]
    together, alone = AlignmentScorer(batch_size=4), AlignmentScorer(batch_size=1)
    right = together.scores(images, captions)
    wrong = together.scores(images, ["a photo of a pizza under the sea at night"] * len(images))
    assert all(-1 <= score <= 1 for score in right + wrong)
    assert np.mean(right) > np.mean(wrong) + 0.2
    assert alone.scores(images, captions) == pytest.approx(right, abs=2e-4)
    assert together.scores([], []) == []


def test_a_recipe_that_asks_for_alignment_gets_it() -> None:
    curator = Curator(Curate(alignment=Alignment(model="embedded/judge")))
    verdict = curator.judge(encoded(smooth(0)), id="0", caption="a photo of a dog")
    assert verdict.scores["alignment"] is not None


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights, as a folder in the form of those on the Hub."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from regforge.embedded import ALIGNMENT

    folder = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    tower["num_attention_heads"] = 2
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 4531, "max_position_embeddings": 20,
                     "bos_token_id": 4529, "eos_token_id": 4530, "pad_token_id": 4530},
        vision_config={**tower, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**size).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((ALIGNMENT / name).read_bytes())
    return folder


def test_a_clip_folder_scores_as_clip_itself_does(clip: Path) -> None:
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    images = [smooth(0), smooth(1, 96)]
    captions = ["a dog", "a photo of a red teapot on a beach " * 5]
    scores = AlignmentScorer(str(clip)).scores(images, captions)

    model = CLIPModel.from_pretrained(clip)
    pixels = AutoImageProcessor.from_pretrained(clip)(images, return_tensors="pt")
    with torch.no_grad():
        for number, caption in enumerate(captions):
            ids = AutoTokenizer.from_pretrained(clip)(
                caption, truncation=True, max_length=20, return_tensors="pt"
            )
            out = model(pixel_values=pixels.pixel_values[number : number + 1], **ids)
            cosine = float((out.image_embeds * out.text_embeds).sum())
            assert scores[number] == pytest.approx(cosine, abs=1e-4)


def test_a_model_that_is_not_there_or_of_another_sort_is_said_in_words() -> None:
    with pytest.raises(AlignmentModelError, match="'nobody/nothing' cannot be loaded") as caught:
        Curator(Curate(alignment=Alignment(model="nobody/nothing")))
    assert "Without network" in str(caught.value)
    from regforge.embedded import IDENTITY

    with pytest.raises(AlignmentModelError, match=r"curate\.alignment\.model"):
        AlignmentScorer(str(IDENTITY))
