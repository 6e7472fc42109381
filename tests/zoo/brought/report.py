"""The programs that people bring, as sections of docs/structures.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

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
PROGRAMS = {f"{title}: {name}": one for title, group in GROUPS.items() for name, one in group.items()}

HEAD = """
## Programs people bring

Programs from public reports, tutorials and other libraries' tests, each as small as it can be. Each was run as it is
written: {exact} of {all} train as they are, {cured} are refused and train by what stands beside them, and {left} is
refused for good. Of what trains, the clipped sum of one update (noise 0) was compared with that of one example at a
time through an ordinary copy of the model, also where the batch is a list or lies end to end: the last column is the
largest relative error, as a power of ten, of the program or of what is written instead. Where it is 16 bits that
compute, the bound is 2e-2.
"""


def counts() -> dict[str, int]:
    """Return how many programs train, are refused with a cure, and are refused for good."""
    found = Counter("exact" if not one.code else "cured" if one.cured else "left" for one in PROGRAMS.values())
    return {"all": len(PROGRAMS), **{word: found[word] for word in ("exact", "cured", "left")}}


def sections() -> list[str]:
    """Return the lines of the page."""
    lines = [HEAD.format(**counts()).rstrip()]
    for title, group in GROUPS.items():
        lines += [f"\n### {title}\n", "| program | what happens | what to write instead | relative error |"]
        lines.append("| --- | --- | --- | --- |")
        lines += [_row(name, one, outcome(one)) for name, one in group.items()]
    return lines


def _row(name: str, one: Brought, found: Outcome) -> str:
    verdict = f"refused (`{found.code}`)" if found.code else "exact" if _holds(one, found) else "**wrong**"
    return f"| {name} | {verdict} | {one.instead or one.why} | {_error(one, found)} |"


def _holds(one: Brought, found: Outcome) -> bool:
    return found.error is not None and found.error <= (one.cured or one.program).tolerance


def _error(one: Brought, found: Outcome) -> str:
    """As a bound: digits differ from machine to machine."""
    if found.error is None:
        return ""
    limit = (one.cured or one.program).tolerance
    bound = next((bound for bound in (1e-6, EXACT, limit) if found.error <= bound), None)
    return f"**{found.error:.0e}**" if bound is None or bound > limit else f"≤ {bound:.0e}"
