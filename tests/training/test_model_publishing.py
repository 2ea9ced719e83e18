"""`regforge publish` of a training run: from its folder to the loopback Hub and back."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import LoopbackHub
from training_runs import QUIET, SUBJECTS, front, recipe, regularization, renamed
from typer.testing import CliRunner, Result

from regforge import cli
from regforge.errors import RegforgeError
from regforge.training import train

PROMPTS = ("a photo of a <my-cat> cat", "a <my-cat> cat, drawn")
FILES = {
    *("README.md", "recipe.yaml", "loss.svg", "samples.webp", "images/01.webp"),
    *("images/02.webp", "pytorch_lora_weights.safetensors", "cat-kohya.safetensors"),
    "embedding/my-cat.safetensors",
}


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step; nobody writes into it."""
    top = tmp_path_factory.mktemp("somebodys-home")
    each = recipe(
        subject=renamed(top / "photos"),
        regularization={"dataset": str(regularization(top / "dogs"))},
        method={"text_encoder": True},  # transformers notes whence it loaded one
        optimizer={"steps": 1},
        validation={"prompts": PROMPTS},
    )
    return train(each, top / "run", reporter=QUIET).folder


@pytest.fixture
def made(made_once: Path, tmp_path: Path) -> Path:
    """The run, to be written into; the photos are elsewhere by now."""
    folder = Path(shutil.copytree(made_once, tmp_path / "run"))
    change(folder, subject={"images": str(tmp_path / "moved")})
    return folder


def change(folder: Path, **sections: Any) -> None:
    """Say something else in the run's recipe."""
    path = folder / "recipe.yaml"
    content = yaml.safe_load(path.read_text())
    for name, values in sections.items():
        content[name] = {**content[name], **values} if isinstance(values, dict) else values
    path.write_text(yaml.safe_dump(content))


