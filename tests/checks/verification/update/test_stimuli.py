"""Gradients that make mistakes visible: always the same, of the norms that they say, and handed over as copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hushgrad.checks.verification.mistakes.clipping import norms
from hushgrad.checks.verification.update.stimuli import Form, Stimuli, Stimulus
from hushgrad.errors import InvalidArgumentError

C, COUNT = 0.7, 6
SHAPES = {"weight": (3, 2), "bias": (3,)}


def stimuli() -> Stimuli:
    return Stimuli(SHAPES, C, COUNT)


def named(what: str) -> Stimulus:
    (found,) = [one for one in stimuli().for_the_formula() if one.what == what]
    return found


def test_they_are_the_same_in_every_run() -> None:
    for one, other in zip(stimuli().for_the_formula(), stimuli().for_the_formula(), strict=True):
        assert all(torch.equal(one.gradients[name], other.gradients[name]) for name in SHAPES)


def test_every_stimulus_has_the_shapes_of_the_parameters_and_equally_many_examples() -> None:
    for one in [*stimuli().for_the_formula(), *stimuli().for_sensitivity(), stimuli().zeros(4), stimuli().zeros(0)]:
        assert {name: tuple(value.shape) for name, value in one.gradients.items()} == {
            name: (one.count, *shape) for name, shape in SHAPES.items()
        }


def test_their_norms_are_on_both_sides_of_the_clip_norm() -> None:
    found = torch.cat([norms(one.gradients) for one in stimuli().for_the_formula()])
    assert (found < 0.1 * C).any()
    assert (found > 9 * C).any()
    assert torch.allclose(norms(named("one huge example").gradients), torch.tensor([10 * C]).double())


def test_small_gradients_stay_below_the_clip_norm_together_and_mixed_ones_only_each() -> None:
    small = named(f"{COUNT} small gradients, together below C")
    assert norms({name: value.sum(0, keepdim=True) for name, value in small.gradients.items()}) < C
    mixed = norms(named("each below C, together above").gradients)
    assert (mixed < C).all()
    assert mixed.sum() > C


def test_gradients_in_one_parameter_are_0_in_the_others() -> None:
    only = named("gradients in bias only").gradients
    assert not only["weight"].any()
    assert only["bias"].any()


def test_two_rows_are_not_finite_and_the_others_are_the_same_without_them() -> None:
    bad, good = stimuli().with_bad_rows()
    finite = torch.stack([value.flatten(1).isfinite().all(1) for value in bad.gradients.values()]).all(0)
    assert finite.tolist() == [False, False] + [True] * (COUNT - 2)
    assert all(torch.equal(bad.gradients[name][2:], good.gradients[name]) for name in SHAPES)


def test_an_example_is_taken_out_and_the_others_stay() -> None:
    one = named("norms from 0.03 C to 100 C")
    assert torch.equal(one.without(2).gradients["bias"], one.gradients["bias"][[0, 1, 3, 4, 5]])


@pytest.mark.parametrize(
    ("parameters", "kind"), [((3, 2), Tensor), ([(3, 2), (3,)], list), ({"weight": (3, 2), "bias": 3}, dict)]
)
def test_gradients_are_handed_over_in_the_loops_own_form_as_copies_and_read_back(parameters: Any, kind: type) -> None:
    form = Form.of(parameters, torch.float32)
    one = Stimuli(form.shapes, C, COUNT).zeros(COUNT)
    given = form.hand_over(one)
    assert isinstance(given, kind)
    first = given if isinstance(given, Tensor) else next(iter(given.values() if isinstance(given, dict) else given))
    first += 1
    assert first.dtype == torch.float32
    assert not next(iter(one.gradients.values())).any()
    update = form.hand_over(one.without(0))
    total = (
        update.sum(0)
        if isinstance(update, Tensor)
        else {name: value.sum(0) for name, value in update.items()}
        if isinstance(update, dict)
        else [value.sum(0) for value in update]
    )
    assert list(form.read(total)) == list(form.shapes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_loop_writes_into_its_gradients_is_not_in_the_stimulus(dtype: torch.dtype) -> None:
    one = stimuli().zeros(2)
    for given in Form.of(SHAPES, dtype).hand_over(one).values():
        given += 1
    assert not any(value.any() for value in one.gradients.values())


def test_an_update_under_other_names_is_read_in_its_order_and_one_of_other_shapes_is_refused() -> None:
    form = Form.of(SHAPES, torch.float32)
    found = form.read([np.ones((3, 2), np.float32), torch.zeros(3)])
    assert (found["weight"].sum(), found["bias"].sum()) == (6, 0)
    with pytest.raises(InvalidArgumentError, match="without their first dimension"):
        form.read({"weight": torch.zeros(4, 3, 2), "bias": torch.zeros(4, 3)})


@pytest.mark.parametrize("wrong", ["weights", (0, 3), {"weight": 2.5}, [(3, -1)]])
def test_what_is_no_shape_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        Form.of(wrong, torch.float32)
