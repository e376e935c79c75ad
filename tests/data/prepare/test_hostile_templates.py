"""Chat templates that take too long, too much memory or too much text, or are no program at all."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sftctl.config.load import load_config
from sftctl.data.manifest import StoreManifest
from sftctl.data.prepare.builder import Progress
from sftctl.data.prepare.fingerprint import PrepareOptions
from sftctl.data.prepare.prepare import prepare_store
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import ConfigError, DataError, SftctlError, Stopped
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer
from tests.toys.data import CHATML, row, written

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
NEVER = "{% if 'never' in messages[0].content %}"
POWER = "{{ 9 ** (messages | length + 9 ** 9) }}"  # one call of C code
NUM_ROWS = 12


def tokenizer_with(template: str, seconds: float = 0.3) -> ChatTokenizer:
    hf = load_tokenizer(str(SAMPLE_TOKENIZER)).hf
    hf.chat_template = template
    tokenizer = ChatTokenizer(hf, "toy")
    tokenizer.limits.seconds = seconds
    return tokenizer


def prepared(
    folder: Path, template: str, *, never: int = 0, num_workers: int = 1, seconds: float = 60.0
) -> StoreManifest:
    """Prepare rows, of which the first `never` have the word `never` in them.

    A row has few seconds only if a template hangs: on a slow machine, good rows need more.
    """
    rows = [row(f"{'never' if n < never else 'always'} {n}") for n in range(NUM_ROWS)]
    file = written(folder / "rows.jsonl", rows)
    tokenizer = tokenizer_with(template, seconds)
    options = PrepareOptions(num_workers=num_workers, batch_bytes=300)
    data = load_config().data
    return prepare_store([file], folder / "store", tokenizer, data, options=options).manifest


def ledger(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "store/ledger.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("hang", [LOOP, POWER], ids=["loop", "one call"])
def test_a_row_that_takes_too_long_goes_into_the_ledger(
    tmp_path: Path, hang: str, num_workers: int
) -> None:
    """The timer ends one template, and only the parent can end the other. Other rows are kept."""
    template = f"{NEVER}{hang}{{% endif %}}{CHATML}"
    manifest = prepared(tmp_path, template, never=2, num_workers=num_workers, seconds=0.3)
    assert manifest.rows_kept == NUM_ROWS - 2
    assert [(entry["line"], entry["reason"]) for entry in ledger(tmp_path)] == [
        (1, "template_refused"),
        (2, "template_refused"),
    ]
    assert all("takes longer than" in entry["detail"] for entry in ledger(tmp_path))


@pytest.mark.parametrize("hang", [LOOP, POWER], ids=["loop", "one call"])
def test_three_rows_that_take_too_long_end_the_preparation(tmp_path: Path, hang: str) -> None:
    with pytest.raises(DataError, match=r"of toy needs more than 0\.3 s for one row; .* 3 rows"):
        prepared(tmp_path, f"{NEVER}{hang}{{% endif %}}{CHATML}", never=5, seconds=0.3)
    assert not (tmp_path / "store").exists()


def test_all_renderings_of_a_row_share_its_time(tmp_path: Path) -> None:
    """Each one alone is fast enough."""
    busy = "{% for i in range(99999) %}{% set x = i * i %}{% endfor %}" * 12
    several = [row("always", answer) for answer in ("yes", "no")]
    messages = [
        {"role": role, "content": "never"} for _ in range(30) for role in ("user", "assistant")
    ]
    file = written(tmp_path / "rows.jsonl", [{"messages": messages}, *several])
    template = f"{NEVER}{busy}{{% endif %}}{CHATML}"
    tokenizer = tokenizer_with(template, seconds=60.0)
    started = time.thread_time()
    tokenizer.render(messages)
    tokenizer.limits.seconds = 6 * (time.thread_time() - started)  # so one rendering has the time
    manifest = prepare_store([file], tmp_path / "store", tokenizer, load_config().data).manifest
    assert (manifest.rows_kept, manifest.rows_dropped) == (2, {"template_refused": 1})


ROWS_REFUSED = {
    "memory": ("\n{{ 'a' * (messages | length + 9 ** 10) }}", r"more memory .* \(line 2 of"),
    "text": ("{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}", "writes 99,9.* characters"),
    "recursion": ("\n\n{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r"deeply.* \(line 3 of"),
    "division": ("\n{{ 1 / (messages | length - 2) }}", r"division by zero \(line 2 of"),
    "refusal": ("{{ raise_exception('no \u2026') }}", "conversation: no …$"),
    "undefined": ("\n{{ messages.one.two }}", r"'one' \(line 2 of"),
    "half a character": ("{{ '\\ud83d' }}", "U[+]D83D, which is half of a character"),
    "a template to include": ("{% include 'x' %}", r"no loader .* \(line 1 of"),
    "an unsafe call": ("{{ messages.clear() }}", r"unsafe\. \(line 1 of"),
}


@pytest.mark.parametrize(("bad", "detail"), ROWS_REFUSED.values(), ids=ROWS_REFUSED)
def test_a_row_on_which_a_template_fails_goes_into_the_ledger(
    tmp_path: Path, bad: str, detail: str
) -> None:
    manifest = prepared(tmp_path, f"{NEVER}{bad}{{% endif %}}{CHATML}", never=2)
    assert manifest.rows_dropped == {"template_refused": 2}
    assert [entry["line"] for entry in ledger(tmp_path)] == [1, 2]
    assert all(re.search(detail, entry["detail"]) for entry in ledger(tmp_path))


BROKEN = {
    "syntax": ("a\nb {{ 'x' }", "line 2: unexpected '}'"),
    "an open block": ("{% if x %}\n\n{% for", "line 3: "),
    "an unknown filter": ("\n{{ x | nofilter }}", "line 2: No filter named 'nofilter'"),
    "deep brackets": ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "nested too deeply"),
    "deep blocks": ("{% if 1 %}{% for a in b %}" * 40 + "{% endfor %}{% endif %}" * 40, "nested"),
    "a huge number": ("{{ " + "9" * 5000 + " }}", "limit"),
    "folded without end": ("{{ 9 ** (9 ** 9) }}", "compiling it takes longer than 0.3 s"),
}


@pytest.mark.parametrize(("template", "message"), BROKEN.values(), ids=BROKEN)
def test_a_template_that_is_no_program_is_a_configuration_error(
    tmp_path: Path, template: str, message: str
) -> None:
    with pytest.raises(ConfigError, match="the chat template is not valid: ") as error:
        prepared(tmp_path, template, seconds=0.3 if "takes longer" in message else 60.0)
    assert message in error.value.message
    assert error.value.hint and "--chat-template FILE" in error.value.hint
    assert not (tmp_path / "store").exists()


def test_a_signal_is_heard_while_a_template_hangs(tmp_path: Path) -> None:
    """`train` raises Stopped in its progress function."""
    looks: list[Progress] = []

    def stop(progress: Progress) -> None:
        looks.append(progress)
        raise Stopped("by SIGTERM")

    file = written(tmp_path / "rows.jsonl", [row("never")])
    tokenizer = tokenizer_with(f"{POWER}{CHATML}", seconds=1000)
    with pytest.raises(Stopped):
        prepare_store([file], tmp_path / "out", tokenizer, load_config().data, on_progress=stop)
    assert len(looks) == 1


def test_sigterm_ends_train_inside_a_template(tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(LOOP + CHATML)
    written(tmp_path / "rows.jsonl", [row("never")])
    command = [sys.executable, "-m", "sftctl", "train", "--model", "tiny", "--data", "rows.jsonl"]
    command += ["--set", f"data.chat_template={template}"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 300
    while not (children.exists() and children.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 75, stderr.decode()
    assert b"stopped: by SIGTERM" in stderr


@pytest.mark.parametrize("hang", [LOOP, "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3])
def test_a_rendering_outside_of_a_worker_has_a_timer_too(hang: str) -> None:
    """As in chat and in samples; afterwards the tokenizer is as before."""
    tokenizer = tokenizer_with(f"{NEVER}{hang}{{% endif %}}{CHATML}")
    for _ in range(2):
        with pytest.raises(DataError, match=r"takes longer than 0\.3 s"):
            tokenizer.render([{"role": "user", "content": "never"}])
    text = tokenizer.render([{"role": "user", "content": "hello"}])
    assert text == "<|im_start|>user\nhello<|im_end|>\n"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_broken_template_in_a_chat_is_one_error() -> None:
    with pytest.raises(SftctlError, match="line 1: unexpected"):
        tokenizer_with("{{ 'x' }").render([{"role": "user", "content": "hello"}])
