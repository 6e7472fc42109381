"""What is normal in the notes that monitors leave in a ledger."""

from __future__ import annotations

from collections.abc import Mapping

NOISE, SENSITIVITY = "noise monitor", "sensitivity monitor"
"""What the notes of the two monitors of a session are about."""

ALARM = 9
"""Standard errors beyond which the noise monitor ends training."""

NORMAL: Mapping[str, str] = {
    NOISE: f"'as charged', standard errors between -3 and 3 (rarely a little more); beyond ±{ALARM} training ends",
    SENSITIVITY: "'within the clip norm'; anything else ends training",
}
"""What a note of each says where all is well."""


def normal(about: str) -> str:
    """Return what is normal in a note about something; a dash where the note is of no monitor."""
    return NORMAL.get(about, "–")
