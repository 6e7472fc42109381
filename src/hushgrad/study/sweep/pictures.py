"""The pictures of a sweep: final accuracy against noise and against ε, and the curves over steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from hushgrad.accounting.guarantee import round_up
from hushgrad.study.sweep.style import GREY, Picture, look, new_figure, plain_text, rendered, tidy
from hushgrad.study.sweep.table import Group, is_ordinary

MANY_DECADES = 1e4

# One run's measurements: the lines of its metrics.jsonl.
Measured = Sequence[dict[str, Any]]


def accuracy_picture(groups: Sequence[Group], *, title: str, delta: float) -> Picture:
    """Return final test accuracy against the noise multiplier and against ε, one line per series.

    Points are means over seeds, bands reach from the lowest to the highest run, and a dotted line is the same training
    without privacy.
    """
    figure = new_figure(12, 4.8)
    against_noise, against_epsilon = figure.subplots(1, 2, sharey=True)
    series = list(dict.fromkeys(group.series for group in groups))
    for index, name in enumerate(series):
        members = [group for group in groups if group.series == name]
        ordinary = next((group for group in members if is_ordinary(group)), None)
        noisy = sorted((g for g in members if g.noise_multiplier is not None), key=lambda g: g.noise_multiplier or 0.0)
        _line(against_noise, noisy, lambda g: _noise_place(g.noise_multiplier or 0.0, groups), index, name)
        finite = sorted((g for g in noisy if math.isfinite(g.epsilon)), key=lambda g: g.epsilon)
        _line(against_epsilon, finite, lambda g: g.epsilon, index, name)
        if ordinary is not None:
            for panel in (against_noise, against_epsilon):
                panel.axhline(ordinary.mean, color=look(index)["color"], lw=1, ls=":", alpha=0.8)
    _noise_axis(against_noise, groups)
    against_epsilon.set(title=f"… against ε (δ = {delta:g}; left is more private)", xscale="log", xlabel="ε")
    _plain_logarithm(against_epsilon.xaxis)
    from matplotlib.ticker import PercentFormatter

    against_noise.set(title="Test accuracy against noise", ylabel="test accuracy")
    lowest = min((group.lowest for group in groups), default=0.0)
    against_noise.set_ylim(max(0.0, math.floor(lowest * 10 - 0.5) / 10), 1.02)
    against_noise.yaxis.set_major_formatter(PercentFormatter(1.0))
    for panel in (against_noise, against_epsilon):
        tidy(panel)
    if series:
        against_noise.legend(loc="lower left", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    runs = sorted({group.runs for group in groups})
    points = (
        "one run each" if runs == [1] else f"points: mean of {'–'.join(map(str, runs[:: len(runs) - 1 or 1]))} runs"
    )
    figure.suptitle(
        f"{plain_text(title)}\n{points}; band: lowest to highest; dotted line: without privacy", fontsize=11
    )
    return rendered(figure)


def _plain_logarithm(axis: Any) -> None:
    """Label a logarithmic axis, once everything is drawn, with plain numbers: 1, 2 and 5 of each of a few decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    few = high / low < MANY_DECADES
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=20 if few else 8))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def _line(panel: Any, groups: Sequence[Group], place: Callable[[Group], float], index: int, name: str) -> None:
    if not groups:
        return
    places = [place(group) for group in groups]
    style = look(index)
    panel.plot(places, [group.mean for group in groups], ms=6, lw=1.8, label=plain_text(name), **style)
    low, high = [group.lowest for group in groups], [group.highest for group in groups]
    panel.fill_between(places, low, high, color=style["color"], alpha=0.15, lw=0)


def _noise_place(noise: float, groups: Sequence[Group]) -> float:
    """Return where a noise multiplier stands: its logarithm, and 0 at the left of the smallest."""
    return math.log2(noise) if noise else _place_of_zero(groups)


def _place_of_zero(groups: Sequence[Group]) -> float:
    return math.log2(min((g.noise_multiplier for g in groups if g.noise_multiplier), default=1.0)) - 1.3


