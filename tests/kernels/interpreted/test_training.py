"""Where the kernels are called from: on the CPU here, as if it were a GPU."""

import pytest
import torch
from torch import nn

import hushgrad
from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.contribution import Plan
from hushgrad.gradients.cuda import dispatch as norms
from hushgrad.gradients.cuda import gram, instantiate
from hushgrad.gradients.outer import OuterProducts
from hushgrad.noise.cuda import definition, known_answers
from hushgrad.noise.cuda import dispatch as noise
from hushgrad.noise.cuda.chacha import CipherKey
from hushgrad.noise.gaussian import Noised, noisy_updates
from hushgrad.randomness import Address, KeyStream


@pytest.fixture
def on_gpu(monkeypatch):
    """Take the CPU for a GPU, and count what is called there."""
    calls = {"gram": 0, "instantiate": 0, "noise": 0}

    def counted(name, function):
        def call(*operands, **options):
            calls[name] += 1
            return function(*operands, **options)

        return call

    monkeypatch.setattr(known_answers, "VALUES", 20)
    monkeypatch.setattr(norms, "measures", lambda left, right: left.dtype == torch.float32)
    monkeypatch.setattr(noise, "draws_noise", lambda total: total.dtype == torch.float32)
    monkeypatch.setattr(norms, "gram_norms", counted("gram", gram.norms))
    monkeypatch.setattr(norms, "instantiated_norms", counted("instantiate", instantiate.norms))
    monkeypatch.setattr(noise, "noisy_update", counted("noise", noise.noisy_update))
    return calls


PLANS = {
    "gram": Plan("gram"),
    "instantiate": Plan("instantiate"),
    "drop": Plan("instantiate", keep_bytes=0),
    "none": Plan(),
}


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("name", PLANS)
def test_clipped_sums_are_the_same_in_every_way(name, on_gpu):
    left, right = torch.randn(4, 19, 6), torch.randn(4, 19, 9)
    left[1, 10:], right[1, 10:] = left[1, 1:10], -right[1, 1:10]  # nothing is left of example 1 but its first position
    right[2, 3, 4], left[3, 5, 2] = torch.nan, 1e25

    clip = FlatClipping(1.0)
    found = clipped_sums({"w": [OuterProducts(left, right)]}, clip=clip, plan=PLANS[name])["w"]
    assert sum(on_gpu.values()) > 0
    gradients = torch.bmm(left.double().mT, right.double())[[0, 1, 3]]
    expected = clip.reference({"w": gradients})["w"]
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_an_example_whose_terms_cancel_is_measured_from_its_gradient(on_gpu):
    left, right = torch.randn(2, 40, 6), torch.randn(2, 40, 5)
    left[0, 20:], right[0, 20:] = left[0, :20], -right[0, :20] * (1 + 1e-3)
    squared_B, _ = OuterProducts(left, right).measure(Plan("gram"))
    exact = torch.bmm(left.double().mT, right.double()).square().sum((1, 2))
    assert on_gpu["gram"] == 1
    assert torch.allclose(squared_B.double(), exact, rtol=1e-3)


def test_kept_gradients_are_those_that_the_norms_were_taken_of(on_gpu):
    left, right = torch.randn(2, 20, 6), torch.randn(2, 20, 5)
    squared_B, kept = OuterProducts(left, right).measure(Plan("instantiate"))
    assert torch.allclose(kept.per_example().double().square().sum((1, 2)), squared_B, rtol=1e-6)
    assert on_gpu["instantiate"] == 1


def test_all_totals_of_an_update_get_noise_of_their_own_address(on_gpu):
    stream = KeyStream.fixed_for_tests(1)
    totals = [torch.randn(30), torch.randn(4, 5).t(), torch.randn(7)]
    parts = [Noised(total, Address(3, item), overwrite=item == 2) for item, total in enumerate(totals)]
    key, copies = CipherKey.of(stream), [total.clone() for total in totals]
    updates = noisy_updates(parts, noise_std=2.0, divisor=4.0, stream=stream)
    assert on_gpu["noise"] == 3
    assert updates[2].data_ptr() == totals[2].data_ptr()
    for item, (total, update) in enumerate(zip(copies, updates, strict=True)):
        expected = definition.noisy_update(total, noise_std=2.0, divisor=4.0, key=key, address=Address(3, item))
        assert torch.equal(update, expected)


def test_without_noise_nothing_is_drawn_and_float64_is_drawn_on_the_cpu(on_gpu):
    stream = KeyStream.fixed_for_tests(1)
    noisy_updates([Noised(torch.ones(3), Address(0))], noise_std=0.0, divisor=4.0, stream=stream)
    noisy_updates([Noised(torch.ones(3).double(), Address(0))], noise_std=1.0, divisor=4.0, stream=stream)
    assert on_gpu["noise"] == 0


def test_a_session_trains_with_the_kernels(on_gpu):
    """Two steps, with a little noise: clipped norms are those that the kernels took, for every example at C = 1."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    mechanism = hushgrad.DPSGD(
        noise_multiplier=1e-3,
        clipping=hushgrad.FlatClipping(1.0),
        sampling=hushgrad.PoissonSampling(rate=0.1),
        expected_batch_size=4,
    )
    session = hushgrad.privatize(model, optimizer, mechanism)
    x, y = torch.randn(4, 5, 6), torch.randn(4, 5, 3)
    for _ in range(2):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        session.backward((model(x) - y).square().sum((1, 2)) * 100)
        optimizer.step()
        moved = torch.cat([(old - new).flatten() for old, new in zip(before, model.parameters(), strict=True)])
        assert 0.1 < moved.norm() < 1.01  # four clipped gradients of norm 1, over 4
    assert on_gpu["noise"] >= 2
    assert on_gpu["gram"] + on_gpu["instantiate"] >= 2
    session.close()
