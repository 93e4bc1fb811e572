"""Whatever a template or a value is, a prompt comes out, and no tag, hole or mark stands in it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.briefing.profile import Child
from agent.briefing.prompt import MEMORIES_MAX, MEMORY_MAX, TEMPLATE_TEXT_MAX, PromptWriter
from agent.briefing.prompt_template import VARIABLES
from agent.briefing.prompt_text import PRIVATE

WRITER = PromptWriter(token_budget=1500)
PIECES = st.sampled_from(
    [
        *("{{ " + name + " }}" for name in (*VARIABLES, "weather", "loop.index")),
        *("{% if " + name + " %}" for name in VARIABLES),
        "{{ child_name | upper | replace('a', child_name) }}",
        "{{ child_interests | join(child_name) }}",
        "{% endif %}",
        "{% else %}",
        "{% for i in child_interests %}",
        "{% for i in child_name %}",
        "{{ i }}",
        "{% endfor %}",
        "{% set x = x ~ child_name %}",
        "{{ x }}",
        "{% raw %}",
        "{% endraw %}",
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "{{ '{{' }}",
        "<memory>",
        "</memory>",
        "\n",
        ". ",
        ", who is ",
        "(",
        ")",
        "Name: ",
        "Be kind.",
        "नमस्ते। ",
        "\ue000",
        "\ue0025\ue002",
        "{{ child_age + 1 }}",
        "{{ child_age / 0 }}",
        "{{ child_name[99] }}",
        "{{ child_age.upper() }}",
        "{{ child_name | int }}",
        "{{ child_age | first }}",
        "{{ child_age | join }}",
        "{{ none | round }}",
        "{{ [child_name] | sum }}",
        "{{ 1e999 | int }}",
    ]
)
TEMPLATES = st.lists(PIECES | st.text(max_size=8), max_size=14).map("".join)
TEXTS = st.text(max_size=60)
CHILDREN = st.none() | st.builds(
    Child,
    TEXTS,
    st.none() | st.integers(0, 120),
    st.none() | TEXTS,
    st.none() | TEXTS,
    st.lists(TEXTS, max_size=30).map(tuple),
)


@settings(max_examples=250)
@given(TEMPLATES, CHILDREN, st.lists(TEXTS, max_size=30))
def test_a_prompt_always_comes_out_clean(template: str, child: Child | None, memories: list[str]) -> None:
    prompt = WRITER.write(template, child, memories)
    assert "{{" not in prompt.text
    assert "{%" not in prompt.text
    assert not PRIVATE.search(prompt.text)
    assert "Missing" not in prompt.text or "Missing" in template + "".join(memories) + repr(child)
    assert 0 < prompt.stable_length <= len(prompt.text)
    assert len(prompt.text) < TEMPLATE_TEXT_MAX + MEMORIES_MAX * (MEMORY_MAX + 3) + 8000
    assert prompt.text.count("\n<memory>\n") <= 1
    # The same again: nothing is left over from one prompt to the next.
    assert WRITER.write(template, child, memories) == prompt


@settings(max_examples=100)
@given(TEXTS, st.lists(TEXTS, max_size=5))
def test_no_value_opens_a_block_or_begins_a_line(name: str, memories: list[str]) -> None:
    text = WRITER.write("You talk to {{child_name}}.", Child(name), memories).text.split("your rules.", 1)[1]
    assert text.count("<memory>") == text.count("</memory>") <= 1
    assert len(text.splitlines()) <= 6 + len(memories)