def _noise_axis(panel: Any, groups: Sequence[Group]) -> None:
    noises = sorted({round(g.noise_multiplier, 9) for g in groups if g.noise_multiplier is not None})
    panel.set_xlabel("noise multiplier σ (logarithmic)")
    if len(noises) <= 12:
        panel.set_xticks([_noise_place(noise, groups) for noise in noises], [f"{noise:.3g}" for noise in noises])
    else:
        panel.xaxis.set_major_formatter(lambda value, _: f"{2**value:.3g}")


def curves_picture(runs: Sequence[tuple[str, Measured]], *, title: str, delta: float) -> Picture:
    """Return loss, accuracy and ε over steps; `runs` are (aim, measurements), aims in the order of their colours.

    Measurements without a loss give a picture without one. Lines are means over the runs of one aim, bands reach from
    the lowest to the highest.
    """
    with_loss = any("loss" in row for _, measured in runs for row in measured)
    figure = new_figure(13 if with_loss else 10, 4.2)
    panels = list(figure.subplots(1, 3 if with_loss else 2, sharex=True))
    accuracy, epsilon = panels[-2:]
    aims = list(dict.fromkeys(aim for aim, _ in runs))
    for index, aim in enumerate(aims):
        members = [measured for name, measured in runs if name == aim]
        style = {**look(index), "ms": 3, "lw": 1.5}
        if with_loss:
            _curve(panels[0], members, "loss", {**style, "marker": None}, plain_text(aim))
        _curve(accuracy, members, "test_accuracy", style, plain_text(aim))
        _epsilon_curve(epsilon, members, style)
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if with_loss:
        panels[0].set(title="Loss on training batches (outside ε)", ylabel="cross-entropy")
        panels[0].set_ylim(0, _usual_ceiling([row["loss"] for _, measured in runs for row in measured]))
    accuracy.set(title="Test accuracy", ylim=(0, 1.02))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    epsilon.set(title=f"Privacy spent (δ = {delta:g})", ylabel="ε (logarithmic)", yscale="log")
    _plain_logarithm(epsilon.yaxis)
    for panel in panels:
        panel.set_xlabel("step")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        panel.set_xlim(left=0)
        tidy(panel)
    if not epsilon.lines:
        epsilon.set(title="Privacy", ylabel="")
        epsilon.set_yticks([])
        epsilon.minorticks_off()
        epsilon.text(0.5, 0.5, "NOT PRIVATE\nε = ∞", transform=epsilon.transAxes, ha="center", va="center", fontsize=16)
    if len(aims) > 1:
        handles, labels = accuracy.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=9, ncols=8)
    figure.suptitle(plain_text(title), fontsize=11)
    return rendered(figure)


def _curve(panel: Any, members: Sequence[Measured], field: str, style: dict[str, Any], label: str) -> None:
    """Draw the mean and the range over the runs at the steps that all of them measured."""
    values: dict[int, list[float]] = {}
    for measured in members:
        for row in measured:
            if row[field] is not None and math.isfinite(float(row[field])):
                values.setdefault(row["step"], []).append(float(row[field]))
    steps = sorted(step for step, found in values.items() if len(found) == len(members))
    if not steps:
        return
    panel.plot(steps, [statistics.fmean(values[step]) for step in steps], label=label, **style)
    if len(members) > 1:
        low, high = ([pick(values[step]) for step in steps] for pick in (min, max))
        panel.fill_between(steps, low, high, color=style["color"], alpha=0.12, lw=0)


def _epsilon_curve(panel: Any, members: Sequence[Measured], style: dict[str, Any]) -> None:
    """Draw ε of the first run; it depends on public settings only and is the same for every seed."""
    known = [
        (row["step"], float(row["epsilon"]))
        for row in members[0]
        if row["epsilon"] is not None and 0 < float(row["epsilon"]) < math.inf
    ]
    if known:
        panel.plot([step for step, _ in known], [value for _, value in known], **{**style, "marker": None})
        last = round_up(known[-1][1], 3)
        panel.annotate(last, known[-1], textcoords="offset points", xytext=(3, -3), fontsize=8, color=GREY)


def _usual_ceiling(losses: Sequence[Any]) -> float:
    """Return the top of the loss axis: a few diverging runs must not flatten all others."""
    finite = sorted(float(loss) for loss in losses if math.isfinite(float(loss)))
    return 1.1 * finite[int(0.95 * (len(finite) - 1))] or 1.0 if finite else 1.0
