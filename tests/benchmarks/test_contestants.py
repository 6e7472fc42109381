"""Every contestant trains every workload, and all private ones make the same update."""

from dataclasses import replace

import pytest
import torch
from benchmarks.contestants import CONTESTANTS, HUSHGRAD, LEARNING_RATE, ORDINARY
from benchmarks.workloads import WORKLOADS

pytestmark = pytest.mark.filterwarnings(
    "ignore:Full backward hook is firing", "ignore::hushgrad.errors.HushgradWarning"
)

EVERY = [(workload, contestant) for workload in WORKLOADS for contestant in CONTESTANTS]
PRIVATE = [name for name in CONTESTANTS if name not in (ORDINARY, HUSHGRAD)]


def tiny(workload, batch_size=4):
    return replace(WORKLOADS[workload], batch_size=batch_size)


def change(workload, contestant, noise_multiplier):
    """How one step moves all parameters together."""
    if contestant.startswith("opacus"):
        pytest.importorskip("opacus")
    runner = CONTESTANTS[contestant].build(workload, noise_multiplier)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in runner.parameters])
    runner.step(runner.prepare())
    return torch.cat([parameter.detach().flatten() for parameter in runner.parameters]) - before


@pytest.mark.parametrize(("workload", "contestant"), EVERY)
def test_every_contestant_can_step_repeatedly_on_every_workload(workload, contestant):
    if contestant.startswith("opacus"):
        pytest.importorskip("opacus")
    runner = CONTESTANTS[contestant].build(tiny(workload), 1.0)
    before = [parameter.detach().clone() for parameter in runner.parameters]
    for _ in range(2):
        runner.step(runner.prepare())
    assert all(torch.isfinite(parameter).all() for parameter in runner.parameters)
    assert all(not torch.equal(old, new) for old, new in zip(before, runner.parameters, strict=True))


@pytest.mark.parametrize("contestant", PRIVATE)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_without_noise_all_private_contestants_make_the_same_clipped_update(workload, contestant):
    expected = change(tiny(workload), HUSHGRAD, 0.0)
    found = change(tiny(workload), contestant, 0.0)
    # Opacus divides by norm + 1e-6, so its factors differ from ours by about 1e-6 of themselves; the update is a
    # difference of parameters in float32.
    assert (found - expected).norm() <= 1e-3 * expected.norm()
    assert expected.norm() <= LEARNING_RATE * 1.01  # a mean of gradients clipped to norm 1
    assert expected.norm() > 0


@pytest.mark.parametrize("contestant", [HUSHGRAD, *PRIVATE])
def test_with_noise_all_private_contestants_add_the_same_amount_of_it(contestant):
    # 1.9 million values of σ·C/B·lr; the relative error of their standard deviation is 5e-4 at one deviation, and the
    # clipped mean adds less than 1e-6 to the variance's ratio. Outside 1%: probability < 1e-60.
    found = change(tiny("mlp", batch_size=2), contestant, 50.0)
    assert found.std().item() == pytest.approx(50.0 / 2 * LEARNING_RATE, rel=0.01)


def test_contestants_start_from_equal_parameters_in_models_of_their_own():
    first, second = WORKLOADS["cnn"].model(), WORKLOADS["cnn"].model()
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()


def test_workloads_leave_the_global_generator_as_it_was():
    before = torch.random.get_rng_state()
    WORKLOADS["cnn"].model()
    WORKLOADS["cnn"].batch()
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_every_step_gets_the_whole_fixed_batch(contestant):
    if contestant.startswith("opacus"):
        pytest.importorskip("opacus")
    workload = tiny("cnn")
    runner = CONTESTANTS[contestant].build(workload, 1.0)
    expected = workload.batch()[0].sum((1, 2, 3)).sort().values
    for _ in range(2):
        batch = runner.prepare()
        assert torch.allclose(batch[0].sum((1, 2, 3)).sort().values, expected)
        runner.step(batch)


def test_the_workloads_are_the_networks_that_are_named():
    sizes = {name: sum(p.numel() for p in workload.model().parameters()) for name, workload in WORKLOADS.items()}
    assert sizes["mlp"] == 784 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 10 + 10
    assert sizes["cnn"] == 26_010
    assert all(WORKLOADS[name].batch_size == 256 for name in ("mlp", "cnn"))
