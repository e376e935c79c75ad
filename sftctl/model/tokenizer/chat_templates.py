"""Chat templates that a user names: a Jinja file, or `chatml`, which is built in."""

from pathlib import Path
from typing import TYPE_CHECKING

from sftctl.disk import read_refusals
from sftctl.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHATML = "chatml"
"""The name of the built-in template."""

_CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}END\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_OWN_END = _CHATML.replace("END", "<|im_end|>")
_EOS_END = _CHATML.replace("END", "{{ eos_token }}")


def named_template(name: str, hf: "PreTrainedTokenizerFast") -> str:
    """The chat template that `name` means for this tokenizer. ConfigError if there is none.

    In `chatml`, a turn ends with `<

    im_end

    >` if this is a token, else with the EOS token. A model can learn to stop at a single token,
    even if it did not know the token before.
    """
    if name != CHATML:
        return _read(Path(name))
    if "<|im_end|>" in hf.get_vocab():
        return _OWN_END
    if hf.eos_token is None:
        raise ConfigError(
            "chatml: the tokenizer has neither <|im_end|> nor an EOS token to end a turn with",
            hint="write a template for it: --chat-template FILE",
        )
    return _EOS_END


def possible_templates(name: str) -> list[str]:
    """The templates that `name` can mean for any tokenizer."""
    return [_OWN_END, _EOS_END] if name == CHATML else [_read(Path(name))]


def _read(file: Path) -> str:
    try:
        with read_refusals(file, ConfigError, f"name a Jinja file, or {CHATML}"):
            text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ConfigError(
            f"{file}: not UTF-8: {problem.reason}", hint="save it as UTF-8"
        ) from problem
    if not text.strip():
        raise ConfigError(f"{file}: is empty", hint=f"name a Jinja file, or {CHATML}")
    return text
