"""Write a trained model as a Hugging Face directory, an adapter or a .gguf file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sftctl.disk import refusals
from sftctl.errors import CheckpointError
from sftctl.folders import new_folder
from sftctl.model.generate import stop_ids
from sftctl.model.load import MAX_SHARD_BYTES, load_pretrained, save_pretrained
from sftctl.runs.card import model_card
from sftctl.runs.final import CARD_NAME
from sftctl.tracking import status
from sftctl.trained.checks import check_export
from sftctl.trained.gguf.file import write_gguf
from sftctl.trained.gguf.modelfile import modelfile
from sftctl.trained.gguf.proof import Proof, prove
from sftctl.trained.logits import logits_of
from sftctl.trained.merge_proof import MergeProof, compare, kept_logits
from sftctl.trained.open import Trained, copy_adapter, open_trained, say_nothing
from sftctl.trained.proof_rows import texts_of

GGUF_NAME = "model.gguf"


def export_model(
    source: Path,
    output: Path,
    dtype: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    tell: Callable[[str], None] = say_nothing,
    chat_template: str | None = None,
    tokenizer: str | None = None,
) -> None:
    """Write a model as the new Hugging Face directory `output`. After an error, nothing is left.

    `tell` receives a warning if the final model of the source is damaged.
    """
    dtype = check_export(source, output, dtype)
    trained = open_trained(source, tell, chat_template, tokenizer)
    card = _card(trained, source, dtype)
    model = trained.model.to(getattr(torch, dtype))
    if model.generation_config is not None:  # other tools must stop at the end of a turn too
        model.generation_config.eos_token_id = stop_ids(model, trained.tokenizer)
    with _new(output) as folder:
        save_pretrained(model, trained.tokenizer, folder, max_shard_bytes)
        _write_card(folder, card)


def export_gguf(
    source: Path,
    output: Path,
    dtype: str,
    tell: Callable[[str], None] = say_nothing,
    chat_template: str | None = None,
    tokenizer: str | None = None,
) -> Proof:
    """Write the new directory `output` with model.gguf, a Modelfile for Ollama and a model card.

    The file is read again and compared with the model before the directory gets its name. After an
    error, nothing is left. ConfigError if llama.cpp does not support the model or its tokenizer.
    `tell` is the same as in `export_model`.
    """
    dtype = check_export(source, output, dtype, "gguf")
    trained = open_trained(source, tell, chat_template, tokenizer)
    card = _card(trained, source, dtype, "gguf")
    with _new(output) as folder:
        file = folder / GGUF_NAME
        status.doing(f"writing {GGUF_NAME}")
        write_gguf(trained.model, trained.tokenizer, file, dtype, output.name)
        status.doing("reading it again, to compare")
        proof = prove(trained, file, dtype)
        stops = stop_ids(trained.model, trained.tokenizer)
        text = modelfile(trained.tokenizer, stops, GGUF_NAME)
        (folder / "Modelfile").write_text(text, encoding="utf-8")
        _write_card(folder, card)
    return proof


def export_merged(
    source: Path,
    output: Path,
    dtype: str,
    tell: Callable[[str], None] = say_nothing,
    chat_template: str | None = None,
) -> MergeProof:
    """Merge an adapter into its base, and write the plain model as the new directory `output`.

    The base is loaded in `dtype`. The written directory is read again, and its logits are compared
    with those of the base with its adapter. If they differ too much, CheckpointError is raised and
    nothing is left.
    """
    dtype = check_export(source, output, dtype, merge=True)
    trained = open_trained(source, tell, chat_template, dtype=getattr(torch, dtype))
    assert trained.adapter is not None
    card = _card(trained, source, dtype)
    rows = [trained.tokenizer.encode(text).tolist() for text in texts_of(trained)]
    before, is_quantized = kept_logits(trained.model, rows), trained.adapter.form is not None
    model = trained.adapter.merged()
    if model.generation_config is not None:
        model.generation_config.eos_token_id = stop_ids(model, trained.tokenizer)
    with _new(output) as folder:
        save_pretrained(model, trained.tokenizer, folder)
        status.doing("reading it again, to compare")
        read = load_pretrained(str(folder), dtype=getattr(torch, dtype))
        proof = compare(dtype, before, logits_of(read, rows))
        proof.require()
        _write_card(folder, card)
    if is_quantized:
        del trained, model, read
        on_source = open_trained(
            source, say_nothing, chat_template, dtype=getattr(torch, dtype), on_source=True
        )
        proof = proof.against_source(before, logits_of(on_source.model, rows))
    return proof


def export_adapter(source: Path, output: Path, tell: Callable[[str], None] = say_nothing) -> None:
    """Write the adapter of a run, a checkpoint or a directory as the new directory `output`."""
    check_export(source, output, "float32", "adapter")
    with _new(output) as folder:
        copy_adapter(source, folder, tell)


@contextmanager
def _new(output: Path) -> Iterator[Path]:
    status.doing(f"writing {output}")
    with (
        refusals(output, CheckpointError, hint="choose another --output"),
        new_folder(output) as folder,
    ):
        yield folder


def _write_card(folder: Path, card: str | None) -> None:
    if card is not None:
        (folder / CARD_NAME).write_text(card, encoding="utf-8")


def _card(trained: Trained, source: Path, dtype: str, kind: str = "hf") -> str | None:
    """The model card for a run. The card of a model directory is copied; None if it has none."""
    if trained.run is not None:
        return model_card(trained.run, trained.manifest, dtype, kind)
    own = source / CARD_NAME
    return own.read_text(encoding="utf-8", errors="replace") if own.is_file() else None
