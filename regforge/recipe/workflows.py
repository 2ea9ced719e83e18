"""ComfyUI's workflows in its API format: which inputs of which nodes are the prompt, the seed, ...

The format is what `Export (API)` writes and `POST /prompt` takes: nodes by id, each with a
`class_type` and `inputs`, whose values are plain or links `[id, output]` to other nodes
(execution.py and nodes.py of github.com/comfyanonymous/ComfyUI). Nodes are found from the one that
saves the image backwards, by the names of their inputs, so that custom nodes that keep to those are
found too.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import parse_json, read_file
from regforge.words import listed

Role = Literal[
    "prompt",
    "negative_prompt",
    "seed",
    "width",
    "height",
    "steps",
    "guidance_scale",
    "model",
    "filename",
    "image",
]
Place = tuple[str, str]
"""A node's id, and one of its inputs."""

_MOST_BYTES = 16 * 2**20
_TEXTS = ("text", "text_g", "text_l", "clip_l", "clip_g", "t5xxl", "llama", "prompt")
_SEEDS = ("seed", "noise_seed")
_MODELS = ("ckpt_name", "unet_name")
_SIDES = ("width", "height")
_VALUES = ("value", "text", "string", "int", "float", "number", *_SEEDS)
"""Inputs of nodes that hold a value for others, such as `PrimitiveInt`."""
_SETTINGS: tuple[str, ...] = (
    *("model", "negative_prompt", "width", "height", "steps", "guidance_scale"),
)


class WorkflowError(RegforgeError):
    """A workflow that cannot be used.

    Attributes:
        role: The key of `render.nodes` that it is about; None for the file.
    """

    exit_code = EXIT_USAGE

    def __init__(self, message: str, role: str | None = None) -> None:
        super().__init__(message)
        self.role = role


@dataclass(frozen=True)
class Workflow:
    """A workflow, and what in it is what.

    Attributes:
        nodes: As the file has them.
        places: The inputs of each role, none where nothing is sent. `image` names the node that
            saves the image, with an empty input.
    """

    nodes: Mapping[str, Mapping[str, Any]]
    places: Mapping[str, Sequence[Place]]

    @property
    def digest(self) -> str:
        """SHA-256 of what it says, 64 hex digits; how the file is indented changes nothing."""
        return hashlib.sha256(json.dumps(self.nodes, sort_keys=True).encode()).hexdigest()

    @property
    def output(self) -> str:
        """The id of the node that saves the image."""
        return self.places["image"][0][0]

    def settings(self) -> dict[str, Any]:
        """What the workflow says where a recipe says nothing: its size, steps, checkpoint, ..."""
        said = {role: self._value(role) for role in _SETTINGS}
        return {role: value for role, value in said.items() if value is not None}

    def _value(self, role: str) -> Any:
        places = self.places.get(role, ())
        values = [self.nodes[node]["inputs"][name] for node, name in places]
        return values[0] if values and all(value == values[0] for value in values) else None

    @property
    def scheduler(self) -> str:
        """Its sampler and scheduler, such as `dpmpp_2m karras`; `unknown` if it names none."""
        names = dict.fromkeys(
            value
            for name in ("sampler_name", "scheduler")
            for node in _upstream(self.nodes, self.output)
            if isinstance(value := self.nodes[node]["inputs"].get(name), str)
        )
        return " ".join(names) or "unknown"

    def filled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The nodes to send, with these values in place of the file's; one image at a time."""
        nodes: dict[str, Any] = copy.deepcopy(dict(self.nodes))
        for role, value in values.items():
            for node, name in self.places.get(role, ()):
                nodes[node]["inputs"][name] = value
        for node, _ in self.places.get("width", ()):
            if "batch_size" in nodes[node]["inputs"]:
                nodes[node]["inputs"]["batch_size"] = 1
        return nodes


def read_workflow(path: Path, named: Mapping[Role, tuple[str, ...]]) -> Workflow:
    """Read a workflow, and find its inputs.

    What `named` says of a role, such as `6.text`, goes before what is found; an empty list says
    that there is none.

    Raises:
        WorkflowError: It is none, or what makes an image its caption's is not found.
    """
    if not path.is_file():
        raise WorkflowError(f"there is no file {path}")
    try:
        nodes = parse_json(read_file(path, _MOST_BYTES))
    except OSError as error:
        raise WorkflowError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise WorkflowError(f"{path} is not JSON") from error
    if not (isinstance(nodes, dict) and nodes and all(map(_is_node, nodes.values()))):
        raise WorkflowError(f"{path} is not in ComfyUI's API format: save it with `Export (API)`")
    places: dict[str, Sequence[Place]] = {
        role: [_named(nodes, role, each) for each in names] for role, names in named.items()
    }
    places["image"] = places.get("image") or [(_saving(nodes), "")]
    found = _Found(nodes, places["image"][0][0])
    for role in get_args(Role):
        if role not in places:
            places[role] = [at for at in found.places(role) if at not in places.get("prompt", ())]
    for role in ("prompt", "seed"):
        if not places[role]:
            raise WorkflowError(
                f"no node of {path.name} is found for the {role}; name its input, such as `6.text`",
                role,
            )
    return Workflow(nodes, places)


def _is_node(node: Any) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    )


def _named(nodes: Mapping[str, Any], role: str, name: str) -> Place:
    """The place that somebody named."""
    node, _, key = (name, "", "") if role == "image" else name.rpartition(".")
    if node not in nodes:
        meant = "" if node or role == "image" else ", which looks like 6.text"
        raise WorkflowError(f"the workflow has no node {node or name!r}{meant}", role)
    inputs = nodes[node]["inputs"]
    if role != "image" and key not in inputs:
        kind = nodes[node]["class_type"]
        raise WorkflowError(
            f"node {node} ({kind}) has no input {key!r}; it has {listed(list(inputs))}", role
        )
    return node, key


