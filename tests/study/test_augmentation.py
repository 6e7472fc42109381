import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hushgrad import DPSGD, FlatClipping, PoissonSampling, privatize
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time
from hushgrad.study import training
from hushgrad.study.augmentation import OverViews, Shifts, mean_over_views
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.models import build_model
from hushgrad.study.outcome import Callbacks
from hushgrad.study.tasks import TaskOptions, load_task
from hushgrad.study.training import train

CLIP = 0.05


def generator(seed=0):
    return np.random.default_rng(seed)


def moved(image_CHW, down, right):
    """Return the image moved, one pixel at a time, with 0 coming in."""
    result = torch.zeros_like(image_CHW)
    _, height, width = image_CHW.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[:, row, column] = image_CHW[:, row - down, column - right]
    return result


@pytest.mark.parametrize("mirrored", [False, True])
def test_every_view_is_the_image_moved_and_every_move_occurs(mirrored):
    """With 400 views of 9 or 18 kinds, one kind is missing with a probability below 18·(17/18)^400 = 2e-9."""
    image = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    views = Shifts(1, mirrored=mirrored).views(image[None], 400, generator())[0]
    forms = [image, image.flip(2)] if mirrored else [image]
    possible = [moved(form, down, right) for form in forms for down in (-1, 0, 1) for right in (-1, 0, 1)]
    kinds = [[number for number, one in enumerate(possible) if torch.equal(one, view)] for view in views]
    assert all(len(found) == 1 for found in kinds)
    assert {found[0] for found in kinds} == set(range(len(possible)))


def test_views_differ_between_records_and_between_batches():
    """Sixteen views of 25 kinds agree by chance with a probability of 25^-16 each time."""
    same_twice = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    source = generator()
    first, second = (Shifts(2).views(same_twice, 16, source) for _ in range(2))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


def test_the_loss_of_a_record_is_the_mean_over_its_views():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3, 4), torch.tensor([0, 1, 2, 3, 0])
    one_by_one = [[F.cross_entropy(logits[b, k], labels[b]) for k in range(3)] for b in range(5)]
    assert torch.allclose(mean_over_views(logits, labels), torch.tensor(one_by_one).mean(1))


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_record_with_many_views_counts_once(name, count):
    """Guarantee: an example contributes at most C to the sum, however many views it has."""
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 0])
    views = Shifts(1).views(images, count, generator())

    def sums(kept):
        net = build_model(name, input_shape=(1, 8, 8), num_classes=3, seed=0)
        model = OverViews(net)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        mechanism = DPSGD(
            noise_multiplier=0.0,
            clipping=FlatClipping(CLIP),
            sampling=PoissonSampling(rate=0.1),
            expected_batch_size=4,
            loss_reduction="sum",
        )
        before = {key: parameter.detach().clone() for key, parameter in net.named_parameters()}
        session = privatize(model, optimizer, mechanism)
        session.backward(mean_over_views(model(views[kept]), labels[kept]))
        optimizer.step()
        session.close()
        return {key: before[key] - parameter.detach() for key, parameter in net.named_parameters()}

    everyone = sums([0, 1, 2, 3])
    ordinary = OverViews(build_model(name, input_shape=(1, 8, 8), num_classes=3, seed=0))
    losses = [
        lambda row=row: mean_over_views(ordinary(views[[row]]), labels[[row]]).sum() for row in range(len(labels))
    ]
    gradients = one_at_a_time(ordinary, losses)
    norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()
    assert (norms > CLIP).all()
    for key, expected in clipped_sum_of(gradients, FlatClipping(CLIP)).items():
        assert torch.allclose(everyone[key.removeprefix("model.")], expected, atol=1e-6)
    without = sums([0, 1, 3])
    change = torch.stack([(everyone[key] - without[key]).square().sum() for key in everyone]).sum().sqrt()
    assert change <= CLIP * (1 + 1e-4)


def config(augmentations, privacy=None, **changes):
    settings = {"batch_size": 300, "epochs": 1, "hidden_sizes": (8,), "threads": 1, **changes}
    return replace(suggested_run("digits", privacy=privacy), augmentations=augmentations, **settings)


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return load_task("digits", TaskOptions())


@pytest.mark.parametrize("max_physical_batch_size", [None, 100])
def test_views_do_not_change_what_a_run_costs(digits, tmp_path, max_physical_batch_size):
    privacy = Privacy(noise_multiplier=2.0, max_grad_norm=1.0)
    charged = []
    for count in (0, 4):
        ledger = tmp_path / f"{count}.jsonl"
        settings = config(count, privacy, max_physical_batch_size=max_physical_batch_size)
        _, outcome = train(settings, digits, Callbacks(), ledger=ledger)
        charged.append((read_ledger(ledger).events, outcome.spent.guarantee.epsilon))
    assert charged[0] == charged[1]


def test_an_ordinary_runs_views_follow_from_its_seed_and_the_model_has_no_trace_of_them(digits):
    models = [train(config(2, seed=seed), digits, Callbacks())[0] for seed in (1, 1, 2)]
    first, again, other = (nn.utils.parameters_to_vector(model.parameters()) for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    without = build_model("mlp", input_shape=(1, 8, 8), num_classes=10, seed=0, hidden_sizes=(8,), activation="relu")
    assert models[0].state_dict().keys() == without.state_dict().keys()


def test_a_private_runs_views_are_secret(monkeypatch, digits):
    """With known views the absence of a record would move those of all records after it."""
    seeds = []
    real = np.random.default_rng

    def noted(seed=None):
        if sys._getframe(1).f_code.co_filename == training.__file__:  # the probe has generators of its own
            seeds.append(seed)
        return real(seed)

    monkeypatch.setattr(np.random, "default_rng", noted)
    train(config(2, Privacy(noise_multiplier=2.0, max_grad_norm=1.0), seed=7), digits, Callbacks())
    train(config(2, None, seed=7), digits, Callbacks())
    assert seeds == [None, 7]


def test_the_sum_as_reduction_is_the_sum_over_records_of_means_over_views(digits):
    """One step of ordinary training on all records: the rates 1 and 1/N, with the sum and the mean, agree."""
    count = len(digits.train)
    whole = {"batch_size": count, "momentum": 0.0}
    mean, _ = train(config(2, learning_rate=1.0, **whole), digits, Callbacks())
    total, _ = train(config(2, learning_rate=1.0 / count, loss_reduction="sum", **whole), digits, Callbacks())
    for one, other in zip(mean.parameters(), total.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
