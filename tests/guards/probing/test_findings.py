"""A finding is told before it is raised; of a split model it comes at the end of its item, once."""

from __future__ import annotations

import pytest

from hushgrad.errors import CrossSampleLeakError, HushgradError, PrivateBufferError, UnsupportedModelError
from hushgrad.guards.probing.findings import Findings
from hushgrad.guards.probing.other_processes import OtherProcesses


class Kept:
    """Findings, and what was told of them in order."""

    def __init__(self, *, is_split: bool) -> None:
        self.told: list[HushgradError | str] = []
        self.findings = Findings(
            self.told.append, lambda: self.told.append("stopped"), OtherProcesses(), is_split=is_split
        )

    def meet(self, error: Exception) -> None:
        with self.findings.told():
            raise error


def test_a_finding_is_told_and_raised_and_other_errors_are_raised_alone() -> None:
    kept = Kept(is_split=False)
    error = CrossSampleLeakError("mixes")
    with pytest.raises(CrossSampleLeakError) as caught:
        kept.meet(error)
    assert caught.value is error
    assert kept.told == ["stopped", error]
    for other in (UnsupportedModelError("not read"), RuntimeError("of the loop's own")):
        with pytest.raises(type(other)):
            kept.meet(other)
    assert len(kept.told) == 2
    kept.findings.raise_kept_back()


def test_of_a_split_model_the_first_finding_is_kept_back_and_raised_once() -> None:
    kept = Kept(is_split=True)
    first = PrivateBufferError("keeps")
    kept.meet(first)
    kept.meet(CrossSampleLeakError("mixes"))
    assert kept.told == ["stopped", "stopped"]
    with pytest.raises(PrivateBufferError) as caught:
        kept.findings.raise_kept_back()
    assert caught.value is first
    assert kept.told[2:] == [first]
    kept.findings.raise_kept_back()


def test_at_the_end_of_an_item_nothing_is_kept_back() -> None:
    kept = Kept(is_split=True)
    kept.findings.is_ending = True
    with pytest.raises(CrossSampleLeakError):
        kept.meet(CrossSampleLeakError("mixes"))
    assert len(kept.told) == 2
