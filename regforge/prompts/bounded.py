"""Templates of strangers: Jinja in a sandbox in which nothing grows and nothing goes on for ever.

The sandbox keeps a template from what is not its business, but not from `{{ 'a' * 10**10 }}`. Here
everything that a template computes has a weight (characters, items, however deep), and all that it
does counts as an operation. Both have a limit, which is looked at before anything is multiplied and
after everything else. So a rendering ends soon, whatever the template; no clock is involved, and
what one machine renders the next one does too.

    weight       of a value; the sum of all that is in it
    growth       of a call: the product of the weights it is given, which no filter and no method
                 of a text exceeds, a number counting as much as it says (`center(1000)`)
    operations   of a rendering: passes of loops, outputs, operators, filters, tests and calls
"""

from __future__ import annotations

import functools
import re
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    ValuesView,
)
from contextlib import contextmanager
from pathlib import Path
from types import BuiltinMethodType
from typing import Any

from jinja2 import (
    Environment,
    StrictUndefined,
    Template,
    TemplateNotFound,
    TemplateSyntaxError,
    nodes,
)
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateRuntimeError
from jinja2.loaders import BaseLoader, split_template_path
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from regforge.files import read_text

_MOST_GROWTH = 10_000_000
_LARGEST_NUMBER = 10**18
_CONTAINERS = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
# A width of four digits and more, one that is given apart, and one that is itself a field.
_WIDE = re.compile(r"\d{4}|\*|\{[^{}]*\{")
_LARGEST_SOURCE = 50_000


@functools.lru_cache(maxsize=256)
def _made_of(*_of: object) -> list[Any]:
    """What was made of a template, for whoever makes it again; empty at first."""
    return []


