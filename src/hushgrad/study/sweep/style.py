"""The look of pictures: lines can be told apart with any colour vision and, by marker and dash, in print."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from hushgrad.extras import needs_extra

# Okabe and Ito's palette (2008), in an order that keeps neighbours apart in grey as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#777777")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
GREY = "#555555"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in both formats."""

    png: bytes
    svg: bytes


def look(index: int) -> dict[str, Any]:
    """Return matplotlib's settings for the line number `index`."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[(index + index // len(COLOURS)) % len(LINES)],
    }


def new_figure(width: float, height: float) -> Any:
    """Return a figure that needs no display. Sizes are in inches."""
    with needs_extra("report", "a picture"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain_text(text: str) -> str:
    """Return text that matplotlib draws as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def tidy(panel: Any) -> None:
    """Give a panel a light grid and no frame above and to the right."""
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def rendered(figure: Any) -> Picture:
    """Return the picture. The same figure gives the same bytes: no dates, no random identifiers."""
    import matplotlib

    formats = {}
    with matplotlib.rc_context({"svg.hashsalt": "hushgrad", "svg.fonttype": "path"}):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            out = io.BytesIO()
            figure.savefig(out, format=kind, metadata=metadata)
            formats[kind] = out.getvalue()
    return Picture(formats["png"], formats["svg"])
