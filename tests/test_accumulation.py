"""`accumulation=k`: k batches of the loader make one logical batch, as a loader of k times their size would."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.errors import DatasetError, InvalidArgumentError, ProtocolError

N, B, K = 44, 4, 3
DATA = TensorDataset(torch.randn(N, 3, generator=torch.Generator().manual_seed(1)))


class Run:
    """A private loop over items, with a step after each of them."""

    def __init__(
        self, batch_size: int, *, drop_last: bool = False, target: float | None = None, **options: Any
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.engine = PrivacyEngine(test_key=5)
        given: dict[str, Any] = {
            "module": self.model,
            "optimizer": self.optimizer,
            "data_loader": DataLoader(DATA, batch_size=batch_size, drop_last=drop_last),
            "max_grad_norm": 1.0,
            **options,
        }
        if target is None:
            _, _, self.loader = self.engine.make_private(noise_multiplier=0.7, **given)
        else:
            _, _, self.loader = self.engine.make_private_with_epsilon(
                target_epsilon=target, target_delta=1e-5, epochs=2, **given
            )
        self.sizes: list[int] = []
        self.updates = 0

    def train(self) -> Run:
        criterion = self.engine.per_example(lambda out: out.square().sum(1))
        for (x,) in self.loader:
            criterion(self.model(x)).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.sizes.append(len(x))
            self.updates += self.engine.last_step_updated
        return self


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("poisson", [True, False])
def test_accumulation_is_a_loader_of_k_times_the_size_in_items_of_the_size(poisson: bool, drop_last: bool) -> None:
    accumulated = Run(B, drop_last=drop_last, poisson_sampling=poisson, accumulation=K).train()
    large = Run(K * B, drop_last=drop_last, poisson_sampling=poisson, max_physical_batch_size=B).train()
    assert accumulated.engine.mechanism == large.engine.mechanism
    assert accumulated.engine.mechanism.expected_batch_size == K * B
    assert accumulated.engine.get_epsilon(1e-5) == large.engine.get_epsilon(1e-5)  # to all digits
    assert accumulated.engine.session.charged == large.engine.session.charged
    assert (accumulated.sizes, accumulated.updates) == (large.sizes, large.updates)
    assert len(accumulated.loader) == len(large.loader) == accumulated.updates
    assert max(accumulated.sizes) == B
    for one, other in zip(accumulated.model.parameters(), large.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_own_batches_are_joined_in_their_order() -> None:
    run = Run(B, poisson_sampling=False, accumulation=K)
    seen = []
    for (x,) in run.loader:
        batch = run.engine.session.current_batch
        assert batch is not None
        seen.append((batch.step, batch.indices))
        run.engine.session.backward(run.model(x).square().sum(1))
        run.optimizer.step()
    assert [list(indices) for _, indices in seen] == list(DataLoader(DATA, batch_size=B).batch_sampler or [])
    assert [step for step, _ in seen] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]


def test_the_noise_for_a_target_is_that_of_the_joined_batches() -> None:
    accumulated, large = Run(B, target=3.0, accumulation=K), Run(K * B, target=3.0, max_physical_batch_size=B)
    assert accumulated.engine.mechanism == large.engine.mechanism


def test_constant_shapes_and_other_sizes_of_items_go_with_it() -> None:
    assert set(Run(B, accumulation=K, constant_shapes=True, max_batch_size="auto").train().sizes) == {B}
    assert max(Run(B, accumulation=K, max_physical_batch_size=2, poisson_sampling=False).train().sizes) == 2


def test_one_batch_is_the_loader_as_it_is() -> None:
    assert Run(B, accumulation=1).engine.mechanism == Run(B).engine.mechanism
    assert Run(B, accumulation=1).loader.max_physical_batch_size is None


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2", True])
def test_what_is_no_number_of_batches_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="accumulation"):
        Run(B, accumulation=bad)


def test_more_records_than_there_are_cannot_be_joined() -> None:
    with pytest.raises(DatasetError, match=r"accumulation: 12 batches of 4 are 48 records.*accumulation=11"):
        Run(B, accumulation=12)
    Run(B, accumulation=11, poisson_sampling=False).train()


@pytest.mark.parametrize("options", [{}, {"accumulation": 2}])
def test_a_loop_that_steps_after_every_kth_batch_only_is_told_both_cures(options: dict[str, int]) -> None:
    """Accumulation is never inferred."""
    run = Run(B, poisson_sampling=False, **options)

    def loop() -> None:
        for i, (x,) in enumerate(run.loader):
            run.engine.session.backward(run.model(x).square().sum(1))
            if (i + 1) % 2 == 0:
                run.optimizer.step()

    with pytest.raises(ProtocolError) as told:
        loop()
    assert "batch_size=k*b with max_physical_batch_size=b" in str(told.value)
    assert "make_private(accumulation=k)" in str(told.value)
    assert run.engine.session.steps == 0
