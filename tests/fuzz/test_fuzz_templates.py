"""Templates of strangers: whatever they ask for, they reach nothing but text, and stop after a known amount of work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from fuzz_support import TEXT, fuzz
from hypothesis import example, given
from hypothesis import strategies as st

from agent.briefing.profile import Child
from agent.briefing.prompt import TEMPLATE_TEXT_MAX, PromptWriter
from agent.briefing.prompt_template import _METHODS, MAX_WORK, VARIABLES, TemplateCompiler, TemplateRefused, Words

COMPILER = TemplateCompiler()
WRITER = PromptWriter(token_budget=100_000)

NAMES = st.sampled_from([*VARIABLES, "loop", "self", "_written", "namespace", "lipsum", "cycler", "range", "x", "i"])
ATTRIBUTES = st.sampled_from(
    "__class__ __mro__ __base__ __subclasses__ __globals__ __init__ __dict__ __getattribute__ __reduce__ __format__ "
    "__doc__ _self func_globals gi_frame format format_map encode translate maketrans upper join split index length "
    "previtem nextitem changed cycle depth render environment eval_ctx name parent vars exported_vars".split()
)
FILTERS = st.sampled_from(
    "attr map select selectattr reject groupby format xmlattr tojson pprint urlize random batch slice sum dictsort "
    "filesizeformat indent center wordwrap forceescape safe items join replace list string sort unique upper int "
    "truncate round default length first last reverse _written".split()
)
CONSTANTS = st.sampled_from(
    ["'a'", "''", "0", "7", "-1", "1e9", "9" * 30, "none", "true", "'__class__'", "'{0.__class__}'", "'%s'", "'x' * 3"]
)


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(inner, inner)
    return st.one_of(
        st.builds("{}.{}".format, inner, ATTRIBUTES),
        st.builds("{}.{}({})".format, inner, ATTRIBUTES, inner),
        st.builds("{}['{}']".format, inner, ATTRIBUTES),
        st.builds("{}[{}]".format, inner, inner),
        st.builds("{}[{}:{}]".format, inner, CONSTANTS, CONSTANTS),
        st.builds("({})|{}".format, inner, FILTERS),
        st.builds("({})|{}({})".format, inner, FILTERS, inner),
        st.builds("({})|{}({}, {})".format, inner, FILTERS, inner, inner),
        st.builds("({})|attr('{}')".format, inner, ATTRIBUTES),
        st.builds("[{0}, {1}]|join({0})".format, inner, inner),
        pairs.map(" ~ ".join),
        pairs.map(" + ".join),
        pairs.map(" * ".join),
        pairs.map(" ** ".join),
        pairs.map(" in ".join),
        pairs.map(" if true else ".join),
        st.builds("{{'a': {}}}".format, inner),
        st.builds("{}({})".format, inner, inner),
    )


EXPRESSIONS = st.recursive(NAMES | CONSTANTS, grown, max_leaves=6)
STATEMENTS = st.one_of(
    EXPRESSIONS.map("{{{{ {} }}}}".format),
    EXPRESSIONS.map("{{% if {} %}}a{{% endif %}}".format),
    st.builds("{{% set x = {} %}}{{{{ x }}}}".format, EXPRESSIONS),
    st.builds("{{% for i in {} %}}{{{{ i ~ {} }}}}{{% endfor %}}".format, EXPRESSIONS, EXPRESSIONS),
    st.builds(
        "{{% for i in {0} %}}{{% for x in {0} %}}{{{{ {1} }}}}{{% endfor %}}{{% endfor %}}".format,
        EXPRESSIONS, EXPRESSIONS,
    ),
    EXPRESSIONS.map("{{% include {} %}}".format),
    EXPRESSIONS.map("{{% import {} as x %}}".format),
    EXPRESSIONS.map("{{% macro x() %}}{{{{ {} }}}}{{{{ x() }}}}{{% endmacro %}}{{{{ x() }}}}".format),
    EXPRESSIONS.map("{{% filter {} %}}a{{% endfilter %}}".format),
    EXPRESSIONS.map("{{% with x = {} %}}{{{{ x }}}}{{% endwith %}}".format),
    EXPRESSIONS.map("{{% call {} %}}{{% endcall %}}".format),
    TEXT,
)  # fmt: skip
TEMPLATES = st.lists(STATEMENTS, min_size=1, max_size=4).map("".join)


class Watched(str):
    """A value of a template that notes which of its attributes the template asks for."""

    __slots__ = ()
    asked: ClassVar[set[str]] = set()

    def __getattribute__(self, name: str) -> Any:
        Watched.asked.add(name)
        return super().__getattribute__(name)


# Neither can be taken back: it is told when to listen.
_listening: list[str] | None = None
_HARMLESS = ("object.__getattr__", "object.__setattr__", "code.__new__", "sys._getframe")


def _heard(event: str, _: tuple[Any, ...]) -> None:
    if _listening is not None and event not in _HARMLESS:
        _listening.append(event)


sys.addaudithook(_heard)


@contextmanager
def audited() -> Iterator[list[str]]:
    """What the interpreter does meanwhile that reaches outside: files, imports, code, sockets, processes."""
    global _listening
    _listening = found = []
    try:
        yield found
    finally:
        _listening = None


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many calls of functions, Python's and built-in, are made meanwhile."""
    calls = [0]

    def count(_frame: Any, event: str, _argument: Any) -> None:
        calls[0] += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(before)


