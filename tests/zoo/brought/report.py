"""The programs that people bring, as sections of docs/structures.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from brought import batches, forwards, loops, losses, selected
from brought.running import EXACT, Brought, Outcome, outcome

GROUPS: Mapping[str, Mapping[str, Brought]] = {
    "16 bits": losses.SIXTEEN_BITS,
    "Losses that are no mean over records": losses.MEANS,
    "Criteria of several inputs, and a record that is NaN": losses.CRITERIA,
    "Penalties and terms of the parameters": losses.TERMS,
    "Several backwards, several networks": loops.BACKWARDS,
    "Data, sessions and trainers": loops.SESSIONS,
    "Batches of lists, of rows end to end, time first": batches.JOINED,
    "More rows than records": batches.ROWS,
    "Constants beside the batch": batches.CONSTANTS,
    "Tables, and parameters used by hand": selected.TABLES,
    "Rows picked, moved and put back": selected.ROWS,
    "Geometry and codebooks": forwards.GEOMETRY,
    "Algebra, and what is left": forwards.ALGEBRA,
}
PROGRAMS = {name: one for group in GROUPS.values() for name, one in group.items()}
EVERYWHERE = {"own scalar loss", "no ledger path"}
"""Conditions of the loss and the ledger that these programs happen to have."""

TITLE = "## Programs people bring"
HEAD = """
{title}

Programs from public reports, tutorials and other libraries' tests, each as small as it can be, and each run as it is
written: of {all}, {exact} train as they are, {cured} are refused and train by what stands beside them (run as well),
and {left} is refused for good. Of what trains, the clipped sum of one update (noise 0) was compared with that of one
example at a time through an ordinary copy of the model; the last column is a bound on the relative error. The guarantee
then states the [conditions](probe.md#what-stays-on-trust) in the column *states*, and that of any loss of a loop's own
(`own scalar loss`), which `engine.per_example(criterion)` and `session.backward(losses)` do not have.
"""

COLUMNS = ("program", "what happens", "what to write instead, or to know", "states", "relative error")


def counts() -> dict[str, int]:
    """Return how many programs train, are refused with a cure, and are refused for good."""
    found = Counter("exact" if not one.code else "cured" if one.cured else "left" for one in PROGRAMS.values())
    return {"all": len(PROGRAMS), **{word: found[word] for word in ("exact", "cured", "left")}}


def row(name: str, one: Brought) -> str:
    """Run a program, and return its line of the table."""
    found = outcome(one)
    bound = _bound(one, found)
    verdict = f"refused (`{found.code}`)" if found.code else "exact" if bound else "**wrong**"
    stated = ", ".join(f"`{condition}`" for condition in sorted(found.conditions - EVERYWHERE))
    return _line(name, verdict, one.instead or one.why, stated, bound or _measured(found))


def sections(write: Callable[[str, Brought], str] = row) -> list[str]:
    """Return the lines of the page, those of the programs as they are written by `write`."""
    lines = HEAD.format(title=TITLE, **counts()).rstrip().split("\n")
    for title, group in GROUPS.items():
        lines += ["", f"### {title}", "", _line(*COLUMNS), _line(*["---"] * len(COLUMNS))]
        lines += [write(name, one) for name, one in group.items()]
    return lines


def on_the_page(page: str) -> list[str]:
    """Return these lines as a page has them."""
    lines = page.split("\n")
    first = lines.index(TITLE) - 1
    return lines[first : lines.index(next(line for line in lines[first + 2 :] if line.startswith("## "))) - 1]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _bound(one: Brought, found: Outcome) -> str:
    """Return a bound, since digits differ from machine to machine; nothing if the error is beyond what is exact."""
    tolerance = (one.cured or one.program).tolerance
    bounds = sorted({min(bound, tolerance) for bound in (1e-6, EXACT, tolerance)})
    met = [bound for bound in bounds if found.error is not None and found.error <= bound]
    return f"≤ {met[0]:.0e}".replace("e-0", "e-") if met else ""


def _measured(found: Outcome) -> str:
    return "" if found.error is None else f"**{found.error:.0e}**"
