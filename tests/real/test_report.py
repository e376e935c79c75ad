"""The report in a real browser: both colour schemes, a wide and a narrow screen."""

import json
import re
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path

import pytest

from tests.real.conftest import sftctl
from tests.toys.records import toy_run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCHEMES = {"dark": 0, "light": 1}
GROUND = {"dark": (0x11, 0x15, 0x1B), "light": (0xF6, 0xF7, 0xF9)}

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(BROWSER is None, reason="no chromium (apt-get install chromium)"),
]


def browse(*arguments: str) -> str:
    """Run the browser once, with a profile of its own; returns its stdout."""
    with tempfile.TemporaryDirectory() as profile:
        command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a long toy run on a real store."""
    folder = tmp_path_factory.mktemp("report")
    run = toy_run(folder, 3000, tracking__wandb_project="<b>not bold</b>")
    sftctl("prepare-data", "--output", folder / "store")
    started = {"event": "started", "step": 0, "time": 0.0, "store": str(folder / "store")}
    lines = (run / "events.jsonl").read_text().splitlines()
    (run / "events.jsonl").write_text("\n".join([json.dumps(started), *lines[1:]]) + "\n")
    sftctl("report", run)
    return run / "report.html"


@pytest.mark.parametrize("width", [1280, 500])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_has_the_colours_that_the_reader_prefers(
    page: Path, tmp_path: Path, scheme: str, width: int
) -> None:
    picture = tmp_path / f"{scheme}-{width}.png"
    browse(
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
        f"--window-size={width},1600",
        f"--screenshot={picture}",
        page.as_uri(),
    )
    data = picture.read_bytes()
    assert first_pixel(data) == GROUND[scheme]
    assert len(data) > 40_000  # curves and text, not an empty page


def first_pixel(png: bytes) -> tuple[int, ...]:
    """Red, green and blue of the upper left pixel, which no PNG filter changes."""
    chunks, at = b"", 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] == b"IDAT":
            chunks += png[at + 8 : at + 8 + length]
        at += 12 + length
    return tuple(zlib.decompress(chunks)[1:4])


def test_the_script_runs_and_no_text_became_markup(page: Path) -> None:
    drawn = browse("--dump-dom", page.as_uri())
    outputs, curves = drawn.count("<output hidden"), drawn.count(" data-curves=")
    assert outputs == curves > 5  # the script makes one for each
    assert "&lt;b&gt;not bold&lt;/b&gt;" in drawn
    assert "<b>" not in drawn


def test_nothing_is_wider_than_a_narrow_screen(page: Path, tmp_path: Path) -> None:
    """A frame as narrow as a phone reports the width that its content needs."""
    probe = tmp_path / "probe.html"
    script = "document.title = String(document.documentElement.scrollWidth)"
    narrow = page.read_text().replace("</body>", f"<script>{script}</script></body>")
    (tmp_path / "narrow.html").write_text(narrow)
    probe.write_text(
        '<iframe id="f" src="narrow.html" style="width:360px;height:800px;border:0"></iframe>'
        "<script>f.onload = () => { document.title = f.contentDocument.title }</script>"
    )
    drawn = browse("--allow-file-access-from-files", "--dump-dom", probe.as_uri())
    assert re.search(r"<title>(\d+)</title>", drawn)[1] == "360"  # type: ignore[index]
