"""Templates that come from outside: a small, safe part of Jinja2, whose cost is known before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agent.briefing.prompt_text import HOLE, NAME_HOLE, USED
from agent.errors import ToyError

VARIABLES: Final = ("child_name", "child_age", "age_group", "child_gender", "child_interests", "emojiList")
"""What the contract lets a template ask for."""

MAX_SOURCE: Final = 100_000
MAX_TAGS: Final = 500
MAX_NODES: Final = 6000
MAX_DEPTH: Final = 40
MAX_WORK: Final = 2_000_000
"""Characters that rendering may touch at worst, those not written included: some tens of milliseconds."""
NAME_MAX: Final = 40
WORD_MAX: Final = 60
WORDS_MAX: Final = 20
_VALUE: Final = 1300
"""No value given to a template is longer; only `child_interests` is a list, of `WORDS_MAX` entries of `WORD_MAX`."""
_LIST_MAX: Final = 64
_LOOP_COST: Final = 10

_FILTERS: Final = frozenset(
    # One word each would take a page.
    "abs capitalize count d default first float int join last length list lower replace reverse round sort string "
    "title trim truncate unique upper wordcount".split()
)
_TESTS: Final = frozenset(
    # As above.
    "boolean defined divisibleby eq equalto even false float ge gt in integer iterable le lower lt mapping ne none "
    "number odd sequence string true undefined upper".split()
)
_METHODS: Final = frozenset(
    {"capitalize", "endswith", "join", "lower", "startswith", "split", "strip", "title", "upper"}
)
_LOOP: Final = frozenset(["index", "index0", "revindex", "revindex0", "first", "last", "length"])
_FORGIVING: Final = (nodes.CondExpr, nodes.Or)


class TemplateRefused(ToyError):
    """The template does not parse, or asks for more than a prompt needs; the message says what."""


class Missing(Undefined):
    """A value nobody knows: empty, false, smaller and larger than nothing, and never an error."""

    __slots__ = ()

    def _self(self, *_: Any, **__: Any) -> Missing:
        return self

    def _false(self, *_: Any) -> bool:
        return False

    __add__ = __radd__ = __sub__ = __rsub__ = __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = _self  # type: ignore[assignment]
    __neg__ = __pos__ = __getitem__ = __call__ = _self  # type: ignore[assignment]
    __lt__ = __le__ = __gt__ = __ge__ = _false  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        if name[:2] == "__":
            raise AttributeError(name)
        return self

    def __contains__(self, _: object) -> bool:
        return False

    def __int__(self) -> int:  # type: ignore[override]
        return 0

    def __float__(self) -> float:  # type: ignore[override]
        return 0.0


class Words(tuple[str, ...]):
    """Several words: a list for a loop, with commas where a template writes it out."""

    __slots__ = ()

    def __str__(self) -> str:
        return ", ".join(self)


@jinja2.pass_context
def _written(context: Context, value: Any, names: str, forgiving: bool) -> str:
    """What a `{{ … }}` writes: the value between the marks of the variables in it, or a hole."""
    used = names.split()
    text = "" if isinstance(value, Undefined) or value is None else str(value)
    unknown = [name for name in used if isinstance(context.resolve(name), Undefined)]
    if not text.strip() or (unknown and not forgiving):
        return NAME_HOLE if unknown == ["child_name"] else HOLE
    marks = "".join(
        f"{USED}{VARIABLES.index(name)}{USED}" for name in used if name in VARIABLES and name not in unknown
    )
    return text + marks


class Template:
    """A compiled template. `render` writes holes and marks of `prompt_text` for the caller to resolve."""

    def __init__(self, compiled: jinja2.Template, iterated: frozenset[str]) -> None:
        self._compiled = compiled
        self.iterated = iterated
        """Variables that the template loops over; their entries carry no marks."""

    def render(self, values: Mapping[str, Any]) -> str:
        """Raises TemplateRefused where rendering fails."""
        known = {name: value for name, value in values.items() if value not in (None, "", ())}
        try:
            return self._compiled.render(known)
        except Exception as error:  # whatever it is, the default prompt takes over
            raise TemplateRefused(f"the template cannot be rendered: {type(error).__name__}") from error


class TemplateCompiler:
    """Compiles templates in a sandbox. Construct once: an environment costs some milliseconds."""

    def __init__(self) -> None:
        self._environment = ImmutableSandboxedEnvironment(undefined=Missing)
        self._environment.globals.clear()
        self._environment.filters["_written"] = _written

    def compile(self, source: str) -> Template:
        """Raises TemplateRefused."""
        if len(source) > MAX_SOURCE:
            raise TemplateRefused(f"the template has {len(source)} characters, {MAX_SOURCE} are allowed")
        if source.count("{{") + source.count("{%") + source.count("{#") > MAX_TAGS:
            raise TemplateRefused(f"the template has more than {MAX_TAGS} tags")
        try:
            tree = self._environment.parse(source)
            guard = _Guard()
            guard.check(tree)
            return Template(self._environment.from_string(tree), frozenset(guard.iterated))
        except jinja2.TemplateSyntaxError as error:
            raise TemplateRefused(f"the template does not parse: line {error.lineno}") from None
        except (RecursionError, SyntaxError, MemoryError, ValueError) as error:
            raise TemplateRefused(f"the template is too deep: {type(error).__name__}") from None


class _Guard:
    """Walks a template's tree: refuses what is not listed here, bounds what it could cost, marks the output.

    A size is the most characters an expression can have, and a statement's cost is what its expressions have. There
    is no multiplication, no recursion and no range, so both only add up, except in loops (times the entries) and in
    `replace` and `join`.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sizes: dict[str, int] = {}
        self.iterated: set[str] = set()

    def check(self, tree: nodes.Template) -> None:
        if self._body(tree.body, 0) > MAX_WORK:
            raise TemplateRefused(f"the template could cost more than {MAX_WORK} steps")

    def _enter(self, depth: int) -> None:
        self._count += 1
        if self._count > MAX_NODES or depth > MAX_DEPTH:
            raise TemplateRefused("the template is too long or too deep")

    def _body(self, body: Sequence[nodes.Node], depth: int) -> int:
        return self._bounded(sum(self._statement(node, depth + 1) for node in body))

    @staticmethod
    def _bounded(size: int) -> int:
        if size > MAX_WORK:
            raise TemplateRefused(f"the template could cost more than {MAX_WORK} steps")
        return size

    def _statement(self, node: nodes.Node, depth: int) -> int:
        self._enter(depth)
        match node:
            case nodes.Output():
                size = sum(self._size(part, depth) for part in node.nodes)
                node.nodes = [part if isinstance(part, nodes.TemplateData) else self._mark(part) for part in node.nodes]
                return size
            case nodes.If():
                # Only one branch is written, but all of them are bounded.
                branches = (node.body, node.elif_, node.else_)
                return self._size(node.test, depth) + sum(self._body(part, depth) for part in branches)
            case nodes.For(recursive=False, target=nodes.Name()):
                size = self._size(node.iter, depth)
                entries, entry = self._entries(node.iter, size)
                self._set(node.target, entry)
                self.iterated.update(name.name for name in _names(node.iter))
                each = self._size(node.test, depth) + self._body(node.body, depth) + _LOOP_COST
                return self._bounded(size + entries * each + self._body(node.else_, depth))
            case nodes.Assign(target=nodes.Name()):
                size = self._size(node.node, depth)
                self._set(node.target, size)
                return size
            case _:
                raise TemplateRefused(f"the template uses {type(node).__name__}, which prompts may not")

    def _entries(self, node: nodes.Node, size: int) -> tuple[int, int]:
        """How many entries a loop over `node` may have, and the size of one."""
        match node:
            case nodes.Name(name="child_interests"):
                return WORDS_MAX, WORD_MAX
            case nodes.List() | nodes.Tuple():
                return len(node.items), size
            case nodes.Getitem(arg=nodes.Slice()):
                return self._entries(node.node, size)
            case nodes.Filter(name="sort" | "unique" | "list" | "reverse") if node.node is not None:
                return self._entries(node.node, size)
            case _:
                return size, size

    def _set(self, target: nodes.Node, size: int) -> None:
        assert isinstance(target, nodes.Name)
        if target.name in VARIABLES or target.name.startswith("_"):
            raise TemplateRefused("the template changes a variable it was given")
        self._sizes[target.name] = max(size, self._sizes.get(target.name, 0))

    def _size(self, node: nodes.Node | None, depth: int) -> int:
        """The most characters `node` can have. Raises TemplateRefused for what is not allowed."""
        if node is None:
            return 0
        self._enter(depth)
        inner = depth + 1
        match node:
            case nodes.TemplateData():
                return len(node.data)
            case nodes.Const():
                return self._bounded(len(str(node.value)))
            case nodes.Name():
                return self._sizes.get(node.name, _VALUE)
            case nodes.List() | nodes.Tuple():
                if len(node.items) > _LIST_MAX:
                    raise TemplateRefused("the template has a list that is too long")
                return self._bounded(sum(self._size(item, inner) + 4 for item in node.items))
            case nodes.Concat():
                return self._bounded(sum(self._size(part, inner) for part in node.nodes))
            case nodes.And() | nodes.Or() | nodes.Add() | nodes.Sub() | nodes.Div() | nodes.FloorDiv():
                return self._bounded(self._size(node.left, inner) + self._size(node.right, inner) + 20)
            case nodes.Not() | nodes.Neg() | nodes.Pos():
                return self._size(node.node, inner) + 1
            case nodes.CondExpr():
                return self._bounded(sum(self._size(part, inner) for part in (node.test, node.expr1, node.expr2)))
            case nodes.Compare():
                self._size(node.expr, inner)
                for operand in node.ops:
                    self._size(operand.expr, inner)
                return 5
            case nodes.Getitem(arg=nodes.Slice() as cut):
                for part in (cut.start, cut.stop, cut.step):
                    self._size(part, inner)
                return self._size(node.node, inner)
            case nodes.Getitem(arg=nodes.Const(value=int())):
                return self._size(node.node, inner)
            case nodes.Getattr(node=nodes.Name(name="loop"), attr=attribute) if attribute in _LOOP:
                return 20
            case nodes.Call(node=nodes.Getattr(attr=method) as target, kwargs=[], dyn_args=None, dyn_kwargs=None) if (
                method in _METHODS
            ):
                return self._applied(method, target.node, node.args, inner)
            case nodes.Filter(name=name, dyn_args=None, dyn_kwargs=None) if name in _FILTERS and node.node is not None:
                if name == "sort" or name == "unique":
                    _no_keywords(node.kwargs, "reverse", "case_sensitive")
                else:
                    _no_keywords(node.kwargs, "default_value", "boolean", "d", "length", "end", "killwords")
                return self._applied(name, node.node, [*node.args, *(pair.value for pair in node.kwargs)], inner)
            case nodes.Test(name=name, kwargs=[], dyn_args=None, dyn_kwargs=None) if name in _TESTS:
                for part in (node.node, *node.args):
                    self._size(part, inner)
                return 5
            case _:
                raise TemplateRefused(f"the template uses {type(node).__name__}, which prompts may not")

    def _applied(self, name: str, target: nodes.Node, arguments: Sequence[nodes.Node], depth: int) -> int:
        size = self._size(target, depth)
        sizes = [self._size(argument, depth) for argument in arguments]
        if name in ("replace", "join"):
            return self._bounded((size + 1) * (sum(sizes) + 1))
        if name == "round" and arguments and not isinstance(arguments[0], nodes.Const):
            raise TemplateRefused("the template rounds by a variable")
        # Upper case may triple a character (ŉ, ΐ); everything else is not longer than its parts.
        return self._bounded(3 * size + sum(sizes) + 20)

    def _mark(self, node: nodes.Expr) -> nodes.Expr:
        free = sorted({name.name for name in _names(node) if name.name not in self._sizes and name.name != "loop"})
        forgiving = isinstance(node, _FORGIVING) or any(
            isinstance(part, _FORGIVING) or (isinstance(part, nodes.Filter) and part.name in ("default", "d"))
            for part in node.find_all((*_FORGIVING, nodes.Filter))
        )
        if isinstance(node, nodes.Filter) and node.name in ("default", "d"):
            forgiving = True
        arguments = [nodes.Const(" ".join(free)), nodes.Const(forgiving)]
        marked = nodes.Filter(node, "_written", arguments, [], None, None)
        marked.set_lineno(node.lineno)
        return marked


def _names(node: nodes.Node) -> list[nodes.Name]:
    return [node] if isinstance(node, nodes.Name) else list(node.find_all(nodes.Name))


def _no_keywords(pairs: Sequence[nodes.Keyword | nodes.Pair], *allowed: str) -> None:
    for pair in pairs:
        if pair.key not in allowed:
            raise TemplateRefused(f"the template gives a filter {pair.key}, which prompts may not")
