"""`RUN/answers/`: the rows that the model answers for metrics, and its answers.

`questions.jsonl` has the rows, so that a resume uses the same rows. Each evaluation has a file of
its own, `step-00000300.jsonl`, with one line for each row. Loads neither torch nor numpy.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftctl.disk import refusals, replace_file
from sftctl.errors import CheckpointError
from sftctl.jsonio import dump_line, read_lines

FOLDER = "answers"


@dataclass(frozen=True, slots=True)
class Question:
    """A row of a validation set up to its last answer, and this answer."""

    messages: list[dict[str, Any]]  # the prompt
    reference: str  # the answer in the data, as the template writes it, without special tokens
    prompt_ids: list[int]


Questions = Mapping[str, Sequence[Question]]
"""By the name of their set."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A question's answer, and each metric's number for it; None: the metric has no number."""

    set_name: str
    number: int  # of the question in its set
    question: Question
    answer: str
    values: dict[str, float | None]


def write_questions(run_dir: Path, made_from: Mapping[str, Any], questions: Questions) -> None:
    """Keep the questions, and the settings that decided them."""
    lines = [dump_line({"made_from": dict(made_from)})]
    lines += [
        dump_line(
            {
                "set": name,
                "messages": one.messages,
                "reference": one.reference,
                "prompt_ids": one.prompt_ids,
            }
        )
        for name, several in questions.items()
        for one in several
    ]
    _write(run_dir / FOLDER / "questions.jsonl", lines)


def read_questions(run_dir: Path, made_from: Mapping[str, Any]) -> Questions | None:
    """The questions of the run; None: there are none, or other settings decided them."""
    path = run_dir / FOLDER / "questions.jsonl"
    if not path.is_file():
        return None
    first, *others = [*read_lines(path)] or [{}]
    if first.get("made_from") != dict(made_from):
        return None
    found: dict[str, list[Question]] = {}
    for line in others:
        one = Question(line["messages"], line["reference"], line["prompt_ids"])
        found.setdefault(line["set"], []).append(one)
    return found


def write_answers(run_dir: Path, step: int, answers: Sequence[Answered]) -> None:
    """Keep the answers of one evaluation, in place of earlier ones of the same step."""
    lines = [
        dump_line(
            {
                "step": step,
                "set": one.set_name,
                "number": one.number,
                "messages": one.question.messages,
                "reference": one.question.reference,
                "answer": one.answer,
                **one.values,
            }
        )
        for one in answers
    ]
    _write(run_dir / FOLDER / f"step-{step:08d}.jsonl", lines)


def read_answers(run_dir: Path, steps: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The lines of the evaluations at these steps; a step without such a file is left out."""
    for step in steps:
        path = run_dir / FOLDER / f"step-{step:08d}.jsonl"
        with suppress(OSError):
            yield from read_lines(path) if path.is_file() else ()


def _write(path: Path, lines: Sequence[bytes]) -> None:
    with refusals(path, CheckpointError):
        path.parent.mkdir(exist_ok=True)
        replace_file(path, b"".join(lines))