BOMBS = [
    "{% for i in child_name %}" * 30 + "x" + "{% endfor %}" * 30,
    "{% for i in child_interests %}{% for x in child_interests %}"
    "{{ i|replace('', child_name)|replace('', child_name) }}"
    "{% endfor %}{% endfor %}",
    "{% set x = child_name %}" + "{% set x = x ~ x ~ x %}" * 100 + "{{ x }}",
    "{{ child_name" + "|replace('', child_name)" * 40 + " }}",
    "{{ '%999999999d' % 1 }}{{ 9 ** 9 ** 9 }}{{ 'a' * 999999999 }}{{ '{:>999999999}'.format(1) }}",
    "{{ range(999999999)|list }}{{ lipsum(n=1000) }}{{ 'a'.ljust(999999999) }}{{ 'a'|center(999999999) }}",
    "{{ 1|round(999999999) }}{{ 'a'|indent(999999999) }}{{ ['a']|batch(99999999, 'x')|list }}",
    "{{ " + "(" * 200 + "1" + ")" * 200 + " }}",
    "{{ " + "-" * 900 + "1 }}",
    "{{ 1" + " + 1" * 5000 + " }}",
    "{{ child_name" + ".upper()" * 3000 + " }}",
    "{% if child_name %}" * 120 + "{% endif %}" * 120,
]


@fuzz()
@given(source=TEMPLATES)
@example(source="{{ ''.__class__.__mro__[1].__subclasses__() }}")
@example(source="{{ child_name|attr('__class__') }}")
@example(source="{{ child_name['__class__'] }}{{ child_name[child_age] }}")
@example(source="{{ '{0.__class__}'.format(child_name) }}")
@example(source="{{ [child_name]|map(attribute='__class__')|list }}")
@example(source="{{ self.__init__.__globals__ }}{{ loop.__class__ }}{{ _written.__globals__ }}")
@example(source="{% set _written = child_name %}{{ child_name|_written('a', true) }}")
def test_a_template_reaches_nothing_but_text(source: str) -> None:
    Watched.asked.clear()
    values: dict[str, Any] = dict.fromkeys(VARIABLES, Watched("Asha"))
    values["child_interests"] = Words((Watched("dogs"), Watched("cats")))
    try:
        template = COMPILER.compile(source)
        Watched.asked.clear()
        with audited() as outside:
            text = template.render(values)
    except TemplateRefused:
        text = ""
    else:
        assert not outside
    assert Watched.asked <= _METHODS | {"__class__", "__html__", "__str__", "__iter__", "__len__"}
    for trace in ("<class ", "<built-in", "<function", "<bound method", "object at 0x", "<module"):
        assert trace not in text or trace in source


@fuzz()
@given(source=TEMPLATES)
@example(source=BOMBS[0])
@example(source=BOMBS[1])
@example(source=BOMBS[2])
@example(source=BOMBS[3])
@example(source=BOMBS[4])
@example(source=BOMBS[5])
@example(source=BOMBS[6])
@example(source=BOMBS[7])
@example(source=BOMBS[8])
@example(source=BOMBS[9])
@example(source=BOMBS[10])
@example(source=BOMBS[11])
def test_a_template_stops_after_a_known_amount_of_work(source: str) -> None:
    child = Child("A" * 500, 6, "x" * 500, "y" * 500, ("z" * 500,) * 100)
    with counted() as calls:
        prompt = WRITER.write(source, child)
    assert calls[0] < MAX_WORK
    assert len(prompt.text) < TEMPLATE_TEXT_MAX + 20_000
    assert "\x00" in source or prompt.text
