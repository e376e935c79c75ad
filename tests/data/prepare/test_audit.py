import numpy as np
import pytest

from sftctl.data.example import ExampleArrays, TokenizedExample
from sftctl.data.manifest import Audit
from sftctl.data.prepare.audit import audit
from sftctl.data.sample import SAMPLE_TOKENIZER
from tests.toys.data import CHATML, load

TOKENIZER = load(SAMPLE_TOKENIZER, CHATML)
START, END, TEXT = 1, 2, 300


def examples(*rows):
    """Each row: (ids, mask as a string of . and x)."""
    return ExampleArrays.pack(
        [
            TokenizedExample(np.array(ids, dtype=np.int32), np.array([c == "x" for c in mask]))
            for ids, mask in rows
        ]
    )


def audited(*rows, max_seq_len=64, train_on="assistant"):
    return audit(examples(*rows), TOKENIZER, max_seq_len, train_on)


GOOD = ([START, TEXT, TEXT, END, TEXT, TEXT, END], "..xx.xx")


def test_whole_turns_with_their_ends_pass():
    found = audited(GOOD, GOOD)
    assert found.passed
    assert (found.num_examples, found.turns, found.turns_cut) == (2, 4, 0)
    assert found.problems() == []


def test_runs_of_neighbouring_examples_are_not_one():
    assert audited(([TEXT, END], ".x"), ([END, TEXT, END], "x.x")).turns == 3


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (([START, TEXT, END], "..."), "1 example has no target token"),
        (([START, TEXT, TEXT, END], "..x."), "1 trained turn ends without an end-of-turn token"),
        (([START, TEXT, TEXT], "..x"), "1 trained turn ends without an end-of-turn token"),
        (([0, 0, TEXT, END], "...x"), "1 example begins with two beginning-of-sequence tokens"),
    ],
)
def test_what_is_wrong_fails(row, problem, monkeypatch):
    monkeypatch.setattr(TOKENIZER, "bos_id", 0)
    found = audited(GOOD, row)
    assert not found.passed
    assert found.problems()[0].startswith(problem)


def test_a_turn_that_the_maximum_length_ends_is_no_failure():
    found = audited(([START, TEXT, TEXT], "..x"), max_seq_len=3)
    assert found.passed
    assert found.turns_cut == 1


def test_where_everything_is_trained_a_run_is_no_turn():
    assert audited(([START, TEXT, END, TEXT], ".xxx"), train_on="all").passed


def test_audits_add_up_and_one_failure_fails_all():
    good, bad = audited(GOOD), audited(([START, TEXT], ".."))
    assert (good + good).num_examples == 2
    assert (good + good).passed
    assert not (good + bad).passed
    assert Audit() + good == good
    assert audited() == Audit()
