"""Templates that this program compiles write what they write with transformers."""

from typing import Any

import pytest

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import SftctlError
from sftctl.model.tokenizer import templates
from sftctl.model.tokenizer.sandbox import compiled
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer

HF = load_tokenizer(str(SAMPLE_TOKENIZER)).hf
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "  Be kind\n", "items": "own", "name": None},
    {"role": "user", "content": "a {0} {x.__class__} <b>'é'"},
    {"role": "assistant", "content": "", "reasoning": "hm", "tool_calls": [{"id": "1"}]},
    {"role": "assistant", "content": "<think>\nso\n</think>\n\nYes", "thinking": ""},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]

LOOP = "{% for m in messages %}BODY\n{% endfor %}"
BODIES = [
    "{{ m.role }}{{ m['content'] }}{{ m.nothing }}{{ m.name is defined }}{{ m.items is callable }}",
    "{{ m.content.strip('\\n') }}{{ m.content.split('</think>')[-1].lstrip() }}{{ m.content[0] }}",
    "{{ m.content.startswith('a') }}{{ '</think>' in m.content }}{{ m.content.upper().lower() }}",
    "{{ loop.first }}{{ loop.index0 }}{{ loop.last }}{{ loop.length }}{{ loop.previtem.role }}",
    "{{ loop.nextitem is defined }}{{ loop.revindex }}{{ loop.cycle('a', 'b') }}{{ loop.nothing }}",
    "{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.reasoning }}{{ m | length }}{{ m | tojson }}",
    "{% for k, v in m.items() %}{{ k }}{% endfor %}",
    "{% generation %}{{ m.content }}{% endgeneration %}",
    "{% if loop.index0 == 1 %}{% continue %}{% elif loop.index0 == 2 %}{% break %}{% endif %}x",
    "{{ '{}-{x}'.format(m.role, x=1) }}{{ '%s' % m.role }}{{ m.role ~ 1 }}",
    "{{ m.content.format(1, x=2) }}",
    "{{ m.__class__ }}{{ m.content.__class__ }}{{ m.update({'a': 1}) }}",
    "{{ [1].append(2) }}",
    "{{ m.content.nothing.more }}",
    "{{ bos_token }}{{ eos_token }}{{ tools | tojson(indent=2) }}{{ documents }}",
    "{{ add_generation_prompt }}{{ range(3) | list }}{{ dict(a=1) }}{{ dict.fromkeys('ab') }}",
    "{{ range(10 ** 9) }}",
    "{{ raise_exception('no ' + m.role) }}",
    "{{ m.content | trim | replace('a', 'b') | upper }}{{ m.content | safe | e }}",
    "{{ 1 // 0 }}",
]
OTHERS = [
    "{% set ns = namespace(a=1, b=none) %}{% for m in messages %}{% set ns.a = ns.a + 1 %}"
    "{{ ns.a }}{{ ns.b }}{{ ns.c }}{% endfor %}{{ ns.a.real }}{{ ns.__class__ }}",
    "{% set ns = namespace(_a=1) %}",
    "{% set ns = namespace() %}{% set ns._a = 1 %}",
    "{% macro f(x) %}[{{ x.strip() }}]{% endmacro %}{{ f(messages[0].content) }}{{ f.name }}",
    "{{ messages[::-1][0].role }}{{ messages[9].role }}",
    "{% if tools %}{{ tools[0].function.name }}{% endif %}",
    "{% if a is undefined %}\n  {% if not b %}\n x\n  {%- endif %}\n{% endif %}\n",
]


def outcome(render: Any, template: str, tools: Any, prompt: bool) -> Any:
    """The text, or the refusal."""
    try:
        return render(template, MESSAGES, tools, prompt)
    except Exception as problem:
        return type(problem), str(problem).partition("private name")[0]


@pytest.mark.parametrize("template", [*(LOOP.replace("BODY", body) for body in BODIES), *OTHERS])
def test_a_template_writes_what_it_writes_with_transformers(template: str) -> None:
    tokenizer = ChatTokenizer(HF, "toy")
    renderings = tokenizer._renderings
    for tools, prompt in ((None, False), (TOOLS, True)):
        ours = outcome(renderings._by_us, template, tools, prompt)
        theirs = outcome(renderings._by_transformers, template, tools, prompt)
        if isinstance(ours, tuple) and "_a" in template:  # the words of transformers are longer
            ours, theirs = ours[0], theirs[0]
        assert ours == theirs


def test_the_first_renderings_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """If one differs, transformers renders from then on. Later ones are not compared."""
    told = ChatTokenizer(HF, "toy")
    told.templates = {"default": "a{{ messages[0].role }}"}
    other = compiled("b{{ messages[0].role }}")
    assert told.render(MESSAGES) == "asystem"
    monkeypatch.setattr(templates, "compiled", lambda template: other)
    assert told.render(MESSAGES) == "asystem"
    monkeypatch.undo()
    assert told._renderings._proofs[told.templates["default"]].has_failed
    trusted = ChatTokenizer(HF, "toy")
    trusted.templates = told.templates
    for _ in range(16):
        assert trusted.render(MESSAGES) == "asystem"
    monkeypatch.setattr(templates, "compiled", lambda template: other)
    assert trusted.render(MESSAGES) == "bsystem"


def test_a_refusal_of_a_template_is_the_same_later() -> None:
    tokenizer = ChatTokenizer(HF, "toy")
    tokenizer.templates = {"default": "\n{{ raise_exception('no') if messages | length > 1 }}"}
    refusals = set()
    for _ in range(18):
        with pytest.raises(SftctlError) as refused:
            tokenizer.render(MESSAGES)
        refusals.add(refused.value.message)
    assert refusals == {"the chat template refuses the conversation: no"}


@pytest.mark.parametrize("chance", ["{{ ['a', 'b'] | random }}", "{{ lipsum(1) }}"])
def test_a_template_that_draws_random_numbers_is_not_valid(chance: str) -> None:
    hf = load_tokenizer(str(SAMPLE_TOKENIZER)).hf
    hf.chat_template = "{{ 'random lipsum' }}\n{% if messages %}" + chance + "{% endif %}"
    with pytest.raises(SftctlError, match="not valid: line 2: '(random|lipsum)' writes another"):
        ChatTokenizer(hf, "toy").compile_templates()
    assert compiled("{{ 'random lipsum' }}").render() == "random lipsum"
