"""Metrics: the model answers rows of the validation sets, and functions of the user rate the
answers.

Decoding is greedy, and the batches do not depend on the number of ranks. So a resumed run gets the
same numbers as a run that never stopped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from sftctl.model.generate import batches_by_length, generate_batch
from sftctl.model.load import max_positions
from sftctl.model.row_attention import own_attention
from sftctl.model.sampling import Sampling
from sftctl.runs.answers import Answered, Question, write_answers
from sftctl.tracking import status
from sftctl.tracking.tracker import Tracker
from sftctl.train.answers.questions import Metric, load_metrics
from sftctl.train.engine.compiled import uncompiled

if TYPE_CHECKING:
    from sftctl.train.session import Session

_TOKENS_OF_A_BATCH = 4
"""Size of a batch in units of micro_batch_tokens. Generation stores only keys and values for each
token, which needs less memory than training.
"""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The mean of each metric by name, over one set or over all sets. None: the metric has no
    number.
    """

    values: dict[str, float | None]
    num_prompts: int


@dataclass(frozen=True, slots=True)
class Judged:
    """The results of all metrics in an evaluation; empty if the run has no metrics."""

    sets: Mapping[str, Judgement] = field(default_factory=dict)
    of_all: Judgement | None = None  # the mean over the rows of all sets

    def of(self, name: str) -> dict[str, Any]:
        """The numbers of one set, named as in events.jsonl; {} if the set has none."""
        if name not in self.sets:
            return {}
        return {**self.sets[name].values, "num_prompts": self.sets[name].num_prompts}


def judge(session: "Session", tracker: Tracker) -> Judged | None:
    """Compute the run's metrics for the current weights. None if a signal comes.

    All ranks call this together, and each rank answers some of the batches. Rank 0 calls the
    functions. If a function fails, a warning names it, and this evaluation has no number for it.
    """
    asked = [(name, one) for name, several in session.questions.items() for one in several]
    if not asked:
        return Judged()
    answers = _answers(session, [question for _, question in asked])
    if answers is None:
        return None
    return session.world.on_main(lambda: _judged(session, tracker, asked, answers))


def _judged(
    session: "Session",
    tracker: Tracker,
    asked: Sequence[tuple[str, Question]],
    answers: Sequence[str],
) -> Judged:
    """On rank 0: call the functions, and write the answers into the run directory."""
    step = session.state.progress.step
    numbers: dict[str, count[int]] = {name: count() for name in session.questions}
    found = [
        Answered(name, next(numbers[name]), question, answer, {})
        for (name, question), answer in zip(asked, answers, strict=True)
    ]
    functions, missing = load_metrics(session.config)
    for metric, path in session.config.evaluation.metric_names.items():
        problem, values = (
            _measure(functions[metric], found) if metric in functions else (missing[metric], None)
        )
        for number, one in enumerate(found):
            one.values[metric] = None if values is None else values[number]
        if problem is not None:
            message = f"evaluation.metrics: {path}: {problem}: no number at step {step}"
            tracker.event("warning", step, message=message)
    write_answers(session.run.path, step, found)
    by_set = {name: [a for a in found if a.set_name == name] for name in session.questions}
    return Judged({name: _mean(some) for name, some in by_set.items()}, _mean(found))


def _measure(
    function: Metric, answers: Sequence[Answered]
) -> tuple[str | None, list[float] | None]:
    """Call the metric for each answer. Returns (None, its numbers), or (the reason, None) if it
    fails.
    """
    values = list[float]()
    for one in answers:
        where = f"row {one.number} of {one.set_name}"
        try:
            value = function([*one.question.messages], one.question.reference, one.answer)
            values.append(float(value))
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            return " ".join(f"{where}: {type(error).__name__}: {error}".split()), None
        if not math.isfinite(values[-1]):
            return f"{where}: the result is {values[-1]}", None
    return None, values


def _mean(answers: Sequence[Answered]) -> Judgement:
    """The mean of each metric over the answers."""
    names = answers[0].values
    columns = {name: [one.values[name] for one in answers] for name in names}
    return Judgement({name: _mean_of(one) for name, one in columns.items()}, len(answers))


def _mean_of(column: Sequence[float | None]) -> float | None:
    known = [value for value in column if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(column) else None


def _answers(session: "Session", questions: Sequence[Question]) -> list[str] | None:
    """The answer to each question, on every rank. None if a signal comes."""
    world, stop = session.world, session.stop
    batches = _batches(session, questions)
    found: dict[int, str] = {}
    for first in range(0, len(batches), world.world_size):
        if stop.requested(world) is not None:
            return None
        status.doing(f"answering {len(found)}/{len(questions)}")
        mine = batches[first : first + world.world_size][world.rank :][:1]
        answered = {} if not mine else _answer(session, questions, mine[0])
        for part in world.gather(answered):
            found |= part
    status.doing("")
    # The signal may have stopped the last answers before their end.
    if stop.requested(world) is not None:
        return None
    return [found[number] for number in range(len(questions))]


def _batches(session: "Session", questions: Sequence[Question]) -> list[list[int]]:
    """Divide the questions into batches. Returns the numbers of the questions in each batch.

    The number of ranks has no influence. If the rows of a model can't be laid end to end, its
    batches have no padding, because padding might change its answers.
    """
    lengths = [len(one.prompt_ids) for one in questions]
    most = _TOKENS_OF_A_BATCH * session.shape.micro_batch_tokens
    may_pad = session.state.why_rows_alone is None
    longest = session.config.evaluation.max_new_tokens
    limit = max_positions(session.state.loss_module.model)
    batches = batches_by_length(lengths, longest, most, may_pad=may_pad)
    if limit is None:
        return batches
    # A prompt near the model's last position can only have a short answer. It gets its own
    # batch, because the limit of a batch is for all its answers.
    near = [n for n, length in enumerate(lengths) if length + longest > limit]
    return [
        *filter(None, ([n for n in batch if n not in near] for batch in batches)),
        *([number] for number in near),
    ]


def _answer(
    session: "Session", questions: Sequence[Question], batch: Sequence[int]
) -> Mapping[int, str]:
    """The answers to a batch of questions, by the questions' numbers."""
    state, module = session.state, session.state.loss_module
    prompts = [questions[number].prompt_ids for number in batch]
    limit = max_positions(module.model)
    room = session.config.evaluation.max_new_tokens
    if limit is not None:
        room = min(room, limit - max(map(len, prompts)))
    module.eval()
    with (
        state.autocast(session.world.device),
        own_attention(module.model, state.own_attention),
        uncompiled(module),
    ):
        answers = generate_batch(
            module.model,
            session.inputs.tokenizer,
            prompts,
            Sampling(room),
            lambda: session.stop.heard is not None,
        )
    module.train()
    return dict(zip(batch, answers, strict=True))
