"""Progress on stderr: a live panel on a terminal, plain lines anywhere else."""

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence

from rich.console import Console, Group
from rich.control import Control
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import ControlType
from rich.table import Column, Table
from rich.text import Text

from sftctl import environment
from sftctl.metrics import StepMetrics
from sftctl.tracking import status
from sftctl.tracking.lines import (
    HIDDEN_EVENTS,
    REPEATED_EVENTS,
    LineTracker,
    Pace,
    RunShape,
    event_line,
)
from sftctl.tracking.terminal import without_control_echo
from sftctl.words import format_bytes, format_duration

_SECONDS_PER_FRAME = 0.25
_SECONDS_PER_TICK = 0.5  # the panel is also redrawn during a long step, to update its clock
_SMOOTHED_STEPS = 20
_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.-=+*#@"
_LABEL, _CELL = 7, 18  # widths in characters


def has_panel() -> bool:
    """Whether stderr is a terminal that can move its cursor."""
    # If FORCE_COLOR is set, rich treats a pipe as a terminal. A log file needs no control codes.
    return sys.stderr.isatty() and Console(file=sys.stderr).is_interactive


def make_console_tracker(shape: RunShape) -> "LiveTracker | LineTracker":
    """A tracker that shows a live panel on a terminal, or else writes plain lines."""
    if has_panel():
        plain = not environment.shows_unicode(sys.stderr)
        return LiveTracker(shape, (_AsciiConsole if plain else Console)(file=sys.stderr))
    return LineTracker(shape, sys.stderr)


class _AsciiConsole(Console):
    """A console that uses only ASCII characters."""

    @property
    def encoding(self) -> str:
        return "ascii"


