"""final/ names its step and hashes its files: damage is reported, and a checkpoint is used."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from sftctl import jsonio
from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import manifest_hash_line
from sftctl.checkpoint.sealed import read_seal
from sftctl.runs.final import SOUND_HINT, problems_of_final
from tests.toys.commands import Result, without_phases
from tests.toys.runs import events_named

Sftctl = Callable[..., Result]
WEIGHTS, MANIFEST = "model.safetensors", "manifest.json"
QUESTION = ("--prompt", "Count to 3.", "--max-new-tokens", "8")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


DAMAGE = [
    pytest.param(flip, WEIGHTS, "its content was changed", id="flipped"),
    pytest.param(cut, WEIGHTS, "bytes, the manifest says", id="cut"),
    pytest.param(Path.unlink, WEIGHTS, "missing", id="missing"),
    pytest.param(flip, "tokenizer.json", "its content was changed", id="tokenizer"),
    pytest.param(cut, "config.json", "bytes, the manifest says", id="configuration"),
    pytest.param(flip, MANIFEST, "its SHA-256 is not the one", id="manifest"),
    pytest.param(Path.unlink, MANIFEST, "missing", id="no manifest"),
    pytest.param(Path.unlink, "manifest.json.sha256", "missing", id="no hash of the manifest"),
]


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A finished run of six steps."""
    return shutil.copytree(run, tmp_path / "copy")


def last_step(run: Path) -> int:
    return int(list_checkpoints(run / "checkpoints")[-1].name[5:])


def test_it_names_its_step_and_every_file(copy: Path) -> None:
    final = copy / "final"
    found = read_seal(final)
    names = {path.name for path in final.iterdir()} - {MANIFEST, "manifest.json.sha256"}
    assert (found.step, set(found.files)) == (last_step(copy), names)
    assert {WEIGHTS, "config.json", "tokenizer.json"} <= names
    assert problems_of_final(final) == []


@pytest.mark.parametrize("damage, name, words", DAMAGE)
def test_damage_is_reported_and_a_checkpoint_is_used_until_a_resume_repairs_it(
    sftctl: Sftctl, copy: Path, damage: Callable[[Path], None], name: str, words: str
) -> None:
    before = {file.name: file.read_bytes() for file in (copy / "final").iterdir()}
    damage(copy / "final" / name)
    answered = sftctl("inspect-ckpt", copy, "--verify")
    assert answered.exit_code == 4 and words in answered.error
    assert f"{copy}/final/" in answered.error
    assert "hint: `sftctl resume` writes the final model again" in answered.stderr

    itself = sftctl("inspect-ckpt", copy / "final", "--verify", "--json")
    assert jsonio.loads(itself.stdout)["advice"] == f"`sftctl resume {copy}` writes it again"
    assert f"hint: `sftctl resume {copy}` writes it again" in itself.stderr
    direct = sftctl("chat", copy / "final", *QUESTION)
    assert direct.exit_code == 4, direct.stderr
    further = sftctl("train", "--model", copy / "final", "--max-steps", 1, "--output-dir", "more")
    assert further.exit_code in (2, 4) and str(copy / "final") in further.error
    exported = sftctl("export", copy, "--output", copy / "exported")
    assert exported.exit_code == 0
    assert f"final: {problems_of_final(copy / 'final')[0]}; step-" in exported.stderr
    assert (copy / "exported" / WEIGHTS).read_bytes() == before[WEIGHTS]

    resumed = sftctl("resume", copy)
    assert resumed.exit_code == 0 and "final/ is written again: " in resumed.stderr
    assert {file.name: file.read_bytes() for file in (copy / "final").iterdir()} == before
    assert any("final/" in event["message"] for event in events_named(copy, "warning"))
    assert sftctl("inspect-ckpt", copy, "--verify").exit_code == 0
    assert "already finished" in sftctl("resume", copy).stdout


def test_chat_uses_the_checkpoint_of_the_same_step(sftctl: Sftctl, copy: Path) -> None:
    answer = sftctl("chat", copy, *QUESTION)
    assert "warning" not in answer.stderr
    flip(copy / "final" / WEIGHTS)
    instead = sftctl("chat", copy, *QUESTION)
    assert instead.stdout == answer.stdout
    assert f"; step-{last_step(copy):08d} is used instead" in instead.stderr
    shutil.rmtree(copy / "checkpoints")
    assert sftctl("chat", copy, *QUESTION).exit_code == 4


def test_a_final_model_of_an_earlier_version_goes_on_working(sftctl: Sftctl, copy: Path) -> None:
    for name in (MANIFEST, "manifest.json.sha256"):
        (copy / "final" / name).unlink()
    assert without_phases(sftctl("chat", copy, *QUESTION).stderr) == []
    assert "already finished" in sftctl("resume", copy).stdout
    shown = sftctl("inspect-ckpt", copy, "--verify")
    assert shown.exit_code == 0 and "written by an earlier version" in shown.stdout


