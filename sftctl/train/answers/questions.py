"""The rows that the model answers for metrics, and the functions that rate the answers."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sftctl.config.schema import RunConfig
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.data.masks.encode import tokenize
from sftctl.data.prepare.stored_rows import stored_rows
from sftctl.data.storage.joined import Store
from sftctl.errors import ConfigError, DataError, SftctlError
from sftctl.model.load import max_positions
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from sftctl.runs.answers import Question, Questions, read_questions, write_questions
from sftctl.runs.mixtures import sources_with_paths
from sftctl.tracking import status
from sftctl.train.preflight.inputs import Inputs

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from sftctl.train.session import Session

Metric = Callable[[list[dict[str, Any]], str, str], float]
"""(messages of the prompt, reference, answer) -> number."""


def load_metrics(config: RunConfig) -> tuple[dict[str, Metric], dict[str, str]]:
    """Import the functions of `evaluation.metrics`. This runs the code of the user's modules.

    Returns the functions by name, and by name the reasons why other functions can't be imported.
    """
    found, problems = dict[str, Metric](), dict[str, str]()
    for name, path in config.evaluation.metric_names.items():
        module = path.partition(":")[0]
        with _working_directory_first():
            try:
                function = getattr(importlib.import_module(module), name, None)
            except Exception as problem:  # an import can raise anything
                what = " ".join(f"{type(problem).__name__}: {problem}".split())
                problems[name] = f"{module} can't be imported: {what}"
                continue
        if callable(function):
            found[name] = function
        else:
            problems[name] = f"{module} has no function {name}"
    return found, problems


@contextmanager
def _working_directory_first() -> Iterator[None]:
    """Make modules of the working directory importable, as `python -m` does."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)  # the module may import others later


def require_metrics(config: RunConfig) -> tuple[str, ...]:
    """The reasons why some metrics can't be imported. The run continues without these metrics.

    Raises ConfigError if such a metric chooses the best step, and for any metric under FSDP.
    """
    if config.evaluation.metrics and config.train.strategy == "fsdp":
        raise ConfigError(
            "evaluation.metrics: not available with fsdp: no rank holds the complete model",
            hint="train.strategy = ddp, or leave the metrics out",
        )
    problems = load_metrics(config)[1]
    if config.evaluation.goal.metric in problems:
        raise ConfigError(
            f"evaluation.best: {config.evaluation.best}: {problems[config.evaluation.goal.metric]}",
            hint="a metric is a function of (prompt messages, reference, answer) in a module of "
            "the working directory or the Python path",
        )
    paths = config.evaluation.metric_names
    return tuple(f"{paths[name]}: {problem}" for name, problem in problems.items())


def open_questions(
    run_dir: "Path | None", config: RunConfig, inputs: Inputs, model: "PreTrainedModel"
) -> Questions:
    """The rows to answer, by set; {} if the run has no metrics.

    Rows that are recorded in `run_dir` are used. Otherwise the rows are read from the files of the
    data. Raises DataError if the rows of a set can't be read.
    """
    if not config.evaluation.metrics:
        return {}
    kept = read_questions(run_dir, made_from(config, inputs)) if run_dir is not None else None
    if kept is not None:
        return kept
    return {
        name: _questions_of(name, store, config, inputs, max_positions(model))
        for name, store in inputs.sets.items()
    }


def made_from(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    """The settings that decide which rows are answered.

    Recorded rows are used if these are equal.
    """
    stores = {name: store.manifest.fingerprint for name, store in inputs.sets.items()}
    return {"num_prompts": config.evaluation.num_prompts, "sets": stores}


def _questions_of(
    name: str, store: Store, config: RunConfig, inputs: Inputs, most_tokens: int | None
) -> list[Question]:
    """The first rows of a set that have a prompt and an answer.

    If the set has several stores, a store with more examples gives more rows, in proportion.
    """
    ends = np.cumsum([len(part) for part in store.parts])
    limits = np.rint(config.evaluation.num_prompts * ends / ends[-1]).astype(int).tolist()
    found: list[Question] = []
    try:
        for part, limit in zip(store.parts, limits, strict=True):
            given = _given(name, part.path, config, inputs)
            longest = min(part.manifest.max_seq_len, most_tokens or sys.maxsize)
            if len(found) < limit:
                for row in stored_rows(part, given, inputs.tokenizer):
                    question = _question(row, inputs.tokenizer, longest)
                    found += [question] if question is not None else []
                    if len(found) >= limit:
                        break
    except DataError as problem:
        problem.message = f"evaluation.metrics: {name}: {problem.message}"
        raise
    if not found:
        raise DataError(
            f"evaluation.metrics: {name}: no row of this set has a prompt and an answer",
            hint="a metric needs conversations that end with an answer",
        )
    return found


def _given(name: str, store: "Path", config: RunConfig, inputs: Inputs) -> str | None:
    """The path in the configuration from which the store of a set was prepared."""
    for one in config.evaluation.sets or ():
        if one.name == name and one.path is not None:
            return one.path
    sources = [source.path for source in sources_with_paths(config.data)] or [config.data.path]
    parts = (part.path for part in inputs.train.parts)
    return dict(zip(parts, sources, strict=True))[store]


def _question(row: Conversation, tokenizer: ChatTokenizer, longest: int) -> Question | None:
    """The row up to its last trained answer, as a Question.

    None if there is no such answer, or if the prompt is too long to be followed by an answer.
    """
    if row.shape == "text" or not row.target_turns:
        return None
    try:
        *_, example = tokenize(row, tokenizer, "last")
    except (BadRow, SftctlError):
        return None
    turns = example.loss_mask if example.turn_mask is None else example.turn_mask
    start = int(np.argmax(turns))
    ids = example.input_ids
    if not 0 < start < longest:
        return None
    reference = tokenizer.decode(ids[turns].tolist(), skip_special_tokens=True).strip()
    return Question([*row.messages[: row.target_turns[-1]]], reference, ids[:start].tolist())


def with_questions(session: "Session", run_dir: "Path | None") -> "Session":
    """The session with the rows to answer. Rows that are recorded in `run_dir` are used again."""
    config, model = session.config, session.state.loss_module.model
    if config.evaluation.metrics:
        status.doing("reading the rows to answer")
    questions = session.world.on_main(
        lambda: open_questions(run_dir, config, session.inputs, model)
    )
    return replace(session, questions=questions)


def keep_questions(session: "Session") -> None:
    """Write the session's questions into its run directory, if it has any."""
    if session.questions:
        origin = made_from(session.config, session.inputs)
        write_questions(session.run.path, origin, session.questions)