class LiveTracker:
    """Shows a live panel, and prints events above the panel. The panel is erased at the end.

    The panel is redrawn at least twice a second, and for steps at most four times a second. Other
    threads may call `stopping`.
    """

    def __init__(self, shape: RunShape, console: Console) -> None:
        self._shape, self._console = shape, console
        self._pace, self._curve = Pace(), Curve()
        self._losses: deque[float] = deque(maxlen=_SMOOTHED_STEPS)
        self._metrics: StepMetrics | None = None
        self._validation_losses: list[float] = []
        self._validated_at = 0
        self._saved, self._saved_at = "no checkpoint yet", 0.0
        self._is_stopping = False
        for loss in shape.past_losses:
            self._losses.append(loss)
            self._curve.add(loss)
        if shape.past_validation is not None:
            first, last, self._validated_at = shape.past_validation
            self._validation_losses += [first, last] if self._validated_at else [first]
        self._started, self._drawn_at = time.monotonic(), 0.0
        self._drawn_width, self._drawn_lines = console.width, 0
        # stdout is not redirected, because it is for the results of the command.
        self._live = Live(
            get_renderable=self._panel, console=console, auto_refresh=False,
            redirect_stdout=False, transient=True,
        )  # fmt: skip
        self._echo = without_control_echo()
        self._lock, self._over = threading.RLock(), threading.Event()
        self._clock: threading.Thread | None = None

    def log(self, metrics: StepMetrics) -> None:
        with self._lock:
            self._metrics = metrics
            self._pace.add(metrics)
            self._losses.append(metrics.loss)
            self._curve.add(metrics.loss)
            if time.monotonic() - self._drawn_at >= _SECONDS_PER_FRAME:
                self._draw()

    def event(self, name: str, step: int, **fields: object) -> None:
        if name in HIDDEN_EVENTS:
            return
        line = event_line(name, step, fields)
        with self._lock:
            if name == "evaluation":
                self._validation_losses.append(float(str(fields["validation_loss"])))
                self._validated_at = step
            if name in ("saved", "resumed"):
                self._saved, self._saved_at = line.partition(" ")[2], time.monotonic()
            if name == "saved" or name in REPEATED_EVENTS:  # saves are too frequent
                self._draw()
            else:
                self._print(line, "yellow" if name in ("warning", "save_failed") else "")

    def stopping(self, line: str) -> None:
        """Print the answer to a signal above the panel."""
        with self._lock:
            self._is_stopping = True
            self._print(line, "yellow")

    def close(self) -> None:
        self._over.set()
        if self._clock is not None:
            self._clock.join()
        with self._lock:
            self._erase_wrapped_lines()
            self._live.stop()  # erases the panel, restores the cursor and stderr
            self._echo.close()

    def _print(self, line: str, style: str) -> None:
        self._start()
        self._erase_wrapped_lines()
        self._console.print(Text(line, style=style))
        self._draw()

    def _draw(self) -> None:
        self._start()
        self._erase_wrapped_lines()
        self._live.refresh()
        self._drawn_at, self._drawn_width = time.monotonic(), self._console.width
        self._drawn_lines = len(self._console.render_lines(self._panel()))

    def _start(self) -> None:
        if self._clock is None:
            status.hide()
            self._live.start()
            self._clock = threading.Thread(target=self._tick, daemon=True)
            self._clock.start()

    def _tick(self) -> None:
        while not self._over.wait(_SECONDS_PER_TICK):
            with self._lock:
                if time.monotonic() - self._drawn_at >= _SECONDS_PER_TICK:
                    self._draw()

    def _erase_wrapped_lines(self) -> None:
        """Erase the extra lines of the panel after the terminal became narrower.

        Each line of the panel is then wrapped to several lines. But rich erases only the number of
        lines that it wrote.
        """
        rows_a_line = -(-self._drawn_width // self._console.width)
        for _ in range(self._drawn_lines * (rows_a_line - 1)):
            self._console.control(
                Control((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
            )
        self._drawn_width = self._console.width

    def _panel(self) -> Panel:
        phase = "stopping" if self._is_stopping else status.phase() or "training"
        body = Group(self._head(), *self._rows())
        title = Text(f"{self._shape.name} {'·' if self._is_unicode else '-'} {phase}")
        style = "yellow" if self._is_stopping else ""
        return Panel(body, title=title, title_align="left", border_style=style)

    def _head(self) -> Table:
        total_steps, step = self._shape.total_steps, self._step
        head = Table.grid(Column(no_wrap=True), Column(ratio=1), padding=(0, 2, 0, 0), expand=True)
        bar = ProgressBar(
            total=max(1, total_steps), completed=step,
            complete_style="cyan", finished_style="cyan",
        )  # fmt: skip
        passed = format_duration(time.monotonic() - self._started)
        left = format_duration(self._pace.step_time_s * (total_steps - step))
        times = f"{passed}, {left} left" if self._metrics else passed
        head.add_row(_pair("step", f"{step}/{total_steps}"), bar, Text(times))
        return head

    def _rows(self) -> list[Text]:
        rows = [self._loss_row()]
        if self._validation_losses:
            losses = f"{_first_and_last(self._validation_losses)} at step {self._validated_at}"
            rows.append(_row("valid", losses))
        if (now := self._metrics) is not None:
            in_epoch = self._step - now.epoch * self._shape.steps_per_epoch
            epochs, steps = self._shape.epochs, self._shape.steps_per_epoch
            rows += [
                _row("epoch", f"{now.epoch + 1} of {epochs}", f"step {in_epoch} of {steps}",
                     f"lr {now.learning_rate:.1e}", f"grad {now.grad_norm:.3g}"),
                _row("speed", f"{self._pace.tokens_per_s:.0f} tok/s",
                     f"waiting {self._pace.data_wait_ratio:.1%}", *self._use(),
                     f"memory {format_bytes(now.peak_memory_bytes)}"),
            ]  # fmt: skip
        ago = time.monotonic() - self._saved_at
        rows.append(_row("saved", self._saved + (f", {ago:.0f} s ago" if self._saved_at else "")))
        return rows

    def _use(self) -> list[str]:
        mfu = self._pace.mfu(self._shape)
        return [f"mfu {mfu:.0%}"] if mfu else []

    def _loss_row(self) -> Text:
        mean = sum(self._losses) / len(self._losses) if self._losses else None
        row = _row("loss", f"{mean:.4f}" if mean is not None else "-")
        bars = _BARS if self._is_unicode else _ASCII_BARS
        row.append("  " + sparkline(self._curve.points, bars), style="cyan")
        return row

    @property
    def _step(self) -> int:
        return self._metrics.step if self._metrics else self._shape.first_step

    @property
    def _is_unicode(self) -> bool:
        return self._console.encoding.startswith("utf")


class Curve:
    """A curve with less than `size` points. When the limit is reached, each pair of points is
    replaced by its mean."""

    def __init__(self, size: int = 48) -> None:
        self._size, self._values_per_point = size, 1
        self._pending: list[float] = []
        self.points: list[float] = []

    def add(self, value: float) -> None:
        self._pending.append(value)
        if len(self._pending) < self._values_per_point:
            return
        self.points.append(sum(self._pending) / len(self._pending))
        self._pending.clear()
        if len(self.points) == self._size:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [(left + right) / 2 for left, right in pairs]
            self._values_per_point *= 2


def sparkline(values: Sequence[float], bars: str = _BARS) -> str:
    """One character for each value, on a logarithmic scale. The lowest value gets `bars[0]`."""
    logs = [math.log(max(value, 1e-9)) if math.isfinite(value) else None for value in values]
    known = [one for one in logs if one is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(bars[-1 if one is None else round((one - low) * scale)] for one in logs)


def _row(label: str, *cells: str) -> Text:
    """A line of the panel. Each cell begins at a fixed column."""
    row = Text(no_wrap=True, overflow="crop")
    row.append(label.ljust(_LABEL), style="dim")
    for cell in cells[:-1]:
        row.append(cell.ljust(_CELL))
    return row.append(cells[-1])


def _pair(label: str, value: str) -> Text:
    return Text.assemble((label + " ", "dim"), (value, "bold"))


def _first_and_last(values: Sequence[float]) -> str:
    """The first and the last value as text: `7.6241 -> 3.2500`. A single value is shown alone."""
    ends = values[:1] if len(values) == 1 else (values[0], values[-1])
    return " -> ".join(f"{value:.4f}" for value in ends)
