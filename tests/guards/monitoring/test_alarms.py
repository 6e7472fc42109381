"""Alarms end training; a verification may have them noted, and nobody can switch them while a session runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hushgrad import DPSGD, FlatClipping, PoissonSampling, privatize
from hushgrad.errors import NoiseMismatchError
from hushgrad.guards.monitoring.alarms import Alarms
from hushgrad.guards.monitoring.noise import NoiseMonitor


def see_noise_twice(monitor: NoiseMonitor) -> None:
    total, noise = torch.zeros(100), torch.randn(100)
    for _ in range(2):
        monitor.after(monitor.before([total]), [noise], 1.0, 1.0)


def test_a_mismatch_raises_unless_it_is_said_otherwise() -> None:
    for monitor in (NoiseMonitor(), NoiseMonitor(Alarms.RAISED)):
        with pytest.raises(NoiseMismatchError):
            see_noise_twice(monitor)


def test_for_a_verification_a_mismatch_is_noted_and_raises_nothing() -> None:
    monitor = NoiseMonitor(Alarms.NOTED)
    see_noise_twice(monitor)
    assert monitor.verdict == "drawn a second time"


def test_a_running_sessions_alarms_have_no_public_switch() -> None:
    model = nn.Linear(2, 2)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.5), expected_batch_size=4
    )
    running = privatize(model, torch.optim.SGD(model.parameters(), lr=0.1), mechanism)
    for monitor in (running.noise_monitor, running.sensitivity_monitor):
        public = {name: value for name, value in vars(monitor).items() if not name.startswith("_")}
        assert not [name for name, value in public.items() if isinstance(value, (bool, Alarms))]
    running.close()
