"""Is the noise of different steps, parameters and coordinates independent?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hushgrad.checks.verification.checks import statistics as st
from hushgrad.checks.verification.verdict import Check

Array = NDArray[Any]
Draw = Mapping[str, Array]
_MOST_CORRELATED = 64
SHOWN_WITH = 0.999
_MOST_SHIFTED = 1 << 17


def across_steps(flat: Sequence[Array], alpha: float) -> Check:
    """Every pair of steps, up to 64 steps."""
    rows = np.stack([values[:_MOST_SHIFTED] for values in flat[:_MOST_CORRELATED]])
    return _pairs(
        rows, "noise-across-steps", "the noise of different steps is independent", f"pairs of {len(rows)} steps", alpha
    )


def across_parameters(scaled: Sequence[Mapping[str, Array]], names: Sequence[str], alpha: float) -> Check:
    """Every pair of parameters, in the first values that both have, over all steps."""
    claim = "the noise of different parameters is independent"
    found: list[tuple[float, float, int]] = []
    chosen = sorted(names, key=lambda name: -len(scaled[0][name]))[:_MOST_CORRELATED]
    joined = {name: np.stack([draw[name][:_MOST_SHIFTED] for draw in scaled[:_MOST_CORRELATED]]) for name in chosen}
    for one, other in itertools.combinations(chosen, 2):
        width = min(joined[one].shape[1], joined[other].shape[1])
        x, y = joined[one][:, :width].ravel(), joined[other][:, :width].ravel()
        if len(x) >= 3:
            r = _correlation(x, y)
            found.append((st.correlation_p(r, len(x)), r, len(x)))
    return _worst_correlation(found, "noise-across-parameters", claim, f"{len(found)} pairs of parameters", alpha)


def across_coordinates(scaled: Sequence[Mapping[str, Array]], names: Sequence[str], alpha: float) -> Check:
    """Within a parameter: neighbours, halves, and mirrored halves, over all steps."""
    found: list[tuple[float, float, int]] = []
    for name in names:
        rows = np.stack([draw[name][:_MOST_SHIFTED] for draw in scaled[:_MOST_CORRELATED]])
        size = rows.shape[1]
        half = size // 2
        for x, y in (
            *((rows[:, :-lag], rows[:, lag:]) for lag in (1, 2, 3, 4) if size > 2 * lag),
            (rows[:, :half], rows[:, half : 2 * half]),
            (rows[:, :half], rows[:, ::-1][:, :half]),
        ):
            if x.size >= 1000:
                r = _correlation(x.ravel(), y.ravel())
                found.append((st.correlation_p(r, x.size), r, x.size))
    return _worst_correlation(
        found,
        "noise-across-coordinates",
        "the noise of different coordinates is independent",
        f"{len(found)} shifts and halves",
        alpha,
    )


def _correlation(x: Array, y: Array) -> float:
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if 0 < scale < math.inf else 0.0


def _pairs(rows: Array, code: str, claim: str, what: str, alpha: float) -> Check:
    found: list[tuple[float, float, int]] = []
    norms = np.sqrt((rows**2).sum(1))
    gram = rows @ rows.T
    for one, other in itertools.combinations(range(len(rows)), 2):
        scale = norms[one] * norms[other]
        if 0 < scale < math.inf and rows.shape[1] >= 3:
            r = float(gram[one, other] / scale)
            found.append((st.correlation_p(r, rows.shape[1]), r, rows.shape[1]))
    return _worst_correlation(found, code, claim, what, alpha)


def _worst_correlation(
    found: Sequence[tuple[float, float, int]], code: str, claim: str, what: str, alpha: float
) -> Check:
    if not found:
        return Check(code=code, part="noise", claim=claim, measured="nothing to compare", passed=True, sample_size=0)
    worst = min(found)
    p = min(1.0, worst[0] * len(found))
    reach = float(-st.ndtri(alpha / len(found) / 2) - st.ndtri(1 - SHOWN_WITH))
    return Check(
        code=code,
        part="noise",
        claim=claim,
        measured=f"the largest of {what}: correlation {worst[1]:.3g}",
        passed=p >= alpha,
        sample_size=sum(part[2] for part in found),
        statistic=worst[1],
        p_value=p,
        false_alarm=alpha,
        power=f"a correlation of {reach / math.sqrt(min(part[2] for part in found)):.2g} with probability {SHOWN_WITH}",
    )
