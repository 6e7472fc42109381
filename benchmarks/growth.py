"""How step time grows with batch, positions, width and depth: the exponent of a private step beside the ordinary one's.

Along each axis one size of the encoder changes and the others stay. Fitted is log(time) = a + e·log(size) by least
squares. The exponent e is a summary over the range shown and no law: fixed costs pull it down, attention's square up.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.contestants import CONTESTANTS, HUSHGRAD, ORDINARY
from benchmarks.machine import Machine
from benchmarks.timing import Interval, interleave
from benchmarks.workloads import Workload, encoder


@dataclass(frozen=True)
class Axis:
    """One size that changes.

    Attributes:
        title: what it is called on the plot.
        sizes: its values, growing.
        workload: from a value to what is trained.
    """

    title: str
    sizes: tuple[int, ...]
    workload: Callable[[int], Workload]


def _sized(batch_size: int = 8, positions: int = 64, width: int = 128, depth: int = 2) -> Workload:
    return encoder(batch_size, positions, width, depth, vocabulary=1024)


AXES: dict[str, Axis] = {
    "batch": Axis("batch size B", (2, 4, 8, 16, 32), lambda size: _sized(batch_size=size)),
    "positions": Axis("positions T", (16, 32, 64, 128, 256), lambda size: _sized(positions=size)),
    "width": Axis("width d", (32, 64, 128, 256, 512), lambda size: _sized(width=size)),
    "depth": Axis("depth L", (1, 2, 4, 8, 16), lambda size: _sized(depth=size)),
}


@dataclass(frozen=True)
class Curve:
    """Step times of one contestant along an axis, in milliseconds, and their exponent with its standard error."""

    step_ms: tuple[Interval, ...]
    exponent: float
    standard_error: float


@dataclass(frozen=True)
class Growth:
    """Both contestants along one axis.

    Attributes:
        ratios: of paired step times, hushgrad to ordinary, one for each size.
    """

    title: str
    sizes: tuple[int, ...]
    curves: dict[str, Curve]
    ratios: tuple[Interval, ...]


@dataclass(frozen=True)
class GrowthResults:
    """One run over all axes."""

    command: str
    machine: Machine
    pairs: int
    warm_up: int
    axes: dict[str, Growth]

    def to_json(self) -> str:
        """Return the results as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def fitted_exponent(sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """Return e of time ≈ c·size^e by least squares of the logarithms, and the standard error of e.

    Raises ValueError for fewer than three different sizes: two leave nothing to judge the fit by.
    """
    if len(set(sizes)) < 3:
        raise ValueError(f"an exponent needs at least three different sizes, got {len(set(sizes))}")
    x, y = np.log(np.asarray(sizes, dtype=float)), np.log(np.asarray(times, dtype=float))
    deviations = x - x.mean()
    spread = float(deviations @ deviations)
    exponent = float(deviations @ y) / spread
    residuals = y - y.mean() - exponent * deviations
    return exponent, math.sqrt(float(residuals @ residuals) / (len(x) - 2) / spread)


def grow(axis: Axis, *, pairs: int, warm_up: int) -> Growth:
    """Time the ordinary and the private step in turn at each size of an axis."""
    times: dict[str, list[Interval]] = {ORDINARY: [], HUSHGRAD: []}
    ratios = []
    for size in axis.sizes:
        runners = {name: CONTESTANTS[name].build(axis.workload(size), 1.0) for name in times}
        timings = interleave(runners, rounds=pairs, warm_up=warm_up)
        for name, curve in times.items():
            curve.append(timings.median_ms(name))
        ratios.append(timings.ratio(HUSHGRAD, ORDINARY))
    curves = {
        name: Curve(tuple(points), *fitted_exponent(axis.sizes, [point.median for point in points]))
        for name, points in times.items()
    }
    return Growth(axis.title, axis.sizes, curves, tuple(ratios))


def growth_table(results: GrowthResults) -> list[list[str]]:
    """Return a row for each axis: the range, both exponents, and the ratio at both ends."""
    rows = [["step time grows with", "range", "ordinary: exponent", "hushgrad: exponent", "ratio at both ends"]]
    for growth in results.axes.values():
        exponents = [f"{growth.curves[name].exponent:.2f} ± {growth.curves[name].standard_error:.2f}" for name in _BOTH]
        ends = f"{growth.ratios[0].median:.2f} … {growth.ratios[-1].median:.2f}"
        rows.append([growth.title, f"{growth.sizes[0]} … {growth.sizes[-1]}", *exponents, ends])
    return rows


_BOTH = (ORDINARY, HUSHGRAD)


def draw(results: GrowthResults, path: Path) -> None:
    """Draw step time against size, one panel for each axis, both scales logarithmic, with 95% intervals.

    Needs matplotlib, which `hushgrad[study]` brings.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(3.4 * len(results.axes), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(results.axes), sharey=True, squeeze=False)[0]
    for panel, growth in zip(panels, results.axes.values(), strict=True):
        for name, marker in zip(_BOTH, "os", strict=True):
            curve = growth.curves[name]
            middle = np.array([point.median for point in curve.step_ms])
            low = middle - [point.low for point in curve.step_ms]
            high = [point.high for point in curve.step_ms] - middle
            label = f"{CONTESTANTS[name].title}: exponent {curve.exponent:.2f}"
            panel.errorbar(growth.sizes, middle, yerr=[low, high], marker=marker, capsize=2, label=label)
        panel.set(xscale="log", yscale="log", xlabel=growth.title)
        panel.xaxis.set_major_locator(FixedLocator(list(growth.sizes)))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticklabels([str(size) for size in growth.sizes])
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", frameon=False)
    panels[0].set_ylabel("milliseconds of a step")
    figure.savefig(path, dpi=150)
