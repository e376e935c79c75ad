"""Which chat templates are proved not to look at message contents."""

import pytest

from sftctl.model.tokenizer.template_analysis import is_content_blind

LOOP = "{% for m in messages %}{{ m.role }}BODY{% endfor %}"


@pytest.mark.parametrize(
    "body",
    [
        "{{ m.content }}",
        "{{ m['content'] | trim }}",
        "{{ '<s>' + m.role + m.content + '</s>' }}",
        "{% if loop.first and m.role != 'system' %}S{% endif %}{{ m.content }}",
        "{% if m.role == 'user' %}U{% elif m['role'] == 'assistant' %}A{% endif %}{{ m.content }}",
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('') }}{% endif %}",
        "{% if m.content %}{{ m.content }}{% endif %}",
        "{% generation %}{{ m.content }}{% endgeneration %}",
        "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c | tojson }}{% endfor %}{% endif %}",
        "{{ messages[0].role }}{{ messages | length }}{{ m.content }}",
        "{% if m.content is string %}{{ m.content }}{% endif %}",
        "{% if loop.index0 != -1 %}{{ m.content }}{% endif %}",
        "{% for n in messages[1:] %}{{ n.content }}{% endfor %}",
    ],
)
def test_a_template_that_only_writes_contents_is_blind(body: str) -> None:
    assert is_content_blind(LOOP.replace("BODY", body))


@pytest.mark.parametrize(
    "body",
    [
        "{% if '</think>' in m.content %}T{% endif %}",
        "{{ m.content.split('</think>')[-1] }}",
        "{% if m.content == 'stop' %}T{% endif %}",
        "{% if m.content != '' %}T{% endif %}",
        "{% if m.content | length > 10 %}T{% endif %}",
        "{{ m.content | upper }}",
        "{{ m.content | trim('x') }}",
        "{{ m.content | replace('a', 'b') }}",
        "{{ m.content[0] }}",
        "{{ m.content[1:] }}",
        "{% set text = m.content %}{% if text == 'a' %}T{% endif %}",
        "{% for letter in m.content %}{{ letter }}.{% endfor %}",
        "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(m.content) }}",
        "{{ strftime_now('%d') }}{{ m.content }}",
        "{% if m.content is equalto 'a' %}T{% endif %}",
        "{{ m.content",
        "{% for n in [m.content] %}{{ n }}{% endfor %}",
    ],
)
def test_a_template_that_may_look_into_contents_is_not(body: str) -> None:
    assert not is_content_blind(LOOP.replace("BODY", body))