class LimitExceeded(TemplateRuntimeError):
    """A template that computes too much."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox with limits.

    Args:
        folders: Where templates lie; the first that has one of a name wins.
        filters: In addition to Jinja's.
        most_characters: The weight of any value, and of what a template writes.
        most_operations: How much one rendering may do.
        forms: Whether a file may hold several templates, see `forms_of`; "a.j2#1" is the second.
    """

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
    intercepted_unops = frozenset(ImmutableSandboxedEnvironment.default_unop_table)

    def __init__(
        self,
        folders: Sequence[Path],
        filters: Mapping[str, Callable[..., Any]],
        *,
        most_characters: int,
        most_operations: int,
        forms: bool = False,
    ) -> None:
        self._most_characters = most_characters
        self._most_operations = self._left = most_operations
        super().__init__(
            loader=_Loader(folders, forms),
            undefined=StrictUndefined,
            autoescape=False,  # plain text, not HTML
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            finalize=self._output,
        )
        # Parts of a template that are constant are computed while it is compiled, by these filters.
        self._kind = (frozenset(filters.items()), most_characters, most_operations)
        self.globals.clear()
        del self.filters["random"]  # what is written follows from what is given alone
        self.filters.update(filters)
        tables: list[dict[str, Any]] = [self.filters, self.tests]
        for functions in tables:
            functions.update({name: self._bounded(each) for name, each in functions.items()})

    def parsed(self, name: str) -> tuple[nodes.Template, set[str]]:
        """Parse a template; also lists the names that it uses and does not set.

        Raises:
            TemplateError: It is no template, or there is none of that name.
            OSError: It cannot be read.
        """
        assert self.loader is not None
        source, _, _ = self.loader.get_source(self, name)
        kept = _made_of(self._kind, source, name, nodes.Template)
        if not kept:
            with _compiling():
                tree = self.parse(source, name)
                kept.append((tree, find_undeclared_variables(tree)))
        parsed: tuple[nodes.Template, set[str]] = kept[0]
        return parsed

    def compile(self, source: Any, *args: Any, **kwargs: Any) -> Any:
        """Compile a template, the same text once in a process."""
        kept = _made_of(self._kind, source, *args, *kwargs.items())
        if not kept:
            kept.append(super().compile(source, *args, **kwargs))
        return kept[0]

    def render(self, template: Template, values: Mapping[str, Any]) -> str:
        """Fill a template in; raises whatever its expressions run into."""
        self._left = self._most_operations
        return template.render(values)

    def counted(self, items: Iterable[Any], cost: int) -> Iterator[Any]:
        """Yield what a loop goes through, each pass at the cost of the loop's body."""
        for item in items:
            self._spend(cost)
            yield item

    def bounded(self, value: Any) -> Any:
        """Return the value, unless it is too large."""
        self._weigh(value)
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Carry an operator out, if its result is not too large."""
        self._spend(1)
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        if operator in ("*", "**"):
            self._check_growth(left, right)
        return self.bounded(super().call_binop(context, operator, left, right))

    def call_unop(self, context: Context, operator: str, arg: Any) -> Any:
        """Carry an operator out."""
        self._spend(1)
        return super().call_unop(context, operator, arg)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a macro, or a method of a value."""
        self._spend(1)
        method = getattr(obj, "__wrapped__", obj)  # Jinja wraps `str.format`
        if isinstance(method, BuiltinMethodType):
            if method.__name__ in ("format", "format_map"):
                _check_format(str(method.__self__))
            given = [value for key, value in kwargs.items() if not key.startswith("_")]
            self._check_growth(method.__self__, *args, *given)
        return self.bounded(super().call(context, obj, *args, **kwargs))

    def _load_template(self, *args: Any) -> Template:
        self._spend(1)
        with _compiling():
            return super()._load_template(*args)

    def _output(self, value: Any) -> Any:
        self._spend(1)
        return self.bounded(value)

    def concat(self, parts: Iterable[str]) -> str:
        """Join a text that is written piece by piece."""
        left, text = self._most_characters, []
        for part in parts:
            left -= len(part)
            if left < 0:
                self._refuse_size()
            text.append(part)
        return "".join(text)

    def _bounded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or a test within the limits."""
        formats = function is self.filters["format"]

        @functools.wraps(function)  # with what it says about the arguments that Jinja adds
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self._spend(1)
            if formats:
                _check_format(str(args[0]))
            self._check_growth(*args, *kwargs.values())
            return self.bounded(function(*args, **kwargs))

        return bounded

    def _spend(self, operations: int) -> None:
        self._left -= operations
        if self._left < 0:
            raise LimitExceeded(f"it takes more than {self._most_operations:,} operations")

    def _check_growth(self, *given: Any) -> None:
        growth = 1
        for value in given:
            growth *= max(1, abs(value) if isinstance(value, int) else self._weigh(value))
            if growth > _MOST_GROWTH:
                self._refuse_size()

    def _weigh(self, value: Any) -> int:
        if type(value) is str:
            weight = len(value)
        else:
            weight, todo = 0, [value]
            while todo and weight <= self._most_characters:
                each = todo.pop()
                weight += 1
                if isinstance(each, str | bytes):
                    weight += len(each)
                elif isinstance(each, int):
                    if abs(each) > _LARGEST_NUMBER:
                        raise LimitExceeded("a number has more than 18 digits")
                elif isinstance(each, dict):
                    todo += [*each.keys(), *each.values()]
                elif isinstance(each, _CONTAINERS):
                    todo += each
        if weight > self._most_characters:
            self._refuse_size()
        return weight

    def _refuse_size(self) -> None:
        raise LimitExceeded(f"a text or list is larger than {self._most_characters:,} characters")


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise LimitExceeded(f"a format with a width: {text[:40]!r}")


class _Code(CodeGenerator):
    """Writes the Python of a template, with the limits where Jinja asks nobody."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        """Bound what joins values: texts, lists, mappings."""
        joins = isinstance(node, nodes.Concat | nodes.List | nodes.Dict)
        if not joins and not (isinstance(node, nodes.Tuple) and node.ctx == "load"):
            return super().visit(node, *args, **kwargs)
        self.write("environment.bounded(")
        super().visit(node, *args, **kwargs)
        self.write(")")
        return None

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        """Count the passes of a loop."""
        if node.recursive:
            self.fail("a recursive loop has no place here", node.lineno)
        cost = nodes.Const(1 + sum(1 for each in node.body for _ in each.find_all(nodes.Node)))
        counted = nodes.EnvironmentAttribute("counted")
        node.iter = nodes.Call(counted, [node.iter, cost], [], None, None, lineno=node.lineno)
        super().visit_For(node, frame)


BoundedEnvironment.code_generator_class = _Code


def forms_of(text: str) -> list[str]:
    """Split a text into templates, with lines of nothing but dashes between them.

    Each keeps its place in the text: as many lines are before it, so that errors name its own.
    """
    lines = text.split("\n")
    cuts = [n for n, line in enumerate(lines) if re.fullmatch(r"-{3,}\s*", line)]
    starts, ends = [0, *(cut + 1 for cut in cuts)], [*cuts, len(lines)]
    return [
        "\n" * start + "\n".join(lines[start:end]) for start, end in zip(starts, ends, strict=True)
    ]


class _Loader(BaseLoader):
    """Templates of some folders, and of nothing below or beside them that is no ordinary file."""

    def __init__(self, folders: Sequence[Path], forms: bool) -> None:
        self._folders = folders
        self._forms = forms

    def get_source(self, _environment: Environment, template: str) -> tuple[str, str, None]:
        """Read a template; None says that it is not watched for changes."""
        numbered = re.fullmatch(r"(.*)#(\d+)", template) if self._forms else None
        name = Path(*split_template_path(numbered[1] if numbered else template))
        for folder in self._folders:
            try:
                text = read_text(folder / name, _LARGEST_SOURCE)
                if self._forms:
                    text = forms_of(text)[int(numbered[2]) if numbered else 0]
                return text, str(folder / name), None
            except (FileNotFoundError, NotADirectoryError):
                continue
        raise TemplateNotFound(template, f"there is no file {template}")


@contextmanager
def _compiling() -> Iterator[None]:
    """Turn what the parser, Jinja's compiler and Python's run into, into errors of the template."""
    try:
        yield
    except UnicodeDecodeError:
        raise
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise TemplateSyntaxError("parts of it are nested too deeply", 1) from error
    except (ValueError, OverflowError) as error:
        raise TemplateSyntaxError("a number in it cannot be read", 1) from error