def test_a_final_model_of_another_step_is_not_used(sftctl: Sftctl, copy: Path) -> None:
    """For example one that was put back from a copy of an earlier directory."""
    later = last_step(copy) + 4
    rewrite_manifest(copy / "final", step=later, last_step=later, choice="last")
    words = f"of step {later}, and the last checkpoint is of step {last_step(copy)}"
    assert_refused(sftctl, copy, words)
    assert read_seal(copy / "final").step == last_step(copy)


def assert_refused(sftctl: Sftctl, run: Path, words: str) -> None:
    """No command takes the final model of this run; a resume writes it again."""
    assert words in sftctl("chat", run, *QUESTION).stderr
    for command in (("chat", run / "final", *QUESTION), ("train", "--model", run / "final")):
        refused = sftctl(*command)
        assert refused.exit_code == 4 and words in refused.error
    for path in (run, run / "final"):
        assert words in sftctl("inspect-ckpt", path).error
    assert words in sftctl("resume", run).stderr
    assert problems_of_final(run / "final") == []


def test_a_final_model_of_another_run_or_of_other_weights_is_not_used(
    sftctl: Sftctl, copy: Path, tmp_path: Path
) -> None:
    """Both are whole and of the right step."""
    other = shutil.copytree(copy, tmp_path / "other")
    back = ("--step", last_step(copy) - 1, "--allow", "optim.weight_decay")
    edit(other / "config.toml", "weight_decay = 0.0", "weight_decay = 0.5")
    assert sftctl("resume", other, *back).exit_code == 0
    exchange_final(copy, other)
    assert_refused(sftctl, copy, "its weights are not those of step-")
    rewrite_manifest(other / "final", run_id="f00")
    assert_refused(sftctl, other, "of another run (run_id ")


def rewrite_manifest(folder: Path, without: Iterable[str] = (), **values: object) -> None:
    """Change and leave out values in the manifest of a folder; its hash fits again."""
    manifest = jsonio.loads((folder / MANIFEST).read_bytes()) | values
    assert manifest.keys() > {*without}
    data = jsonio.dump_pretty({k: v for k, v in manifest.items() if k not in without})
    (folder / MANIFEST).write_bytes(data)
    (folder / "manifest.json.sha256").write_bytes(manifest_hash_line(data))


def edit(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def exchange_final(run: Path, other: Path) -> None:
    shutil.move(run / "final", run / "mine")
    shutil.copytree(other / "final", run / "final")


def test_a_final_model_that_knows_only_its_step_goes_on_working(sftctl: Sftctl, copy: Path) -> None:
    """Those of an earlier version; as a folder of its own, it has no run to be compared with."""
    rewrite_manifest(copy / "final", without=("run_id", "checkpoint_files"))
    assert problems_of_final(copy / "final") == []
    assert "already finished" in sftctl("resume", copy).stdout
    alone = shutil.copytree(copy / "final", copy / "elsewhere" / "final")
    assert problems_of_final(alone) == []
    flip(alone / WEIGHTS)
    shown = sftctl("inspect-ckpt", alone, "--verify")
    assert "sftctl train" not in shown.stdout and f"hint: {SOUND_HINT}" in shown.stderr


def test_a_run_that_goes_back_has_the_final_model_of_its_new_end(
    sftctl: Sftctl, copy: Path
) -> None:
    earlier = last_step(copy) - 1
    done = sftctl("resume", copy, "--step", earlier, "--max-steps", earlier)
    assert done.exit_code == 0 and f"step {earlier} of {earlier}" in done.stdout
    assert "already finished" in sftctl("resume", copy).stdout
    assert read_seal(copy / "final").step == earlier == last_step(copy)
    answers = [sftctl("chat", path, *QUESTION) for path in (copy, checkpoint_of(copy, earlier))]
    assert answers[0] == answers[1]


def checkpoint_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def test_the_json_of_an_inspection_describes_final(sftctl: Sftctl, copy: Path) -> None:
    known = {"path": f"{copy}/final", "step": last_step(copy), "choice": "best"} | {
        "verified": None,
        "problems": [],
    }
    for flags, verified in (((), None), (("--verify",), True)):
        shown = jsonio.loads(sftctl("inspect-ckpt", copy, "--json", *flags).stdout)
        assert shown["final"] == known | {"verified": verified}
    shown = jsonio.loads(sftctl("inspect-ckpt", copy / "final", "--json", "--verify").stdout)
    assert (shown["step"], shown["verified"], shown["complete"]) == (last_step(copy), True, True)
