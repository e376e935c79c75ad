"""`RUN/answers/`: the rows that the model answers for metrics, and its answers.

`questions.jsonl` has the rows, so that a resume uses the same rows. Each evaluation has its own
file, such as `step-00000300.jsonl`, with one line for each row. Loads neither torch nor numpy.
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
    """A row of a validation set: the messages before its last answer, and this answer."""

    messages: list[dict[str, Any]]  # the prompt
    reference: str  # the answer in the data, as rendered, without special tokens
    prompt_ids: list[int]


Questions = Mapping[str, Sequence[Question]]
"""Name of the validation set -> its questions."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The model's answer to a question, with its value for each metric. None: the metric has no
    value.
    """

    set_name: str
    number: int  # the question's number in its set
    question: Question
    answer: str
    values: dict[str, float | None]


def write_questions(run_dir: Path, made_from: Mapping[str, Any], questions: Questions) -> None:
    """Write the questions, and the settings from which they were chosen."""
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
    """The recorded questions; None if there are none, or if other settings chose them."""
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
    """Write the answers of one evaluation. They replace earlier answers of the same step."""
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
    """The lines of the evaluations at these steps. A step without a file is skipped."""
    for step in steps:
        path = run_dir / FOLDER / f"step-{step:08d}.jsonl"
        with suppress(OSError):
            yield from read_lines(path) if path.is_file() else ()


def _write(path: Path, lines: Sequence[bytes]) -> None:
    with refusals(path, CheckpointError):
        path.parent.mkdir(exist_ok=True)
        replace_file(path, b"".join(lines))
