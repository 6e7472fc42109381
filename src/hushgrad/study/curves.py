"""The picture of a run: loss, accuracy and epsilon over the steps."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from hushgrad.accounting.guarantee import round_up
from hushgrad.extras import needs_extra
from hushgrad.study.outcome import Measurement

# Okabe and Ito's palette: told apart with any kind of colour vision, and by line style as well.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
GREY = "#57606A"


def draw_curves(measurements: Sequence[Measurement], *, title: str, delta: float | None) -> bytes:
    """Return a PNG of three panels over steps. `delta` None means an ordinary run, which has no epsilon.

    Needs matplotlib (the `report` extra) and no display.
    """
    with needs_extra("report", "curves.png"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(12, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, epsilon = figure.subplots(1, 3, sharex=True)
    steps = [m.step for m in measurements]
    loss.plot(steps, [m.loss for m in measurements], color=BLUE, label="training")
    loss.set(title="Loss on training batches (outside ε)", ylabel="cross-entropy")
    highest = max((m.loss for m in measurements if math.isfinite(m.loss)), default=0.0)
    loss.set_ylim(0, 1.05 * highest or 1.0)
    accuracy.plot(steps, [m.train_accuracy for m in measurements], color=BLUE, label="training (outside ε)")
    tested = [m for m in measurements if m.test_accuracy is not None]
    accuracy.plot(
        [m.step for m in tested],
        [m.test_accuracy for m in tested],
        color=ORANGE,
        marker="o",
        ms=4,
        ls="--",
        label="test",
    )
    scores = [m.test_scores for m in tested if m.test_scores is not None]
    if scores:
        accuracy.axhline(scores[-1].largest_share, color=GREY, ls=":", lw=1.5, label="largest class (test)")
    accuracy.set(title="Accuracy", ylim=(0, 1.02))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    accuracy.legend(loc="best", frameon=False)
    _draw_epsilon(epsilon, measurements, delta)
    for panel in (loss, accuracy, epsilon):
        panel.set_xlabel("step")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        panel.set_xlim(left=0)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw_epsilon(panel: Any, measurements: Sequence[Measurement], delta: float | None) -> None:
    """Draw epsilon over steps, or say why there is no curve."""
    known = [(m.step, m.epsilon) for m in measurements if m.epsilon is not None and math.isfinite(m.epsilon)]
    if known:
        spent = f"ε = {round_up(known[-1][1], 3)}"
        panel.set(title=spent if delta is None else f"Privacy spent: {spent} at δ = {delta:g}", ylabel="epsilon (ε)")
        # Nothing is spent before the first step.
        panel.plot([0, *(step for step, _ in known)], [0.0, *(epsilon for _, epsilon in known)], color=GREEN)
        panel.set_ylim(0, 1.15 * known[-1][1] or 1.0)
        panel.annotate(
            round_up(known[-1][1], 3), known[-1], textcoords="offset points", xytext=(-4, 6), ha="right", color=GREEN
        )
    else:
        panel.set(title="Privacy", yticks=[])
        panel.text(0.5, 0.5, "NOT PRIVATE\nε = ∞", transform=panel.transAxes, ha="center", va="center", fontsize=16)
