"""One mutant in a copy of the tree: the tests that should notice it run until one fails."""

import gc
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import cache_from_source
from pathlib import Path

import cosmic_ray.plugins
import pytest
from cosmic_ray.mutating import mutate_code
from cosmic_ray.work_item import MutationSpec

# Imported once, before the forks: a mutant then costs its tests alone.
WARM = (
    *("hypothesis", "numpy", "pyarrow.parquet", "rich.console", "safetensors.torch", "splintr"),
    *("torch.distributed.checkpoint", "torch.distributed.fsdp", "transformers.modeling_utils"),
    *("transformers.models.qwen3.modeling_qwen3", "transformers.models.auto.modeling_auto"),
    *("transformers.models.qwen2.tokenization_qwen2", "transformers.tokenization_utils_fast"),
)
OUTSIDE = ("real", "torture", "benchmarks", "docs", "mutants")  # need data, hours, or no module
FAILED = re.compile(r"^(?:FAILED|ERROR) ([^\s\[]+)", re.MULTILINE)  # with all its parameters


def warm_up() -> None:
    """Import what all tests need, but nothing from this project."""
    for name in WARM:
        importlib.import_module(name)
    gc.freeze()  # pytest collects garbage at its end: not all of this again


def copy_of_the_tree(folder: Path) -> Path:
    """A copy of what git does not ignore; ../shared is linked if there is one."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, capture_output=True, text=True).stdout.splitlines():
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(name, folder / "tree" / name)
    shared = Path.cwd().parent / "shared"
    if shared.exists():
        (folder / "shared").symlink_to(shared.resolve())
    return folder / "tree"


def tests_for(tree: Path, module: Path, wide: bool) -> list[list[str]]:
    """Groups of test files: the module's own, those that import it, (if wide) the room's others.

    A module without a test file of its name has those of its folder.
    """
    folder, name = ".".join(module.with_suffix("").parts).rsplit(".", 1)
    imports = re.compile(rf"from {folder}\.{name} |from {folder} import .*\b{name}\b")
    tests = tree / "tests"
    beside = tests / module.relative_to("sftctl").parent
    own = set(beside.glob(f"test_{module.stem}*.py")) or set(beside.glob("test_*.py"))
    inside = {path for path in tests.rglob("test_*.py") if path.parts[-2] not in OUTSIDE} - own
    importing = {path for path in inside if imports.search(path.read_text(encoding="utf-8"))}
    others = set((tests / module.parts[1]).rglob("test_*.py")) - own - importing if wide else set()
    return [sorted(map(str, group)) for group in (own, importing, others) if group]


@contextmanager
def mutated(tree: Path, mutation: MutationSpec) -> Iterator[tuple[str, str]]:
    """Write the mutant into the copy; the source before and after. Compiled code is removed."""
    path = tree / mutation.module_path
    before = path.read_text(encoding="utf-8")
    operator = cosmic_ray.plugins.get_operator(mutation.operator_name)(**mutation.operator_args)
    after = mutate_code(before, operator, mutation.occurrence)
    assert after is not None, f"{mutation} changes nothing"
    compiled = Path(cache_from_source(str(path)))
    try:
        path.write_text(after, encoding="utf-8")
        compiled.unlink(missing_ok=True)
        yield before, after
    finally:
        path.write_text(before, encoding="utf-8")
        compiled.unlink(missing_ok=True)


def run_tests(tree: Path, words: list[str], seconds: float) -> tuple[int | None, str]:
    """pytest in a fork of this process: its exit code (None: out of time) and its output."""
    log = tree.parent / "output"
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]  # these are not the copy's
        os.environ["PYTHONPATH"] = str(tree)  # also for the processes that tests start
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        own = [f"--basetemp={tree.parent / 'temp'}", "-p", "no:cacheprovider"]
        os._exit(pytest.main(["-x", "-rfE", "--tb=line", *own, *words]))
    deadline = time.monotonic() + seconds
    code: int | None = None
    while code is None and time.monotonic() < deadline:
        time.sleep(0.05)
        done, status = os.waitpid(child, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if done else None
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # also the processes that a failed test left
    if code is None:
        os.waitpid(child, 0)
    return code, log.read_text(encoding="utf-8", errors="replace")


def try_mutant(tree: Path, mutation: MutationSpec, wide: bool, seconds: float) -> str:
    """killed, survived or unknown, and why. Killed: a test fails with it and passes without it."""
    for tests in tests_for(tree, mutation.module_path, wide):
        with mutated(tree, mutation):
            code, output = run_tests(tree, tests, seconds)
        if code is None:
            return f"unknown: out of time: {output[-200:]}"
        if code != 0:
            failed = FAILED.findall(output) or tests
            only_load = [] if code == pytest.ExitCode.TESTS_FAILED else ["--collect-only"]
            code, output = run_tests(tree, [*only_load, *failed], seconds)
            if code == 0:
                return f"killed by {failed[0]}"
            return f"unknown: {failed[0]} fails without the mutant too: {output[-200:]}"
    return "survived"
