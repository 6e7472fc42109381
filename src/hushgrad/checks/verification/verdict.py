"""What a verification found, as a value: checks with their statistics, causes in plain words, and one verdict.

A check is a theorem about the mechanism, tested on measurements. It states what was measured, on how many values, how
often a correct program would fail it by chance, and how small an error it finds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hushgrad.notebook import headline, paragraphs, table
from hushgrad.text_table import hanging, text_table, wrapped

TABLE_FROM = 110
"""A screen of fewer columns gets a list of the checks: cells of a table would be a few words wide there."""

NUMBERS = ("values", "p", "false alarm")

PARTS = ("sensitivity", "noise", "sampling", "ledger", "replay")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One theorem and its test.

    Attributes:
        code: a stable name, by which causes and explanations are chosen; the claim may be reworded.
        part: "sensitivity", "noise", "sampling", "ledger" or "replay".
        claim: the theorem, in words.
        measured: what was found, in words and numbers.
        passed: whether the claim stands.
        sample_size: how many values the statistic was computed from.
        statistic: the test statistic, or None for an exact comparison.
        p_value: the probability of such a statistic if the claim is true; None for an exact comparison.
        false_alarm: the probability that a correct program fails this check; 0 for an exact comparison.
        power: which error the check finds, and with what probability.
    """

    code: str
    part: str
    claim: str
    measured: str
    passed: bool
    sample_size: int
    statistic: float | None = None
    p_value: float | None = None
    false_alarm: float = 0.0
    power: str = ""


def by_code(checks: Iterable[Check]) -> dict[str, Check]:
    """Return the checks by their codes, which are all different."""
    return {check.code: check for check in checks}


def failed_codes(checks: Iterable[Check]) -> set[str]:
    """Return the codes of the checks that did not pass."""
    return {check.code for check in checks if not check.passed}


@dataclass(frozen=True, slots=True)
class Cause:
    """A mistake that fits the measurements: a stable `code`, what it is, and the cure."""

    code: str
    mistake: str
    cure: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What the program does, as measured. None where a part was not measured.

    `sensitivity` is the largest contribution of one example to the sum that is noised, and `noise_std` the noise on
    that sum, both in gradient units; `noise_multiplier` is the second over the first (no unit), None also where the
    noise depends on the number of examples, so that no one number describes it.
    """

    sensitivity: float | None = None
    noise_std: float | None = None
    noise_multiplier: float | None = None
    sampling_rate: float | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Verdict:
    """The result of a verification.

    `claimed` is what the program says of itself, `measured` what it was found to do. `causes` lists the mistakes that
    fit, the likeliest first; it is empty where everything passed, and may be empty where nothing known fits.
    """

    subject: str
    checks: tuple[Check, ...]
    causes: tuple[Cause, ...]
    claimed: Measured
    measured: Measured
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def exit_status(self) -> int:
        """0 where every check passed, else 1."""
        return 0 if self.passed else 1

    @property
    def false_alarm(self) -> float:
        """An upper bound on the probability that a correct program fails any of the checks."""
        return math.fsum(check.false_alarm for check in self.checks)

    def __str__(self) -> str:
        """Return the verdict in plain words."""
        return "\n".join(self._sentences())

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as a JSON object."""
        return {
            "subject": self.subject,
            "passed": self.passed,
            "claimed": _plain(asdict(self.claimed)),
            "measured": _plain(asdict(self.measured)),
            "causes": [asdict(cause) for cause in self.causes],
            "checks": [_plain(asdict(check)) for check in self.checks],
            "false_alarm_probability": self.false_alarm,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
            "sentence": str(self),
        }

    def to_text(self) -> str:
        """Return `as_json` as text."""
        return json.dumps(self.as_json(), ensure_ascii=False, allow_nan=False, indent=2)

    def _sentences(self) -> Iterator[str]:
        count = len(self.checks)
        if self.passed:
            yield f"PASSED: {self.subject} does what it claims, in all {count} checks."
        else:
            yield f"FAILED: {self.subject} does not do what it claims: {len(self.failed)} of {count} checks failed."
        yield from self._privacy()
        for cause in self.causes:
            yield f"Mistake that fits [{cause.code}]: {cause.mistake} Cure: {cause.cure}"
        if not self.passed and not self.causes:
            yield "No mistake known to this version fits all that was measured; the failed checks say what is wrong."
        for check in self.failed:
            yield f"Failed ({check.part}): {check.claim}. Found: {check.measured}."
        yield f"A correct program would fail by chance with a probability of at most {self.false_alarm:.1g}."
        yield from (f"{note}." for note in self.notes)

    def _privacy(self) -> Iterator[str]:
        found, said = self.measured.noise_multiplier, self.claimed.noise_multiplier
        if found is None or said is None:
            return
        if self.passed:
            yield f"Noise over sensitivity was measured as {found:.4g} and {said:.4g} is charged."
        elif found < 0.99 * said:
            yield (
                f"LESS PRIVATE THAN CHARGED: noise over sensitivity was measured as {found:.4g}, and {said:.4g} is "
                f"charged; every ε computed from {said:.4g} is too small."
            )
        elif found > 1.01 * said:
            yield (
                f"More noise than is charged: noise over sensitivity was measured as {found:.4g}, and {said:.4g} is "
                f"charged; accuracy is lost for nothing."
            )

    def text(self, width: int) -> str:
        """Return the verdict with all checks, in lines of at most `width` characters: a table where one has room."""
        first, *others = self._sentences()
        heads, rows = self._rows()
        checks = [text_table(heads, rows, width=width, right=NUMBERS, between_rows=True)]
        if width < TABLE_FROM:
            checks = [_item(check, width) for check in self.checks]
        lines = [*wrapped(first, width), "", "\n\n".join(checks), ""]
        for sentence in others:
            lines += wrapped(sentence, width)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        first, *others = self._sentences()
        heads, rows = self._rows()
        return f"{headline(first, good=self.passed)}{paragraphs(others)}{table(heads, rows, NUMBERS)}"

    def _rows(self) -> tuple[Sequence[str], list[list[str]]]:
        rows = [
            [
                _head(check),
                check.claim,
                check.measured,
                f"{check.sample_size:,}",
                _p_value(check),
                _false_alarm(check),
                check.power,
            ]
            for check in self.checks
        ]
        return ("part", "claim", "measured", *NUMBERS, "finds"), rows


def _item(check: Check, width: int) -> str:
    """Return a check as a paragraph."""
    figures = f"{check.sample_size:,} values, p {_p_value(check)}, false alarm {_false_alarm(check)}"
    lines = [f"{_head(check)}: {check.claim}", f"  found: {check.measured}", f"  {figures}"]
    if check.power:
        lines.append(f"  finds: {check.power}")
    return "\n".join(part for line in lines for part in hanging(line, width))


def _head(check: Check) -> str:
    return f"{'✓' if check.passed else '✗'} {check.part}"


def _p_value(check: Check) -> str:
    return "exact" if check.p_value is None else f"{check.p_value:.2g}"


def _false_alarm(check: Check) -> str:
    return "0" if check.false_alarm == 0 else f"{check.false_alarm:.0e}"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity and no NaN: they become strings."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
