"""A made-up table of hospital stays, as somebody's export has it: Latin-1, semicolons, decimal commas, days first."""

from __future__ import annotations

import csv
import io
from datetime import date, timedelta

import numpy as np

COLUMNS = ("Fallnr", "Patient", "Alter", "Größe", "Kreatinin", "Aufnahme", "Abteilung", "Haus", "Tage", "gestorben")
WARDS = ("Chirurgie", "Innere", "Gynäkologie", "Pädiatrie", "Intensiv")
SHARE = 0.04


def stays(rows: int, seed: int = 0) -> list[dict[str, str]]:
    """Return so many stays, about 2.5 for each patient and at most 12, of which about SHARE end in death."""
    draw = np.random.default_rng(seed)
    made: list[tuple[float, dict[str, str]]] = []
    patient = 0
    while len(made) < rows:
        patient += 1
        age, size = int(draw.integers(0, 98)), draw.normal(170, 9)
        for _ in range(min(12, int(draw.geometric(0.4)), rows - len(made))):
            creatinine, ward = float(draw.lognormal(0, 0.35)), int(draw.integers(len(WARDS)))
            day = date(2019, 1, 1) + timedelta(days=int(draw.integers(0, 1800)))
            winter = 0.5 if day.month in (12, 1, 2) else 0.0
            risk = 0.05 * age + 1.6 * np.log(creatinine) + (1.5 if ward == 4 else 0.0) + winter + draw.gumbel() * 0.6
            cells = {
                "Fallnr": f"F{len(made):07d}",
                "Patient": f"P{patient:06d}",
                "Alter": str(age),
                "Größe": "" if draw.random() < 0.1 else f"{size:.1f}".replace(".", ","),
                "Kreatinin": "NA" if draw.random() < 0.03 else f"{creatinine:.2f}".replace(".", ","),
                "Aufnahme": day.strftime("%d.%m.%Y"),
                "Abteilung": WARDS[ward],
                "Haus": "Süd",
                "Tage": str(int(draw.geometric(0.2))),
            }
            made.append((float(risk), cells))
    above = sorted((risk for risk, _ in made), reverse=True)[round(SHARE * rows)]
    return [{**cells, "gestorben": "ja" if risk > above else "nein"} for risk, cells in made]


def as_csv(rows: list[dict[str, str]]) -> bytes:
    """Return the table as bytes, in the order of COLUMNS."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [name for name in COLUMNS if name in rows[0]], delimiter=";", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode("latin-1")


def area_under_curve(scores: list[float], positive: list[bool]) -> float:
    """Return the probability that a positive row has a higher score than another one; ties count half."""
    value, is_positive = np.asarray(scores), np.asarray(positive)
    ranks = np.unique(value, return_inverse=True, return_counts=True)
    ends = np.cumsum(ranks[2])
    mean_rank = (ends - (ranks[2] - 1) / 2)[ranks[1]]
    count = is_positive.sum()
    return float((mean_rank[is_positive].sum() - count * (count + 1) / 2) / (count * (~is_positive).sum()))
