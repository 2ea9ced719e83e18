"""Templates that would take for ever or all memory: refused, at once, in one sentence."""

import os
from pathlib import Path

import pytest
from builders import recipe_of
from shell import Shell

from regforge.prompts.captions import CaptionTemplate, CaptionTemplateError
from regforge.prompts.messages import MessageError, Messages

HUGE = [
    "{{ 'a'*10**10 }}",
    "{{ 10**10**10 }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ ('%'~'1000000000'~'d')|format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ '{:{}{}}'.format(1, '1000', '000000') }}",
    "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "{{ color|center(1000000000) }}",
    "{{ color.ljust(1000000000) }}",
    "{{ color.zfill(1000000000) }}",
    "{{ 'a\\tb'.expandtabs(1000000000) }}",
    "{{ 'a\\nb'|indent(1000000000) }}",
    "{{ ('a'*9000)|list|join('a'*9000) }}",
    "{{ ('a'*9000)|replace('', 'b'*9000) }}",
    "{{ ('a'*9000).replace('', 'b'*9000) }}",
    "{{ ('a'*9000).translate({97: 'b'*9000}) }}",
    "{{ ('a '*4000)|wordwrap(1, wrapstring='b'*9000) }}",
    "{{ 1|round(1000000000, 'ceil') }}",
    "{{ color|slice(1000000000)|list }}",
    "{{ color|batch(1000000000, 'x')|list }}",
    "{{ (5).to_bytes(1000000000, 'big') }}",
    "{{ [1]|tojson(indent=1000000000) }}",
    "{{ lipsum(n=100000) }}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for a in 'a'*900 %}{% for b in 'a'*900 %}{% for c in 'a'*900 %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for a in 'abc' recursive %}{{ loop('abc') }}{% endfor %}",
    "{% include 'caption.j2' %}{% include 'caption.j2' %}",
    "{% extends 'caption.j2' %}",
    "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "{{ 0x" + "f" * 40_000 + " }}",
    "{{ " + "9" * 5000 + " }}",
    "#" * 3_000_000,
]

DOUBLING = {
    "text": ("'aaaa'", "{% set a = a ~ a %}"),
    "sum": ("'aaaa'", "{% set a = a + a %}"),
    "block": ("'aaaa'", "{% set a %}{{ a }}{{ a }}{% endset %}"),
    "join": ("'aaaa'", "{% set a = [a, a]|join %}"),
    "list": ("['a']", "{% set a = [a, a] %}"),
    "tuple": ("('a',)", "{% set a = (a, a) %}"),
    "mapping": ("{'a': 1}", "{% set a = {'x': a, 'y': a} %}"),
    "number": ("9", "{% set a = a * a %}"),
}

NESTED = [
    "{% if color %}" * 1500 + "x" + "{% endif %}" * 1500,
    "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
    "{{ " + "[" * 2000 + "]" * 2000 + " }}",
    "{% for a in 'ab' %}" * 40 + "{% endfor %}" * 40,
    "{{ " + "not " * 5000 + "1 }}",
    "{{ color" + "|upper" * 5000 + " }}",
    "{{ color" + ".a" * 10_000 + " }}",
    "{% set a %}" * 1500 + "{% endset %}" * 1500,
    "{% if 0 %}" + "{% elif 0 %}" * 3000 + "{% endif %}",
]


def template(folder: Path, text: str) -> CaptionTemplate:
    file = folder / "caption.j2"
    file.write_text(f"{{{{ color }}}} {{{{ class_noun }}}}\n{text}", encoding="utf-8")
    return CaptionTemplate(file, file.name, class_noun="teapot", kind="object", slots=["color"])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", HUGE, ids=lambda text: text[:40])
def test_nothing_huge_is_made(text: str, tmp_path: Path) -> None:
    with pytest.raises(CaptionTemplateError, match=r"caption\.j2:\d"):
        template(tmp_path, text)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", DOUBLING)
def test_nothing_doubles_for_ever(kind: str, tmp_path: Path) -> None:
    first, again = DOUBLING[kind]
    with pytest.raises(CaptionTemplateError, match=r"caption\.j2:\d"):
        template(tmp_path, f"{{% set a = {first} %}}{again * 60}{{{{ a }}}}")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", NESTED, ids=lambda text: text[:20])
def test_nested_too_deeply(text: str, tmp_path: Path) -> None:
    with pytest.raises(CaptionTemplateError, match=r"caption\.j2:\d+: parts of it are nested"):
        template(tmp_path, text)


def test_what_templates_are_for_stays_possible_and_a_phrase_can_be_too_much(tmp_path: Path) -> None:
    text = (
        "{% macro both(x, y) %}{{ x }} and {{ y }}{% endmacro %}"
        "{{ both(color|title, material or 'plain') }} {{ '%s-%.2f' % (color, 1.5) }} "
        "{{ '{:>4}'.format(color) }} {{ color|replace('r', 'R')|truncate(20) }} "
        "{{ [color, color]|unique|join(' / ') }} {{ [3, 1]|sort|first }} {{ color.upper() }} "
        "{% for word in color.split() if word %}{{ loop.index }}{{ word }}{% endfor %} {{ 2 * 3 }}"
    )
    expected = "red teapot Red and plain red-1.50 red Red red 1 RED 1red 6"
    assert template(tmp_path, text).render({"color": "red"}) == expected
    each = template(tmp_path, "{% for a in color %}{% for b in color %}.{% endfor %}{% endfor %}")
    assert each.render({"color": "red"}).count(".") == 9
    with pytest.raises(CaptionTemplateError, match="operations"):
        each.render({"color": "red" * 100})
    assert each.render({"color": "red"}).count(".") == 9  # each caption anew


def test_only_ordinary_files_are_included(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path.parent / "outside.j2").write_text("secret")
    for name in ("pipe", "zero", "folder", "../outside.j2", "/etc/hostname"):
        with pytest.raises(CaptionTemplateError, match=f"{name}:1: "):
            template(tmp_path, f"{{% include '{name}' %}}")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", [HUGE[0], HUGE[2], NESTED[1]], ids=["text", "format", "nested"])
def test_messages_have_limits_too(text: str, tmp_path: Path) -> None:
    (tmp_path / "system.j2").write_text(text)
    with pytest.raises(MessageError, match=r"system\.j2:\d"):
        Messages(recipe_of({"messages": tmp_path}))


def test_long_conversations_stay_possible() -> None:
    phrases = [f"phrase number {number} of a longer kind" for number in range(2000)]
    messages = Messages(recipe_of())
    for _ in range(12):  # each message anew
        said = messages("choose", slot="color", values=phrases, wanted=100)
        assert phrases[-1] in said[1]["content"]


@pytest.mark.parametrize("what", ["pipe", "zero", "folder", "latin"])
def test_a_template_that_is_no_text_file(what: str, shell: Shell, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin").write_bytes(b"\xe9")
    recipe = "name: a\nsubject: {class_noun: teapot}\nprompts: {template: ./%s, sets: {amplify: 1}}"
    (tmp_path / "a.yaml").write_text(recipe % what)
    assert shell("check", "a.yaml") == 2
    assert "Traceback" not in shell.err
    assert what in shell.err
