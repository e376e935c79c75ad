"""`make fuzz`: damage one valid file of each format again and again, and run what reads it.

A command may refuse a damaged file. It must not show a traceback, use more than 10 seconds of the
processor or 512 MiB, print control characters, or end with an exit code that means a bug. A file
that makes it do so is kept in `.fuzz/`.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.formats import FORMATS
from tests.fuzz.mutate import mutated
from tests.fuzz.trial import run

_KEPT = Path(".fuzz")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=FORMATS, nargs="*", default=list(FORMATS))
    options = parser.parse_args()
    _load_what_children_need()
    with tempfile.TemporaryDirectory() as folder:
        kept = _KEPT.absolute()
        os.chdir(folder)
        faults, done = _fuzz(options.format, options.seconds, random.Random(options.seed), kept)
    print(f"{sum(done.values())} damaged files: {dict(done)}; {faults} faults")
    return 1 if faults else 0


def _load_what_children_need() -> None:
    """Children are forked: what is loaded here need not be loaded a thousand times."""
    import gguf  # noqa: F401

    import sftctl.cli.app
    import sftctl.cli.show.checkpoint
    import sftctl.cli.show.tensors
    import sftctl.data.prepare.prepare
    import sftctl.inspection.diff
    import sftctl.inspection.inspect
    import sftctl.inspection.tensors.statistics  # noqa: F401


def _fuzz(
    formats: list[str], seconds: float, chance: random.Random, kept: Path
) -> tuple[int, Counter[str]]:
    """The number of faults, and of damaged files by format."""
    faults, done = 0, Counter[str]()
    examples = {name: _example(name) for name in formats}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, valid in examples.items():
            path = Path("work") / valid.relative_to(Path("valid") / name)
            _damage(valid, path, chance)
            format = FORMATS[name]
            command = chance.choice(format.commands)
            trial = run([part.format(path) for part in command])
            done[name] += 1
            if fault := trial.fault(format.exit_codes):
                faults += 1
                where = kept / f"{name}-{faults}"
                shutil.copytree("work", where, dirs_exist_ok=True)
                print(f"{name}: {fault}: {' '.join(command)}: {where}", file=sys.stderr)
                print(trial.stderr.decode(errors="replace")[-600:], file=sys.stderr)
    return faults, done


def _example(name: str) -> Path:
    folder = Path("valid") / name
    folder.mkdir(parents=True)
    return FORMATS[name].make(folder)


def _damage(valid: Path, path: Path, chance: random.Random) -> None:
    """A copy of the valid file or folder at `path`, with damage to one of its files."""
    shutil.rmtree("work", ignore_errors=True)
    shutil.rmtree("store", ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if valid.is_dir():
        shutil.copytree(valid, path)
    else:
        shutil.copyfile(valid, path)
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    file = chance.choice(files)
    file.write_bytes(mutated(file.read_bytes(), chance))


if __name__ == "__main__":
    sys.exit(main())