def publish(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(cli.app, ["publish", str(folder), "--quiet", *words])


def refused(folder: Path, *words: str) -> RegforgeError:
    error = publish(folder, *words).exception
    assert isinstance(error, RegforgeError), error
    return error


def files(hub: LoopbackHub) -> dict[str, bytes]:
    return hub.files("me/cat", repo_type="model")


@pytest.mark.slow
def test_all_of_it_goes_in_one_commit(made: Path, hub: LoopbackHub) -> None:
    done = publish(made, "--repo-id", "me/cat", "--tag", "v1", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert set(told["files"]) == set(files(hub)) - {".gitattributes"} == FILES
    assert (told["uploaded"], told["license"], told["kind"]) == (9, "cc-by-4.0", "lora")
    head = hub.head("me/cat", repo_type="model")
    assert hub.tags("me/cat", repo_type="model") == {"v1": head} == {"v1": told["commit"]}
    assert len([line for line in hub.writes if "/commit/" in line]) == 1
    found = hub.repository("me/cat", repo_type="model")
    assert found is not None
    assert found.private
    weights = "pytorch_lora_weights.safetensors"
    assert files(hub)[weights] == (made / "lora" / weights).read_bytes()

    values = front(files(hub)["README.md"])
    assert values["instance_prompt"] == "a photo of a <my-cat> cat"
    assert values["widget"] == [
        {"text": prompt, "output": {"url": f"images/0{number}.webp"}}
        for number, prompt in enumerate(PROMPTS, start=1)
    ]
    assert {"lora", "text-to-image", "diffusers", "template:sd-lora", "stable-diffusion"} <= set(
        values["tags"]
    )
    assert values["license"] == "cc-by-4.0"
    card = files(hub)["README.md"].decode()
    assert '"me/cat", weight_name="pytorch_lora_weights.safetensors"' in card
    assert "`cat-kohya.safetensors`" in card
    published = yaml.safe_load(files(hub)["recipe.yaml"])
    assert published["hub"] == {"repo_id": "me/cat", "private": True, "license": "cc-by-4.0"}
    # Nothing tells whose machine it was.
    assert published["regularization"]["dataset"] == "dogs"
    for name, content in files(hub).items():
        for secret in (hub.token, str(made.parent), "somebodys-home", str(SUBJECTS.parents[1])):
            assert secret.encode() not in content, (name, secret)


@pytest.mark.parametrize("name", ["README.md", "samples.webp", "weights"])
def test_a_link_that_leads_outside_is_refused(made: Path, hub: LoopbackHub, name: str) -> None:
    path = next(made.glob("**/*.safetensors")) if name == "weights" else made / name
    elsewhere = made.parent / "elsewhere"
    path.rename(elsewhere) if path.exists() else elsewhere.write_bytes(b"SECRET")
    path.symlink_to(elsewhere)
    assert path.name in refused(made, "--repo-id", "me/cat").message
    with pytest.raises(KeyError):
        files(hub)


def test_publishing_again_writes_nothing(made: Path, hub: LoopbackHub) -> None:
    publish(made, "--repo-id", "me/cat", "--public")
    before = len(hub.writes)
    for words in ([], ["--repo-id", "me/cat"], ["--license", "cc-by-4.0"]):
        done = publish(made, *words)
        assert done.exit_code == 0, done.output
        assert "Nothing to do: the Hub holds this LoRA already." in done.stdout
    assert hub.writes[before:] == []


def test_the_recipe_says_where_to_and_words_of_others_stay(made: Path, hub: LoopbackHub) -> None:
    change(made, hub={"repo_id": "me/cat", "private": False})
    card = made / "README.md"
    card.write_text(card.read_text() + "\nMy own words.\n")
    assert publish(made).exit_code == 0
    found = hub.repository("me/cat", repo_type="model")
    assert found is not None
    assert not found.private
    there = files(hub)["README.md"].decode()
    assert there.endswith("\nMy own words.\n")
    edited = there.replace("My own words.", "Ours.").replace("---\nli", "---\nlanguage: fr\nli")
    hub.put("me/cat", {"README.md": edited, "NOTES.md": "n"}, repo_type="model")
    (made / "images" / "02.webp").unlink()
    done = publish(made, "--license", "apache-2.0", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    # Another licence: the card and the recipe. An image less.
    assert (told["uploaded"], told["deleted"]) == (2, 1)
    assert told["notes"] == [
        "apache-2.0 was chosen as the licence; that of embedded/tinyworld is cc-by-4.0.",
        "README.md: the text after regforge's part differs from the one on the Hub, and that was "
        "kept.",
    ]
    card_there = files(hub)["README.md"]
    assert card_there.decode().endswith("\nOurs.\n")
    assert front(card_there)["license"] == "apache-2.0"
    assert front(card_there)["language"] == "fr"
    assert files(hub)["NOTES.md"] == b"n"
    assert "images/02.webp" not in files(hub)


def test_words_of_the_run_s_own_card_are_published_too(made: Path, hub: LoopbackHub) -> None:
    # As the Hub's page for a new repository makes it.
    hub.put("me/cat", {"README.md": "---\nlicense: mit\n---\n"}, repo_type="model")
    words = ("--repo-id", "me/cat", "--public", "--license", "other")
    assert "does not say which one" in str(refused(made, *words))
    card, about = made / "README.md", "license_name: mine\nlicense_link: https://x.org\n"
    card.write_text(card.read_text().replace("---\n", f"---\n{about}", 1) + "\nMy own words.\n")
    assert publish(made, *words).exit_code == 0
    there = files(hub)["README.md"]
    assert there.endswith(b"\nMy own words.\n")
    values = front(there)
    assert (values["license"], values["license_name"]) == ("other", "mine")
    card.write_text(card.read_text().replace("license_name: mine", "license_name: ours"))
    assert publish(made, *words).exit_code == 0
    assert front(files(hub)["README.md"])["license_name"] == "ours"


def test_what_is_wrong_is_said_and_stays_here(made: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    for words, says in (
        ((), "nor the recipe's hub.repo_id is given"),
        (("--repo-id", "cat"), "user/name, not 'cat'"),
        (("--repo-id", "me/cat", "--tag", "a b"), "cannot name a version"),
        (("--repo-id", "me/cat", "--license", "mitt"), "no licence identifier"),
    ):
        assert says in str(refused(made, *words))
    change(made, optimizer={"steps": 9})  # as `train` does that goes on, until it is done
    fewer = refused(made, "--repo-id", "me/cat")
    assert "holds the weights of step 1, and its training to step 9 is not finished" in str(fewer)
    assert fewer.exit_code == 2
    change(made, base_model="me/unknown", optimizer={"steps": 1})
    unknown = refused(made, "--repo-id", "me/cat")
    assert "does not know the terms of me/unknown" in str(unknown)
    assert "hub.license in the recipe" in str(unknown)
    assert unknown.exit_code == 2
    change(made, base_model="embedded/tinyworld", validation={"prompts": ["a hf_" + "x" * 34]})
    assert "looks like a token" in str(refused(made, "--repo-id", "me/cat"))
    (made / "lora" / "pytorch_lora_weights.safetensors").unlink()
    assert "holds no finished training" in str(refused(made, "--repo-id", "me/cat"))
    assert "not the folder of a run" in str(refused(tmp_path / "no", "--repo-id", "me/cat"))
    assert hub.repository("me/cat", repo_type="model") is None


def test_a_model_of_somebody_is_left_alone(made: Path, hub: LoopbackHub) -> None:
    hub.put("me/cat", {"README.md": "# Mine", "model.safetensors": "x"}, repo_type="model")
    before = hub.head("me/cat", repo_type="model")
    error = refused(made, "--repo-id", "me/cat", "--public")
    assert "a model that regforge did not make: model.safetensors" in str(error)
    ours = "<!-- regforge:begin --><!-- regforge:end -->"
    hub.put("me/whole", {"README.md": ours, "model_index.json": "{}"}, repo_type="model")
    error = refused(made, "--repo-id", "me/whole", "--public")
    assert "holds a whole pipeline" in str(error)
    assert hub.head("me/cat", repo_type="model") == before


def test_a_pull_request_waits(made: Path, hub: LoopbackHub) -> None:
    hub.create("me/cat", repo_type="model")
    done = publish(made, "--repo-id", "me/cat", "--create-pr", "--public")
    assert done.exit_code == 0, done.output
    assert "Offered as a pull request: a LoRA, cc-by-4.0." in done.stdout
    assert "pytorch_lora_weights.safetensors" not in files(hub)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_it_is_loaded_by_its_name(kind: str, tmp_path: Path, hub: LoopbackHub) -> None:
    from diffusers import DiffusionPipeline

    from regforge.embedded import load_pipeline

    each = recipe(method={"kind": kind}, optimizer={"steps": 1, "lr": 1e-3})
    made = train(each, tmp_path / "run", reporter=QUIET)
    assert publish(made.folder, "--repo-id", "me/cat").exit_code == 0
    assert all(str(tmp_path).encode() not in content for content in files(hub).values())
    assert not any(b'_name_or_path": "/' in content for content in files(hub).values())
    if kind == "lora":
        pipeline = load_pipeline()
        pipeline.load_lora_weights("me/cat", weight_name="pytorch_lora_weights.safetensors")
        assert pipeline.get_active_adapters()
    else:
        pipeline = DiffusionPipeline.from_pretrained("me/cat")
        assert pipeline.unet.config["sample_size"] == load_pipeline().unet.config["sample_size"]
