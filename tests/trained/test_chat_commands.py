"""What is typed at the prompt of a chat: commands, unknown ones, the first line, every model."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.errors import ConfigError, NoCheckpoint
from sftctl.model.sampling import Sampling
from sftctl.trained.chat import ChatSession
from sftctl.trained.chat_terminal import _answer, _obeyed, answer_once
from sftctl.trained.checks import kind_of
from sftctl.trained.export import export_gguf
from tests.toys.commands import Result
from tests.toys.commands import sftctl as sftctl

Sftctl = Callable[..., Result]


@pytest.fixture
def session(run: Path) -> ChatSession:
    return ChatSession.open(run, Sampling(max_new_tokens=2))


def test_the_first_line_names_model_step_and_sampling(run: Path, session: ChatSession) -> None:
    parts = session.about.split(" · ")
    assert (parts[0], parts[1], parts[-1]) == (str(run), "tiny", "greedy")
    assert parts[2].startswith("step ")


def test_commands_are_acknowledged_and_unknown_ones_refused(session: ChatSession) -> None:
    assert "/clear" in _obeyed(session, "/help") and "/temperature" in _obeyed(session, "/help")
    session.answer("Hi")
    assert _obeyed(session, "/clear") == "(forgotten)" and session.messages == []
    assert _obeyed(session, "/temperature", "0.8") == "(temperature 0.8)"
    assert session.sampling.temperature == 0.8
    assert _obeyed(session, "/temperature", "0") == "(greedy)"
    for wrong in ("", "hot", "-1", "inf", "nan", "1e-9"):
        expected = f"/temperature: expected a number from 0 up, got {wrong!r}"
        assert _obeyed(session, "/temperature", wrong) == expected
    assert session.sampling.temperature == 0
    assert _obeyed(session, "/reset") == "/reset: no such command; /help shows those that exist"


def test_an_empty_answer_is_said_to_be_empty(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ChatSession, "answer", lambda *_: " ")
    said = "(the answer is empty: the model ended it at once)\n"
    _answer(session, "Hi")
    assert capsys.readouterr() == ("", said)
    answer_once(session, "Hi")
    assert capsys.readouterr() == ("\n", said)


def test_a_gguf_file_can_be_chatted_with_and_exported(
    sftctl: Sftctl, run: Path, tmp_path: Path
) -> None:
    export_gguf(run, tmp_path / "gguf", "float32")
    file = tmp_path / "gguf/model.gguf"
    expected = ChatSession.open(run, Sampling(max_new_tokens=8)).answer("Hi")
    assert ChatSession.open(file, Sampling(max_new_tokens=8)).answer("Hi") == expected
    result = sftctl("export", file, "--output", tmp_path / "hf")
    assert result.exit_code == 0
    assert f"exported to {tmp_path}/hf: " in result.stdout and ", float32" in result.stdout
    assert f"chat:     sftctl chat {tmp_path}/hf" in result.stdout
    again = ChatSession.open(tmp_path / "hf", Sampling(max_new_tokens=8)).answer("Hi")
    assert again == expected


def test_what_can_be_chatted_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.gguf").touch()
    Path("a.pth").touch()
    Path("runs").mkdir()
    for name in ("a.gguf", "a.pth", "owner/name"):
        assert kind_of(Path(name)) == "model"
    for name in ("runs/typo", "nowhere", "a/b/c", "../x", "b.gguf"):
        with pytest.raises(NoCheckpoint, match="no such directory"):
            kind_of(Path(name))
    with pytest.raises(NoCheckpoint, match="small: a preset, which has no weights"):
        kind_of(Path("small"))


def test_weights_without_a_tokenizer_name_the_flag(sftctl: Sftctl, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"x")
    result = sftctl("chat", tmp_path / "a.pth", "--prompt", "Hi")
    assert (result.exit_code, "holds weights only, no tokenizer" in result.error) == (2, True)
    assert "hint: give --tokenizer DIR" in result.stderr
    with pytest.raises(ConfigError):
        ChatSession.open(tmp_path / "a.pth", Sampling(), tokenizer=str(tmp_path))
    shutil.rmtree(tmp_path, ignore_errors=True)
