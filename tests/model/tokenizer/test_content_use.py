"""How a chat template uses message contents, as its syntax tree shows."""

import pytest

from sftctl.model.tokenizer.content_use import ContentUse, content_use

LOOP = "{% for m in messages %}{{ m.role }}BODY{% endfor %}"
NOTHING = ContentUse()
STRIPS = ContentUse(strips=True)
TAG = ContentUse(frozenset({"</think>"}))
KNOWN = {
    "{{ m.content }}": NOTHING,
    "{{ '<s>' + m.role + m.content + '</s>' }}": NOTHING,
    "{% if loop.first and m.role != 'system' %}S{% endif %}{{ m.content }}": NOTHING,
    "{% if m.role == 'user' %}U{% elif m['role'] in ['a', 'b'] %}A{% endif %}": NOTHING,
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('') }}{% endif %}": (
        NOTHING
    ),
    "{% if m.content %}{{ m.content }}{% endif %}": NOTHING,
    "{% generation %}{{ m.content }}{% endgeneration %}": NOTHING,
    "{{ messages[0].role }}{{ messages | length }}{{ m.content | string }}": NOTHING,
    "{% if m.content is string %}{{ m.content }}{% endif %}": NOTHING,
    "{% if loop.index0 != -1 %}{{ m.content }}{% endif %}": NOTHING,
    "{% for n in messages[1:] %}{{ n.content }}{% endfor %}": NOTHING,
    "{% if m.content != '' %}T{% endif %}": NOTHING,
    "{{ m.role | upper }}{{ m.content }}": NOTHING,
    "{% if 'name' in m %}{{ m.name }}{% endif %}": NOTHING,
    "{% set ns.last = loop.index0 %}{% if loop.index0 > ns.last %}T{% endif %}": NOTHING,
    "{{ m['content'] | trim }}": STRIPS,
    "{{ m.content.strip() }}{{ m.content.lstrip('\\n') }}": STRIPS,
    "{% macro f(x) %}{{ x.rstrip() }}{% endmacro %}{{ f(m.content) }}": STRIPS,
    "{% if '</think>' in m.content %}T{% endif %}": TAG,
    "{% if '</think>' not in m['content'] %}T{% endif %}": TAG,
    "{{ m.content.split('</think>')[-1] }}": TAG,
    "{{ m.content.split('</think>', 1)[0] }}": TAG,
    "{{ m.content.replace('</think>', '') }}": TAG,
    "{% if m.content.startswith('</think>') %}T{% endif %}": TAG,
    "{% if not m.content.endswith('</think>') %}T{% endif %}": TAG,
    "{% if m.content == '</think>' %}T{% endif %}": TAG,
    "{% set text = m.content %}{% if '</think>' == text %}T{% endif %}": TAG,
}
UNKNOWN = [
    "{% if m.content | length > 10 %}T{% endif %}",
    "{% if m.content | length == 10 %}T{% endif %}",
    "{{ m.content | upper }}",
    "{{ m.content.upper() }}",
    "{{ m.content | trim('x') }}",
    "{{ m.content.strip('x ') }}",
    "{{ m.content | replace('a', 'b') }}",
    "{{ m.content[0] }}",
    "{{ m.content[1:] }}",
    "{{ m.content.split()[0] }}",
    "{{ m.content.split('a', messages | length)[0] }}",
    "{{ m.content.split(m.role)[0] }}",
    "{{ m.content.find('a') }}",
    "{{ m.content * 2 }}{{ m.content % 1 }}",
    "{% if m.content > 'a' %}T{% endif %}",
    "{% if m.content in 'abc' %}T{% endif %}",
    "{% if messages[0].content == m.content %}T{% endif %}",
    "{% set text = m.content %}{% if loop.index0 > text %}T{% endif %}",
    "{% set ns.text = m.content %}{% if ns.text == ns.other %}T{% endif %}",
    "{% for letter in m.content %}{{ letter }}.{% endfor %}",
    "{% for n in [m.content] %}{{ n }}{% endfor %}",
    "{% macro f(x) %}{{ x | upper }}{% endmacro %}{{ f(m.content) }}",
    "{% macro f(tools) %}{% if tools %}{{ tools | upper }}{% endif %}{% endmacro %}"
    "{{ f(m.content) }}",
    "{{ strftime_now('%d') }}{{ m.content }}",
    "{% if m.content is equalto 'a' %}T{% endif %}",
    "{% filter upper %}{{ m.content }}{% endfilter %}",
    "{% if m.content == 'a' | upper %}T{% endif %}",
    "{{ m.content",
]
OF_TOOLS = "{% macro f(x) %}{{ x | upper }}{{ x[0] }}{% endmacro %}"


@pytest.mark.parametrize("body", KNOWN)
def test_a_known_use_of_contents(body: str) -> None:
    assert content_use(LOOP.replace("BODY", body)) == KNOWN[body]


@pytest.mark.parametrize("body", UNKNOWN)
def test_any_other_use_is_unknown(body: str) -> None:
    assert content_use(LOOP.replace("BODY", body)) is None


@pytest.mark.parametrize(
    "test",
    [
        "tools",
        "tools is not none",
        "m.tool_calls",
        "'tool_calls' in m",
        "m.thinking is string and m.role == 'user'",
        "builtin_tools is defined",
        "not (builtin_tools is undefined or m.role == 'user')",
    ],
)
def test_code_for_rows_with_tools_or_reasoning_does_not_count(test: str) -> None:
    """Such rows are always made the long way."""
    for body in (f"{{% if {test} %}}BODY{{% endif %}}", f"{{{{ BODY if {test} else '' }}}}"):
        use = body.replace("BODY", "{{ f(m.content) }}" if "{%" in body else "f(m.content)")
        assert content_use(OF_TOOLS + LOOP.replace("BODY", use)) == NOTHING
        assert content_use(OF_TOOLS + LOOP.replace("BODY", use.replace(test, "m.role"))) is None


def test_what_is_not_a_string_is_not_a_content() -> None:
    body = (
        "{% if m.content is string %}A{% else %}{% for x in m.content %}BODY{% endfor %}{% endif %}"
    )
    assert content_use(LOOP.replace("BODY", body.replace("BODY", "{{ x[0] }}"))) == NOTHING
    other = body.replace("m.content is string", "m.role == 'user'")
    assert content_use(LOOP.replace("BODY", other)) is None


def test_names_that_the_template_sets_are_not_taken_for_absent() -> None:
    body = "{% if flag %}{{ m.content | upper }}{% endif %}"
    assert content_use(LOOP.replace("BODY", body)) == NOTHING
    assert content_use("{% set flag = 1 %}" + LOOP.replace("BODY", body)) is None
    tools = body.replace("flag", "tools")
    assert content_use("{% set tools = none %}" + LOOP.replace("BODY", tools)) == NOTHING
    assert content_use("{% set tools = [1] %}" + LOOP.replace("BODY", tools)) is None
