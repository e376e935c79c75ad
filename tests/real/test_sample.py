"""The README's demo: a model of 230,000 parameters answers new questions of the sample."""

import json
from pathlib import Path

import pytest

from sftctl import jsonio
from sftctl.data.sample import sample_files
from sftctl.model.sampling import Sampling
from sftctl.trained.chat import ChatSession
from tests.real.conftest import sftctl

pytestmark = pytest.mark.real
DEMO = (  # the options of `make demo`
    "--model", "tiny", "--learning-rate", 0.003, "--set", "optim.warmup_steps=20", "--epochs", 14,
)  # fmt: skip


def test_two_epochs_learn_and_the_demo_answers_nine_of_ten_new_questions_word_for_word(
    tmp_path: Path,
) -> None:
    short = json.loads(sftctl("train", "--epochs", 2, "--output-dir", "short", "--json"))
    assert short["validation_loss"] <= 0.3 * short["first_validation_loss"]
    made = json.loads(sftctl("train", *DEMO, "--output-dir", "demo", "--json"))
    assert made["validation_loss"] <= 0.05 * made["first_validation_loss"]

    session = ChatSession.open(tmp_path / "demo", Sampling(max_new_tokens=80))
    rows = [row["messages"] for row in jsonio.read_lines(sample_files()[1])]
    asked = [messages for messages in rows if len(messages) == 2]
    right = 0
    for question, answer in asked:
        session.clear()
        right += session.answer(question["content"]) == answer["content"]
    print(f"{right} of {len(asked)} new questions answered word for word")
    assert len(asked) >= 100 and right >= 0.9 * len(asked)
