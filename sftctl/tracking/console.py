"""Progress on stderr: a live panel on a terminal, plain lines anywhere else."""

import sys
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.control import Control
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import ControlType
from rich.table import Column, Table
from rich.text import Text

from sftctl.metrics import StepMetrics
from sftctl.tracking.lines import HIDDEN_EVENTS, LineTracker, Pace, RunShape, event_line
from sftctl.tracking.tracker import Tracker
from sftctl.words import format_bytes, format_duration

_SECONDS_PER_FRAME = 0.25
_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.-=+*#@"
_GAP = "   "


def has_panel() -> bool:
    """Whether stderr is a terminal that can move its cursor."""
    # FORCE_COLOR makes rich treat a pipe as a terminal, but a log file must have no control codes.
    return sys.stderr.isatty() and Console(file=sys.stderr).is_interactive


def make_console_tracker(shape: RunShape) -> Tracker:
    """A live panel if the terminal can show one, else plain lines."""
    if has_panel():
        return LiveTracker(shape, Console(file=sys.stderr))
    return LineTracker(shape, sys.stderr)


class LiveTracker:
    """A panel that is redrawn on a step or event, at most four times a second, without a thread."""

    def __init__(self, shape: RunShape, console: Console) -> None:
        self._shape, self._console = shape, console
        self._pace, self._losses = Pace(), Curve()
        self._metrics: StepMetrics | None = None
        self._validation_losses: list[float] = []
        self._saved = "none yet"
        self._drawn_at = 0.0
        self._drawn_width, self._drawn_lines = console.width, 0
        # Don't redirect stdout: it belongs to the command's results.
        self._live = Live(
            get_renderable=self._panel, console=console, auto_refresh=False, redirect_stdout=False
        )

    def log(self, metrics: StepMetrics) -> None:
        self._metrics = metrics
        self._pace.add(metrics)
        self._losses.add(metrics.loss)
        if time.monotonic() - self._drawn_at >= _SECONDS_PER_FRAME:
            self._draw()

    def event(self, name: str, step: int, **fields: object) -> None:
        if name in HIDDEN_EVENTS:
            return
        line = event_line(name, step, fields)
        if name == "evaluation":
            self._validation_losses.append(float(str(fields["validation_loss"])))
        if name == "saved":  # frequent, so the panel shows only the last one
            self._saved = line.removeprefix("saved ")
        else:
            self._live.start()
            self._erase_wrapped_lines()
            style = "yellow" if name in ("warning", "save_failed") else ""
            self._console.print(Text(line, style=style))
        self._draw()

    def close(self) -> None:
        self._erase_wrapped_lines()
        self._live.stop()  # draws the last state, restores the cursor and stderr

    def _draw(self) -> None:
        self._live.start()
        self._erase_wrapped_lines()
        self._live.refresh()
        self._drawn_at, self._drawn_width = time.monotonic(), self._console.width
        self._drawn_lines = len(self._console.render_lines(self._panel()))

    def _erase_wrapped_lines(self) -> None:
        """Erase the extra rows of a panel whose lines were wrapped by a narrower terminal.

        rich moves up by the number of lines it wrote, and each of them now takes several rows.
        """
        rows_a_line = -(-self._drawn_width // self._console.width)
        for _ in range(self._drawn_lines * (rows_a_line - 1)):
            self._console.control(
                Control((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
            )
        self._drawn_width = self._console.width

    def _panel(self) -> Panel:
        total_steps = self._shape.total_steps
        step = self._metrics.step if self._metrics else self._shape.first_step
        left = (
            format_duration(self._pace.step_time_s * (total_steps - step)) if self._metrics else "-"
        )
        head = Table.grid(Column(no_wrap=True), Column(ratio=1), padding=(0, 2, 0, 0), expand=True)
        bar = ProgressBar(total=max(1, total_steps), completed=step)
        head.add_row(_pair("step", f"{step}/{total_steps}"), bar, _pair("eta", left))
        room = self._console.width - len("│  │")
        body = Group(head, self._loss_row(), *wrap_pairs(self._facts(step), room))
        return Panel(body, title="sftctl", title_align="left")

    def _loss_row(self) -> Text:
        loss = f"{self._metrics.loss:.4f}" if self._metrics else "-"
        row = _pair("loss", loss)
        bars = _BARS if self._console.encoding.startswith("utf") else _ASCII_BARS
        row.append("  " + sparkline(self._losses.points, bars), style="cyan")
        row.no_wrap, row.overflow = True, "crop"
        return row

    def _facts(self, step: int) -> list[Text]:
        pairs = []
        if self._validation_losses:
            pairs.append(_pair("validation loss", _first_and_last(self._validation_losses)))
        if self._metrics:
            epoch = self._metrics.epoch
            step_in_epoch = step - epoch * self._shape.steps_per_epoch
            pairs += [
                _pair("epoch", f"{epoch} of 0..{self._shape.epochs - 1}"),
                _pair("step in epoch", f"{step_in_epoch}/{self._shape.steps_per_epoch}"),
                _pair("lr", f"{self._metrics.learning_rate:.1e}"),
                _pair("grad", f"{self._metrics.grad_norm:.3g}"),
                _pair("tok/s", f"{self._pace.tokens_per_s:.0f}"),
                _pair("targets/s", f"{self._pace.target_tokens_per_s:.0f}"),
                *([_pair("mfu", f"{mfu:.0%}")] if (mfu := self._pace.mfu(self._shape)) else []),
                _pair("wait", f"{self._pace.data_wait_ratio:.1%}"),
                _pair("padding", f"{self._pace.padding_ratio:.1%}"),
                _pair("memory", format_bytes(self._metrics.peak_memory_bytes)),
            ]
        return [*pairs, _pair("checkpoint", self._saved)]


class Curve:
    """A complete curve in less than `size` points: when it is full, pairs become their mean."""

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
    """One character per value: the first of `bars` for the lowest, the last for the highest."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(bars[round((value - low) * scale)] for value in values)


def wrap_pairs(pairs: Sequence[Text], width: int) -> list[Text]:
    """Lines with as many pairs as fit; a pair is never split between lines."""
    lines: list[Text] = []
    for pair in pairs:
        if lines and lines[-1].cell_len + len(_GAP) + pair.cell_len <= width:
            lines[-1].append(_GAP).append_text(pair)
        else:
            lines.append(pair.copy())
    return lines


def _pair(label: str, value: str) -> Text:
    return Text.assemble((label + " ", "dim"), (value, "bold"))


def _first_and_last(values: Sequence[float]) -> str:
    """`7.6241 -> 3.2500`, or one number if there is only one."""
    ends = values[:1] if len(values) == 1 else (values[0], values[-1])
    return " -> ".join(f"{value:.4f}" for value in ends)
