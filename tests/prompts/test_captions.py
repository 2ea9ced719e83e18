"""Caption templates: what they write, and what is wrong with them before anything runs."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regforge.embedded import load_vocabulary
from regforge.files import templates_folder
from regforge.prompts.captions import (
    CaptionTemplate,
    CaptionTemplateError,
    article_for,
    noun_pattern,
    several_texts,
    tidy,
    without_syntax,
    word_pattern,
)

SLOTS = ("shape", "color", "texture", "background", "lighting", "style")
DUSK = {"lighting": "at dusk"}


@functools.cache
def shipped(name: str, class_noun: str = "teapot", **options: object) -> CaptionTemplate:
    file = templates_folder() / "caption" / f"{name}.j2"
    kind = "living" if name == "living" else "object"
    return CaptionTemplate(file, file.name, class_noun=class_noun, kind=kind, **options)


def own(folder: Path, text: str, **options: object) -> CaptionTemplate:
    file = folder / "mine.j2"
    file.write_text(text, encoding="utf-8")
    settings = {"class_noun": "teapot", "kind": "object"} | options
    return CaptionTemplate(file, "mine.j2", **settings)


@pytest.mark.parametrize(
    ("template", "noun", "phrases", "caption"),
    [
        (
            "object",
            "teapot",
            {"style": "an ad for", "size": "small", "shape": "round", "color": "red"}
            | {"texture": "striped", "material": "clay", "background": "on a shelf", **DUSK},
            "an ad for a small round red striped clay teapot on a shelf, at dusk",
        ),
        ("object", "teapot", {}, "a photo of a teapot"),
        ("tags", "teapot", {}, "teapot"),
        (
            "tags",
            "pair of glasses",
            {"quality": "score_9, score_8_up", "color": "red", "style": "a Polaroid photo of"}
            | {"background": "on the garden bench", "lighting": "in soft light"},
            "score_9, score_8_up, pair of glasses, red, garden bench, soft light, Polaroid photo",
        ),
        ("sentences", "glasses", {}, "A photo of glasses."),
        (
            "sentences",
            "glasses",
            {"color": "red", "background": "on a shelf", "style": "in the style of Monet", **DUSK},
            "A picture of red glasses. The glasses are on a shelf. The scene is seen at dusk. "
            "The image is in the style of Monet.",
        ),
        (
            "sentences",
            "dog",
            {"style": "a Polaroid photo", "motion": "running", "background": "on a beach"},
            "A Polaroid photo of a dog. The dog is running on a beach.",
        ),
        ("object", "owl figurine", DUSK, "a photo of an owl figurine, at dusk"),
        ("object", "teapot", {"color": "orange"}, "a photo of an orange teapot"),
        ("object", "glasses", {"color": "red"}, "a photo of red glasses"),
        ("object", "pair of glasses", {"color": "red"}, "a photo of a red pair of glasses"),
        ("object", "teapot", {"style": "a close-up photo"}, "a close-up photo of a teapot"),
        (
            "object",
            "teapot",
            {"style": "in the style of Monet", **DUSK},
            "a picture of a teapot, at dusk, in the style of Monet",
        ),
        ("object", "teapot", {"style": "cinematic"}, "a picture of a teapot, cinematic"),
        (
            "living",
            "dog",
            {"color": "brown", "motion": "running", "background": "on a beach", **DUSK},
            "a photo of a brown dog running on a beach, at dusk",
        ),
        ("naive", "ice cream", {}, "a photo of ice cream"),
        ("naive", "teapot", {}, "a photo of a teapot"),
    ],
)
def test_shipped_templates_write_english(
    template: str, noun: str, phrases: dict[str, str], caption: str
) -> None:
    assert shipped(template, noun).render(phrases) == caption


def test_embedded_pipelines_own_words_make_captions_it_knows() -> None:
    slots = ("size", "color", "texture", "motion", "background", "lighting", "style")
    phrases = {slot: load_vocabulary()[slot][0] for slot in slots}
    caption = shipped("living", "dog").render(phrases)
    assert caption == "a photo of a small red striped dog running on a beach, at sunset"


def test_slots_before_the_noun_are_found_by_what_a_template_writes(tmp_path: Path) -> None:
    assert shipped("object").attributes == ("size", "shape", "color", "texture", "material")
    text = "{{ mood }} {{ class_noun }} of {{ color }}, {{ [pattern, age, class_noun] | words }}"
    template = own(tmp_path, text, slots=("mood", "pattern", "age", "color"))
    assert template.attributes == ("mood",)
    assert own(tmp_path, "a {{ class_noun }} in {{ color }}", slots=("color",)).attributes == ()


def test_a_template_of_ones_own_may_use_other_slots_and_shipped_parts(tmp_path: Path) -> None:
    (tmp_path / "place.j2").write_text("{{ background }}{{ weather and ', ' + weather }}")
    template = own(
        tmp_path,
        "{% if kind == 'object' %}{{ style | opening }} {% endif %}"
        "{{ [color, class_noun] | words | a }}\n  {% include 'place.j2' %}",
        slots=("color", "background", "weather", "style"),
    )
    phrases = {"color": "red", "background": "in a park", "weather": "in the rain"}
    assert template.render(phrases) == "a photo of a red teapot in a park, in the rain"
    assert template.render({"color": "red"}) == "a photo of a red teapot"
    included = own(tmp_path, "{% include 'caption/object.j2' %}", slots=SLOTS)
    assert included.render({"color": "blue"}) == "a photo of a blue teapot"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a\n{{ class_noun }} {{ colour }}", "mine.j2:2: there is no 'colour' here. Did you mean"),
        ("{{ class_noun }}\n\n{% if %}", "mine.j2:3: Expected an expression"),
        ("{{ class_noun }}\n{{ color | upcase }}", "mine.j2:2: No filter named 'upcase'"),
        ("{{ class_noun }}", "mine.j2:1: the template never uses the recipe's slot 'color'"),
        ("a photo of a {{ color }} thing", "mine.j2:1: the template never uses class_noun"),
        (
            "{{ color }}{% if class_noun == 'x' %}{{ class_noun }}{% endif %}",
            "does not name the class noun 'teapot'",
        ),
        ("{{ color }}\n{{ class_noun.nothing }}", "mine.j2:2: 'str object' has no attribute"),
        ("{{ color }}\n\n{{ class_noun / 2 }}", "mine.j2:3: unsupported operand"),
        ("{{ color }} {big|small} {{ class_noun }}", "'{big|small}' as it stands"),
        ("{{ color }} sks {{ class_noun }}", "puts the identifier 'sks' into every caption"),
        ("{{ color }} SKS. {{ class_noun }}", "puts the identifier 'SKS' into every caption"),
        ("{{ class_noun }} {{ color | random }}", "mine.j2:1: No filter named 'random'"),
        ("{{ class_noun }} {{ color }} {{ range(3) }}", "mine.j2:1: there is no 'range' here"),
        ("{{ class_noun }} {{ color }}{% include 'gone.j2' %}", "gone.j2"),
        ("{{ class_noun }} {{ color }}{% include color %}", "name the template to include"),
        ("{% for c in class_noun %}{{ class_noun * 999 }}{% endfor %}{{ color }}", "characters"),
    ],
)
def test_a_template_that_cannot_work_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(CaptionTemplateError) as caught:
        own(tmp_path, text, slots=("color",), identifier="sks")
    assert complaint in str(caught.value)
    assert caught.value.exit_code == 2


def test_names_that_clash_are_refused_and_mistakes_of_includes_named(
    tmp_path: Path,
) -> None:
    with pytest.raises(CaptionTemplateError, match="class noun 'sks teapot' contains the ident"):
        own(tmp_path, "{{ class_noun }}", class_noun="sks teapot", identifier="SKS")
    with pytest.raises(CaptionTemplateError, match="cannot be called 'kind'"):
        own(tmp_path, "{{ class_noun }} {{ kind }}", slots=("kind",))
    (tmp_path / "part.j2").write_text("fine\n{{ colr }}")
    with pytest.raises(CaptionTemplateError, match=r"part\.j2:2: there is no 'colr'"):
        own(tmp_path, "{{ class_noun }}{% include 'part.j2' %}")
    (tmp_path / "part.j2").write_text("fine\n{% nonsense %}")
    with pytest.raises(CaptionTemplateError, match=r"part\.j2:2: Encountered unknown tag"):
        own(tmp_path, "{{ class_noun }}{% include 'part.j2' %}")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{{ class_noun }}{{ class_noun.__class__.__mro__ }}", "'__class__' .* is unsafe"),
        ("{{ class_noun }}{{ ''['__class__'] }}", "'__class__' .* is unsafe"),
        ("{{ class_noun }}{{ '{0.__class__}'.format(1) }}", "'__class__' .* is unsafe"),
        ("{{ class_noun }}{{ self.__init__.__globals__ }}", "'__init__' .* is unsafe"),
        ("{{ class_noun }}{% include '/etc/passwd' %}", r"passwd:1: .*etc/passwd"),
        ("{{ class_noun }}{% include '../secret.j2' %}", r"secret\.j2:1: .*secret\.j2"),
    ],
)
def test_templates_cannot_leave_their_sandbox(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "secret.j2").write_text("secret")
    (tmp_path / "inside").mkdir()
    with pytest.raises(CaptionTemplateError, match=complaint):
        own(tmp_path / "inside", text)


def test_a_template_that_fails_on_some_phrases_or_cannot_be_read_says_where(tmp_path: Path) -> None:
    text = "{{ class_noun }}\n{{ 1 / 0 if color == 'red' else color }}"
    template = own(tmp_path, text, slots=("color",))
    with pytest.raises(CaptionTemplateError, match=r"mine\.j2:2: division by zero"):
        template.render({"color": "red"})
    (tmp_path / "bytes.j2").write_bytes(b"\xff\xfe{{ class_noun }}")
    for name in ("gone.j2", "bytes.j2"):
        with pytest.raises(CaptionTemplateError, match=name):
            CaptionTemplate(tmp_path / name, name, class_noun="cup", kind="object")


@given(st.dictionaries(st.sampled_from(SLOTS), st.text(max_size=30)))
def test_phrases_are_words_and_never_code(phrases: dict[str, str]) -> None:
    bad = {slot: phrase + "{{ 7 * 191 }}{% if %}" for slot, phrase in phrases.items()}
    caption = shipped("object").render(bad)
    assert "1337" not in caption
    assert caption.count("{{ 7 * 191 }}") == len(phrases)
    assert caption == " ".join(caption.split())


def test_empty_slots_leave_no_trace() -> None:
    assert tidy("a  cup ,\n , at dusk, ") == "a cup, at dusk"
    assert tidy(" a 1,000 dollar cup ") == "a 1,000 dollar cup"
    assert tidy("a cup,, by a lake , ,") == "a cup, by a lake"


@pytest.mark.parametrize(
    ("noun", "text", "with_article"),
    [
        ("teapot", "old teapot", "an old teapot"),
        ("teapot", "one-handled teapot", "a one-handled teapot"),
        ("hourglass", "hourglass", "an hourglass"),
        ("ukulele", "ukulele", "a ukulele"),
        ("sunglasses", "orange sunglasses", "orange sunglasses"),
        ("Golden Retriever", "old golden retriever", "an old golden retriever"),
        ("teapot", "", ""),
    ],
)
def test_articles(noun: str, text: str, with_article: str) -> None:
    assert article_for(noun)(text) == with_article


def test_identifiers_and_nouns_are_found_as_words() -> None:
    assert word_pattern("sks").search("a photo of a SKS, dog")
    assert not word_pattern("sks").search("masks and sksish things in a_sks")
    assert word_pattern("<s1>").search("a <s1> dog")
    assert word_pattern("zwx man").search("the ZWX  man sits")
    assert noun_pattern("statue of a horse").findall("a statue of horses") == ["statue", "horses"]
    found = noun_pattern("ceramic teapot").findall("Ceramic Teapots, teapots")
    assert found == ["Ceramic Teapots", "teapots"]


def test_the_docs_show_the_shipped_template(repo: Path) -> None:
    body = (repo / "templates" / "caption" / "object.j2").read_text().partition("#}\n")[2]
    assert f"```jinja\n{body}```" in (repo / "docs" / "captions.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("caption", "plain"),
    [
        ("a photo of a (sks cat:1.3) on a rug", "a photo of a sks cat on a rug"),
        ("((sks)) cat, [blurry], masterpiece", "sks cat, blurry, masterpiece"),
        ("(((sks cat))), {fluffy}", "sks cat, fluffy"),
        ("((fluffy) sks cat:1.2)", "fluffy sks cat"),
        ("a sks cat <lora:x:0.8> on a rug", "a sks cat on a rug"),
        ("<lora:fur-v2:1>, sks cat <hypernet:a b:0.5>", "sks cat"),
        ("a sks cat BREAK on a rug", "a sks cat, on a rug"),
        ("sks cat, BREAK, rug", "sks cat, rug"),
        ("(masterpiece), (best quality:1.2), sks cat", "masterpiece, best quality, sks cat"),
        ("a photo of (sks cat) on a rug", "a photo of sks cat on a rug"),
        (r"sks \(cat\), rug", "sks (cat), rug"),
        ("sks++ cat on a rug--", "sks cat on a rug"),
        ("[[sks]] cat", "sks cat"),
        ("<sks:1.0> cat, (fluffy:.8)", "sks cat, fluffy"),
    ],
)
def test_weights_and_commands_are_taken_off(caption: str, plain: str) -> None:
    assert several_texts(caption) is None
    assert without_syntax(caption, "sks") == plain
    assert without_syntax(plain.replace("(", "x"), "sks") == plain.replace("(", "x")


def test_english_is_left_alone() -> None:
    for caption in (
        "a portrait (sks cat), smiling",
        "a sks cat (my own) at 10:30, 3:2",
        "breaking news: the sks cat",
        "A BREAKFAST for sks; cat-like -- and small",
        "sks_cat, long__tail",
        "",
    ):
        assert several_texts(caption) is None
        assert without_syntax(caption, "sks") == caption


def test_the_identifier_is_no_syntax() -> None:
    for identifier in ("[V]", "<s1>", "(*)", "{x}", "sks++", "[[new]]"):
        caption = f"a photo of a {identifier} cat"
        assert without_syntax(caption, identifier) == caption
        assert without_syntax(f"a photo of a ({identifier} cat:1.3)", identifier) == caption


def test_what_stands_for_several_texts_is_found() -> None:
    several = "{red|blue} {2$$a|b|c} [red:blue:0.5] [red:10] [a|b] __color__ __a/b__"
    for part in several.split():
        assert several_texts(f"a photo of a {part} sks cat") == part


@pytest.mark.parametrize(
    "text",
    ["[" + ":" * 99_999, "(" * 50_000 + "sks" + ")" * 50_000, "{|" * 50_000, "\ue000 (sks:1)"],
)
def test_no_caption_is_too_much(text: str) -> None:
    several_texts(text)
    assert "sks" not in text or "sks" in without_syntax(text, "sks")


@given(st.text(alphabet="sk ()[]{}<>:.1,|_+-\\", max_size=40))
def test_taking_off_ends_and_leaves_nothing_to_take_off(text: str) -> None:
    text = " ".join(text.split())
    once = without_syntax(text)
    assert without_syntax(text) == once
    assert len(once) <= len(text) + text.count("BREAK")
