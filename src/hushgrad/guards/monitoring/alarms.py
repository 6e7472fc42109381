"""What the alarm of a built-in monitor does."""

from __future__ import annotations

from enum import Enum


class Alarms(Enum):
    """Fixed when a session is made: nobody can switch the alarms of a session that runs.

    `NOTED` is for `verify`, which measures what tampered training releases and gives a verdict of its own.
    """

    RAISED = "raised"
    NOTED = "noted"
