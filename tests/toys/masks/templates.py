"""Chat templates with the structure of well-known model families, written for the tests.

Each keeps what matters: headers, end-of-turn and beginning-of-sequence tokens, the treatment of
system messages, tools, thinking and white space, and what the template refuses.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A template, and the special tokens of its tokenizers."""

    template: str
    special: tuple[str, ...]
    bos: str | None = None


_TOOLS = """\
{%- macro tool_texts() %}
{{- '# Tools\\n\\nSignatures of functions you may call:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\nTo call one, write JSON within <tool_call></tool_call>.' }}
{%- endmacro %}
{%- macro call_texts(message, after_text) %}
{%- for call in message.tool_calls %}
{%- if after_text or not loop.first %}{{- '\\n' }}{%- endif %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{%- if call.function.arguments is string %}{{- call.function.arguments }}
{%- else %}{{- call.function.arguments | tojson }}{%- endif %}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{%- endmacro %}
{%- macro result_text(index) %}
{%- if index == 0 or messages[index - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + messages[index].content + '\\n</tool_response>' }}
{%- if index + 1 == messages | length or messages[index + 1].role != 'tool' %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endmacro %}
"""

QWEN_25 = (
    _TOOLS
    + """\
{%- set first = messages[0] %}
{{- '<|im_start|>system\\n' }}
{{- first.content if first.role == 'system' else 'You answer briefly.' }}
{%- if tools %}{{- '\\n\\n' }}{{- tool_texts() }}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for message in messages %}
{%- if message.role == 'tool' %}{{- result_text(loop.index0) }}
{%- elif message.role == 'assistant' and message.tool_calls %}
{{- '<|im_start|>assistant' }}
{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
{{- '\\n' }}{{- call_texts(message, false) }}{{- '<|im_end|>\\n' }}
{%- elif message.role != 'system' or not loop.first %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
)

# Thinking is kept only after the last question, and the last turn always has a block for it.
QWEN_3 = (
    _TOOLS
    + """\
{%- set first = messages[0] %}
{%- if tools or first.role == 'system' %}
{{- '<|im_start|>system\\n' }}
{%- if first.role == 'system' %}{{- first.content }}{%- endif %}
{%- if tools %}
{%- if first.role == 'system' %}{{- '\\n\\n' }}{%- endif %}{{- tool_texts() }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- set found = namespace(last_question=messages | length - 1) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{%- set found.last_question = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'tool' %}{{- result_text(loop.index0) }}
{%- elif message.role == 'assistant' %}
{%- set said = namespace(thought=message.reasoning_content or '', text=message.content) %}
{%- if not said.thought and '</think>' in message.content %}
{%- set said.thought = message.content.split('</think>')[0].split('<think>')[-1] %}
{%- set said.text = message.content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > found.last_question and (loop.last or said.thought) %}
{{- '<think>\\n' + said.thought.strip('\\n') + '\\n</think>\\n\\n' }}
{{- said.text.lstrip('\\n') }}
{%- else %}{{- said.text }}{%- endif %}
{%- if message.tool_calls %}{{- call_texts(message, said.text != '') }}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- elif message.role != 'system' or not loop.first %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
)

LLAMA_3 = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
{{- message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

_ALTERNATING = """\
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if system else messages %}
{{- bos_token }}
{%- for message in turns %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate user/assistant/user/assistant') }}
{%- endif %}
"""

MISTRAL = (
    _ALTERNATING
    + """\
{%- if message.role == 'user' %}
{{- '[INST] ' + (system + '\\n\\n' if system and loop.first else '') + message.content }}
{{- ' [/INST]' }}
{%- elif message.role == 'assistant' %}
{{- ' ' + message.content | trim + eos_token }}
{%- else %}{{- raise_exception('only user and assistant roles are supported') }}
{%- endif %}
{%- endfor %}
"""
)

GEMMA = (
    _ALTERNATING
    + """\
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{{- system + '\\n\\n' if system and loop.first else '' }}
{{- message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""
)

_IM = ("<|im_start|>", "<|im_end|>")

FAMILIES = {
    "qwen2.5": Family(QWEN_25, _IM),
    "qwen3": Family(QWEN_3, _IM),
    "llama3": Family(
        LLAMA_3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|begin_of_text|>"
    ),
    "mistral": Family(MISTRAL, ("[INST]", "[/INST]", "</s>"), "<s>"),
    "gemma": Family(GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<bos>"),
}
