"""Every contestant trains every workload, and all private ones make the same update."""

from dataclasses import replace

import pytest
import torch
from benchmarks.contestants import CONTESTANTS, HUSHGRAD, NOT_PRIVATE
from benchmarks.runner import LEARNING_RATE
from benchmarks.workloads import SMALL, WORKLOADS

pytestmark = pytest.mark.filterwarnings(
    "ignore:Full backward hook is firing",
    "ignore::hushgrad.errors.HushgradWarning",
    "ignore:There is a performance drop",  # vmap has no batched rule for the CPU's fused attention
    "ignore:In CPU autocast",  # Opacus' functorch mode asks for autocast in float32
)

# Compiling takes seconds for each network, so the compiled step has a test of its own; fastDP, which is in no registry,
# has a file of its own.
QUICK = [name for name in CONTESTANTS if name not in ("compiled", "fastdp", "fastdp-origin")]
EVERY = [(workload, contestant) for workload in SMALL for contestant in QUICK]
PRIVATE = [name for name in QUICK if name not in (*NOT_PRIVATE, HUSHGRAD)]


def build(workload, contestant, noise_multiplier):
    missing = CONTESTANTS[contestant].missing()
    if missing is not None:
        pytest.skip(missing)
    return CONTESTANTS[contestant].build(workload, noise_multiplier)


def change(workload, contestant, noise_multiplier):
    """How one step moves all parameters together."""
    runner = build(workload, contestant, noise_multiplier)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in runner.parameters])
    runner.step(runner.prepare())
    return torch.cat([parameter.detach().flatten() for parameter in runner.parameters]) - before


@pytest.mark.parametrize(("workload", "contestant"), EVERY)
def test_every_contestant_can_step_repeatedly_on_every_workload(workload, contestant):
    runner = build(SMALL[workload], contestant, 1.0)
    before = [parameter.detach().clone() for parameter in runner.parameters]
    for _ in range(2):
        runner.step(runner.prepare())
    assert all(torch.isfinite(parameter).all() for parameter in runner.parameters)
    assert all(not torch.equal(old, new) for old, new in zip(before, runner.parameters, strict=True))


@pytest.mark.parametrize("contestant", PRIVATE)
@pytest.mark.parametrize("workload", SMALL)
def test_without_noise_all_private_contestants_make_the_same_clipped_update(workload, contestant):
    expected = change(SMALL[workload], HUSHGRAD, 0.0)
    found = change(SMALL[workload], contestant, 0.0)
    # Opacus divides by norm + 1e-6, so its factors differ from ours by about 1e-6 of themselves; the update is a
    # difference of parameters in float32.
    assert (found - expected).norm() <= 1e-3 * expected.norm()
    assert expected.norm() <= LEARNING_RATE * 1.01  # a mean of gradients clipped to norm 1
    assert expected.norm() > 0


@pytest.mark.parametrize("contestant", [HUSHGRAD, *PRIVATE])
def test_with_noise_all_private_contestants_add_the_same_amount_of_it(contestant):
    # 1.9 million values of σ·C/B·lr; the relative error of their standard deviation is 5e-4 at one deviation, and the
    # clipped mean adds less than 1e-6 to the variance's ratio. Outside 1%: probability < 1e-60.
    found = change(replace(WORKLOADS["mlp"], batch_size=2), contestant, 50.0)
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


@pytest.mark.parametrize("contestant", QUICK)
def test_every_step_gets_the_whole_fixed_batch(contestant):
    workload = SMALL["cnn"]
    runner = build(workload, contestant, 1.0)
    expected = workload.batch()[0].sum((1, 2, 3)).sort().values
    for _ in range(2):
        batch = runner.prepare()
        assert torch.allclose(batch[0].sum((1, 2, 3)).sort().values, expected)
        runner.step(batch)


def test_the_workloads_are_the_networks_that_are_named():
    sizes = {name: sum(p.numel() for p in workload.model().parameters()) for name, workload in WORKLOADS.items()}
    assert sizes["mlp"] == 784 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 10 + 10
    assert sizes["cnn"] == 26_010
    assert sizes["resnet-gn"] == 11_173_962
    block = 12 * 256 * 256 + 13 * 256  # four linear layers of an attention and a perceptron with biases, two norms
    assert sizes["encoder"] == (8192 + 128) * 256 + 4 * block + 2 * 256 + 2 * 256 + 2
    assert sizes["decoder-256"] == (8192 + 256) * 256 + 4 * block + 2 * 256 + 8192 * 256
    assert sizes["decoder-1024"] == (2048 + 1024) * 256 + 2 * block + 2 * 256 + 2048 * 256
    pairs = 4 * 8 * (4 * 256 + 2 * 256 + 2 * 5 * 256)  # packed 256-768, out 256-256, up and down 256-1024
    trained = [p.numel() for p in WORKLOADS["lora"].model().parameters() if p.requires_grad]
    assert (sum(trained), sizes["lora"]) == (pairs + 2 * 256 + 2, sizes["encoder"] + pairs)
    assert sizes["linear400"] == 400 * (16 * 16 + 16)
    assert all(WORKLOADS[name].batch_size == 256 for name in ("mlp", "cnn"))


def test_small_workloads_are_the_measured_ones_in_small():
    assert list(SMALL) == list(WORKLOADS)
    for name, workload in SMALL.items():
        small = [type(module) for module in workload.model().modules()]
        assert set(small) == {type(module) for module in WORKLOADS[name].model().modules()}


@pytest.mark.parametrize("workload", SMALL)
def test_losses_without_reduction_are_one_for_each_record_and_their_mean_is_the_reduced_loss(workload):
    chosen = SMALL[workload]
    inputs, targets = chosen.batch()
    output = chosen.model()(inputs)
    losses = chosen.criterion(reduction="none")(output, targets)
    assert losses.shape == (chosen.batch_size,)
    torch.testing.assert_close(losses.mean(), chosen.criterion()(output, targets))


def test_no_token_of_a_decoder_sees_a_later_one():
    workload = SMALL["decoder-256"]
    model, (ids, targets) = workload.model(), workload.batch()
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % 11
    torch.testing.assert_close(model(changed)[:, :-1], model(ids)[:, :-1])
    assert torch.equal(ids[:, 1:], targets[:, :-1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_compiled_step_is_the_ordinary_step():
    expected = change(SMALL["mlp"], "ordinary", 0.0)
    assert (change(SMALL["mlp"], "compiled", 0.0) - expected).norm() <= 1e-5 * expected.norm()


def test_without_a_compiler_the_compiled_step_says_so(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert "C++ compiler" in CONTESTANTS["compiled"].missing()
