"""Check a .gguf file: read it again, and compare it with the exported model and tokenizer."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sftctl.errors import CheckpointError
from sftctl.model.load import read_gguf
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer
from sftctl.trained.gguf.file import rounded, type_of
from sftctl.trained.gguf.sentencepiece import SentencePiece
from sftctl.trained.logits import LogitDifference, compare_logits, logits_of
from sftctl.trained.open import Trained
from sftctl.trained.proof_rows import texts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LARGEST_DIFFERENCE = 1e-4
"""Larger differences of float32 logits are an error. Sums in another order differ by less."""


@dataclass(frozen=True, slots=True)
class Proof(LogitDifference):
    """How much the model in the file differs from the exported model."""

    def line(self) -> str:
        """A line for the screen."""
        return (
            f"read again: {self.tokens} tokens of {self.rows} rows are the same; logits differ by "
            f"at most {self.largest_difference:.2g}, and {self.equal_greedy:.1%} of the most "
            "probable next tokens are equal"
        )


def prove(trained: Trained, file: Path, dtype: str) -> Proof:
    """Compare weights, token ids and logits. CheckpointError if the file is not the exported model.

    The weights must be equal to the model's, rounded to `dtype`. For float32, the logits may differ
    by 1e-4. transformers reads the file, with the model's own configuration.
    """
    model, tokenizer = trained.model.eval(), trained.tokenizer
    read = read_gguf(file, model.config).eval()
    _require_weights(model, read, file, dtype)
    texts = texts_of(trained)
    ids = [tokenizer.encode(text).tolist() for text in texts]
    _require_ids(ids, texts, tokenizer, file)
    pairs = zip(logits_of(model, ids), logits_of(read, ids), strict=True)
    proof = Proof(**asdict(compare_logits(pairs)))
    if dtype == "float32" and not proof.largest_difference <= _LARGEST_DIFFERENCE:  # true for NaN
        raise _not_proved(file, f"its logits differ by {proof.largest_difference:.2g}")
    return proof


def _require_weights(
    model: "PreTrainedModel", read: "PreTrainedModel", file: Path, dtype: str
) -> None:
    there = read.state_dict()
    for name, weight in model.state_dict().items():
        expected = rounded(weight, type_of(name, weight, dtype))
        if not torch.allclose(there[name].float(), expected, rtol=1e-6, atol=1e-6):
            raise _not_proved(file, f"{name} is not what was written")


def _require_ids(ids: list[list[int]], texts: list[str], ours: ChatTokenizer, file: Path) -> None:
    encode = _encoder(ours, file)
    for expected, text in zip(ids, texts, strict=True):
        found = encode(text)
        if found != expected:
            at = next(
                (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), None
            )
            where = ours.decode(expected[at : at + 8]) if at is not None else text[-20:]
            raise _not_proved(file, f"its tokenizer encodes {where!r} differently")


def _encoder(ours: ChatTokenizer, file: Path) -> Callable[[str], list[int]]:
    """The encoder of the file's tokenizer: that of transformers, or our copy of llama.cpp's."""
    if getattr(ours.hf.backend_tokenizer.model, "byte_fallback", False):
        return SentencePiece.read(file).encode
    read = load_tokenizer(str(file), template_required=False)
    return lambda text: read.encode(text).tolist()


def _not_proved(file: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{file.name}: {what}; nothing was written",
        hint="export with --format hf, and please report this model's config.json",
    )
