"""The README's longer run: the small preset memorizes the bundled sample in minutes."""

import json
from pathlib import Path

import pytest

from sftctl import jsonio
from sftctl.data.sample import sample_files
from sftctl.model.sampling import Sampling
from sftctl.trained.chat import ChatSession
from tests.real.conftest import sftctl

pytestmark = pytest.mark.real


def test_two_epochs_learn_and_thirty_answer_nine_of_ten_questions_word_for_word(
    tmp_path: Path,
) -> None:
    short = json.loads(sftctl("train", "--epochs", 2, "--output-dir", "short", "--json"))
    assert short["validation_loss"] <= 0.8 * short["first_validation_loss"]
    sftctl("train", "--epochs", 30, "--output-dir", "long")

    session = ChatSession.open(tmp_path / "long", Sampling(max_new_tokens=80))
    rows = [row["messages"] for row in jsonio.read_lines(sample_files()[0])]
    asked = right = 0
    for messages in rows:
        if messages[0]["role"] == "user":
            session.clear()
            asked += 1
            right += session.answer(messages[0]["content"]) == messages[1]["content"]
    print(f"{right} of {asked} first questions answered word for word")
    assert asked >= 290 and right >= 0.9 * asked

    question, answer = rows[1][0]["content"], rows[1][1]["content"]
    assert sftctl("chat", "long", "--prompt", question).strip() == answer
