"""Keys and tokens stay out of everything that is written down or printed."""

import base64
import html
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regforge.journal import Journal, read, without_secrets

TRICKY = [
    'va"lue-of-the-key',
    "back\\slash\\key",
    "a&b<c>'d'-12345",
    "clé-of-café-1",
    "s p a c e 1",
]


@pytest.mark.parametrize("key", TRICKY)
def test_a_key_is_found_in_every_form_that_it_is_written_in(
    key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MY_API_KEY", key)
    body = json.dumps({"error": {"message": f"Wrong key {key}"}})
    forms = {
        "plain": key,
        "JSON": json.dumps(key),
        "JSON as it is": json.dumps(key, ensure_ascii=False),
        "JSON in JSON": json.dumps(body),
        "URL": quote(key, safe=""),
        "URL, lower case": quote(key, safe="").replace("%2", "%2").lower()
        if key.islower()
        else quote(key, safe=""),
        "HTML": html.escape(key),
        "repr": repr(key)[1:-1],
    }
    journal = Journal(tmp_path)
    for name, text in forms.items():
        shown = without_secrets(f"it said: {text}!")
        assert shown.endswith("!"), name
        assert shown.count("[secret]") == 1, (name, shown)
        journal.failure("prompts", name, f"it said {text}", raw=body)
        journal.event("llm_call", error=text, inside={"list": [text]})
    written = (tmp_path / "ledger.jsonl").read_text() + (tmp_path / "log.jsonl").read_text()
    for text in forms.values():
        assert text not in written
    assert len(list(read(tmp_path / "ledger.jsonl"))) == len(forms)
    assert len(list(read(tmp_path / "log.jsonl"))) == len(forms)


@pytest.mark.parametrize("key", ["ab12", "hunter2", "s3cr-t", "x!y?z"])
def test_short_keys_are_found_where_they_stand_alone(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALL_TOKEN", key)
    for text in (f"bad {key}.", f'{{"key": "{key}"}}', f"?q=%20{quote(key, safe='')}&"):
        assert key not in without_secrets(text), text
    assert without_secrets(f"foo{key}bar") == f"foo{key}bar"


@pytest.mark.parametrize("key", ["none", "EMPTY", "local", "1234", "0.5"])
def test_words_and_numbers_are_keys_only_where_a_key_is_spoken_of(
    key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    innocent = f"a {key} teapot; openai/{key}; {key} images"
    assert without_secrets(innocent) == innocent
    assert key not in without_secrets(f"Incorrect API key provided: {key}.")
    Journal(tmp_path).event("llm_call", prompt_tokens=1234, cost=0.5)
    (entry,) = read(tmp_path / "log.jsonl")
    assert (entry["prompt_tokens"], entry["cost"]) == (1234, 0.5)


SHAPES = [
    "r8_0123456789abcdefABCDEF",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_0123456789abcdefghij",
    "github_pat_11AAAAAAA0123456789",
    "hf_0123456789abcdefghij",
    "sk-proj-0123456789abcdef",
    "sk-ant-api03-0123456789",
    "gsk_0123456789abcdef",
    "xai-0123456789abcdef",
    "AIzaSy0123456789abcdef",
    "glpat-0123456789abcdef",
    "xoxb-0123456789-abcdef",
    "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
]


@pytest.mark.parametrize("token", SHAPES)
def test_tokens_of_known_shapes_are_found_although_no_variable_holds_them(token: str) -> None:
    for text in (token, f"'{token}'", f"key={token}&x", f"(https://host/?t={token})", f"a_{token}"):
        shown = without_secrets(text)
        assert token[-12:] not in shown, text
        assert "[secret]" in shown


LOGIN = base64.b64encode(b"me:swordfish").decode()


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"Authorization: Basic {LOGIN}", LOGIN),
        (f"the header 'Basic {LOGIN}' is wrong", LOGIN),
        ("Authorization: Bearer tiny-token", "tiny-token"),
        ('{"Authorization": "Bearer abcdef12"}', "abcdef12"),
        (json.dumps(json.dumps({"authorization": "Token abcdef12"})), "abcdef12"),
        ("x-api-key: abcdef12", "abcdef12"),
        ("https://host/v1?api_key=abcdef12&n=1", "abcdef12"),
        ("https://me:swordfish@host/v1", "swordfish"),
        ("http://:swordfish@host", "swordfish"),
        ("http://me:sword@fish@host/x", "sword"),
        (json.dumps("https:\\/\\/me:swordfish@host"), "swordfish"),
        ("next=https%3A%2F%2Fme%3Aswordfish%40host", "swordfish"),
        ("postgres://me:swordfish@db/table", "swordfish"),
    ],
)
def test_what_headers_and_addresses_hold_is_hidden(text: str, secret: str) -> None:
    assert secret not in without_secrets(text)
    assert "host" in without_secrets(text) or "host" not in text


@pytest.mark.parametrize(
    "text",
    [
        "a basic watercolor painting of a teapot",
        "Basic geometric shapes",
        "a photo of a teapot at https://example.com:8080/@me",
        "mail me@example.com: soon",
        "a bearer of good news",
        "a standard bearer carrying a flag",
        "Key: a teapot",
        "risk-averse task-oriented desk-top",
        "a token of love, the key to success, the password is teapot",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert without_secrets(text) == text


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs"]), min_size=8, max_size=30)
)
def test_no_key_is_too_odd(key: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ODD_KEY", key)
        if not (key := key.strip()) or len(key) < 8:
            return
        for text in (key, json.dumps(key)[1:-1], quote(key, safe=""), html.escape(key)):
            shown = without_secrets(f"<<{text}>>")
            assert text not in shown or text in "<<[secret]>>"