def _saving(nodes: Mapping[str, Any]) -> str:
    """The node that saves the image."""
    ends = [node for node, each in nodes.items() if _is_link(each["inputs"].get("images"), nodes)]
    links = [link for each in nodes.values() for link in each["inputs"].values()]
    used = {link[0] for link in links if _is_link(link, nodes)}
    ends = [node for node in ends if node not in used]
    saving = [node for node in ends if nodes[node]["class_type"].startswith("Save")] or ends
    if len(saving) != 1:
        these = f"{listed(saving)} do" if saving else "none does"
        raise WorkflowError(
            f"one node must save the image, and {these}; name it, such as `9`", "image"
        )
    return saving[0]


def _is_link(value: Any, nodes: Mapping[str, Any]) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] in nodes


def _upstream(
    nodes: Mapping[str, Any], *start: str, over: Callable[[str], bool] = lambda _: True
) -> Iterator[str]:
    """Nodes and all that they depend on, nearest first, over the inputs that count."""
    waiting, seen = list(start), set[str]()
    for node in waiting:
        if node not in seen:
            seen.add(node)
            yield node
            links = ((name, link) for name, link in nodes[node]["inputs"].items() if over(name))
            waiting += [link[0] for _, link in links if _is_link(link, nodes)]


class _Found:
    """What is found from the node that saves the image backwards."""

    def __init__(self, nodes: Mapping[str, Any], output: str) -> None:
        self._nodes, self._output = nodes, output
        self._all = list(_upstream(nodes, output))
        self._samplers = [n for n in self._all if self._link(n, "latent_image") is not None]

    def places(self, role: str) -> list[Place]:
        """The inputs of a role; none where several nodes could be meant."""
        if role in _SIDES:
            sizes = [n for n in self._latents() if all(self._at(n, side) for side in _SIDES)]
            return self._only(self._literals(sizes, (role,)))
        find: dict[str, Callable[[], list[Place]]] = {
            "prompt": lambda: self._texts("positive", role),
            "negative_prompt": lambda: self._texts("negative", role),
            "seed": lambda: self._literals(self._samplers, _SEEDS, "noise"),
            "steps": lambda: self._only(self._literals(self._samplers, ("steps",), "sigmas")),
            "guidance_scale": self._guidance,
            "model": lambda: self._only(self._literals(self._all, _MODELS)),
            "filename": lambda: self._literals([self._output], ("filename_prefix",)),
        }
        return find[role]()

    def _latents(self) -> Iterator[str]:
        """Where latents come from; sizes are in models and conditioning too."""
        ends = filter(None, (self._link(n, "latent_image") for n in self._samplers))
        return _upstream(
            self._nodes, *ends, over=lambda name: name in ("latent_image", "samples", "latent")
        )

    def _only(self, places: list[Place]) -> list[Place]:
        return places if len(places) == 1 else []

    def _link(self, node: str, name: str) -> str | None:
        link = self._nodes[node]["inputs"].get(name)
        return link[0] if _is_link(link, self._nodes) else None

    def _at(self, node: str, name: str, depth: int = 8) -> Place | None:
        """Where the value of an input stands: there, or in the node that it comes from."""
        inputs = self._nodes[node]["inputs"]
        if name not in inputs or depth == 0:
            return None
        source = self._link(node, name)
        if source is None:
            return None if isinstance(inputs[name], list | dict) else (node, name)
        inside = (self._at(source, each, depth - 1) for each in (name, *_VALUES))
        return next(filter(None, inside), None)

    def _literals(self, nodes: list[str], names: tuple[str, ...], behind: str = "") -> list[Place]:
        """Where inputs of these names stand, in nodes and in what is linked to one of theirs."""
        ends = [self._link(node, behind) for node in nodes]
        nodes = [*nodes, *_upstream(self._nodes, *filter(None, ends))]
        found = (self._at(node, name) for node in nodes for name in names)
        return list(dict.fromkeys(filter(None, found)))

    def _guidance(self) -> list[Place]:
        """Flux's distilled guidance where there is one, else the scale of the sampler or guider."""
        chain = list(self._conditioning("positive"))
        distilled = self._literals(chain, ("guidance",))
        return self._only(distilled or self._literals(self._samplers, ("cfg",), "guider"))

    def _conditioning(self, side: str) -> Iterator[str]:
        """The nodes that a side of the guidance comes through, the captions' last."""
        for sampler in self._samplers:
            guider = self._link(sampler, "guider")
            names = (side, "conditioning") if side == "positive" else (side,)
            ends = [self._link(guider or sampler, name) for name in names]
            for node in _upstream(
                self._nodes,
                *filter(None, ends),
                over=lambda name: name == side or name.startswith("conditioning"),
            ):
                if self._nodes[node]["class_type"] == "ConditioningZeroOut":
                    break  # whatever it is made from, nothing of it is left
                yield node

    def _texts(self, side: str, role: str) -> list[Place]:
        """Where the text of a side of the guidance stands."""
        by_node = {n: self._literals([n], _TEXTS) for n in self._conditioning(side)}
        by_node = {
            node: texts
            for node, places in by_node.items()
            if (texts := [at for at in places if isinstance(self._text(at), str)])
        }
        found = list(dict.fromkeys(at for places in by_node.values() for at in places))
        if len(by_node) > 1 and len({self._text(at) for at in found}) > 1:
            nodes = listed([f"{node}.{name}" for node, name in found])
            raise WorkflowError(f"{nodes} may all be meant; name one, or a list of them", role)
        return found

    def _text(self, at: Place) -> Any:
        return self._nodes[at[0]]["inputs"][at[1]]
