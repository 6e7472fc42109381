"""Scattering features: what they are by definition, and that nothing but the image itself is in them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.errors import InvalidArgumentError
from hushgrad.study.scattering import COARSE, DIRECTIONS, FINE, NORM, PATHS, STEP, Scattering, morlets


def images(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(place=st.integers(0, 3), seed=st.integers(0, 1000), level=st.floats(0, 1e6, width=32))
def test_the_features_of_an_image_depend_on_that_image_alone(place: int, seed: int, level: float) -> None:
    """Guarantee: the features of an image depend on that image alone."""
    features, batch = Scattering((1, 9, 12)), images(4, 1, 9, 12, seed=seed)
    others = torch.full_like(batch, level)
    others[place] = batch[place]
    alone = features(batch[place : place + 1])[0]
    torch.testing.assert_close(features(batch)[place], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features(others)[place], alone, rtol=1e-5, atol=1e-5)


def one_path(image_HW: torch.Tensor, waves: list[tuple[int, int]], row: int, column: int) -> float:
    """Return one value of the transform by its definition: sums over pixels in float64, edges continued outwards.

    `waves` are (scale, direction) of the wavelets on the path; every modulus is known at every pixel.
    """

    def response(image: torch.Tensor, kernel: torch.Tensor, y: int, x: int) -> float:
        reach = kernel.shape[0] // 2
        ys = torch.arange(y - reach, y + reach + 1).clamp(0, image.shape[0] - 1)
        xs = torch.arange(x - reach, x + reach + 1).clamp(0, image.shape[1] - 1)
        return float((image[ys][:, xs] * kernel).sum())

    known = image_HW.double()
    for scale, direction in waves:
        real, imaginary = (morlets(scale)[direction + part * DIRECTIONS, 0].double() for part in (0, 1))
        known = torch.tensor(
            [
                [
                    math.hypot(response(known, real, y, x), response(known, imaginary, y, x))
                    for x in range(len(known[0]))
                ]
                for y in range(len(known))
            ]
        )
    line = torch.arange(-5.0, 6.0).double()
    bell = torch.exp(-(line**2) / (2 * 1.6**2))
    bell = torch.outer(bell, bell) / bell.sum() ** 2
    return response(known, bell, row, column)


@pytest.mark.parametrize(("path", "waves"), [(0, []), (1 + 3, [(FINE, 3)]), (1 + DIRECTIONS * 2 - 1, [(COARSE, 7)])])
def test_a_path_is_what_the_definition_says(path: int, waves: list[tuple[int, int]]) -> None:
    """The transform smooths coarse moduli at every second pixel: equal up to 3% of the largest value there."""
    image = torch.nn.functional.avg_pool2d(images(1, 1, 36, 36), 5, 1)
    found = Scattering((1, 32, 32)).paths(image)[0, 0, path]
    by_definition = [one_path(image[0, 0], waves, 4 * row + 2, 4 * column + 2) for row, column in ((3, 4), (2, 5))]
    error = 0.03 * float(found.max()) if len(waves) and waves[-1][0] == COARSE else 1e-5
    assert [float(found[3, 4]), float(found[2, 5])] == pytest.approx(by_definition, abs=error)


def test_the_second_modulus_is_of_the_first_ones_responses() -> None:
    features, image = Scattering((1, 16, 16)), images(1, 1, 16, 16)
    fine = torch.nn.functional.pad(image, (5,) * 4, mode="replicate")
    real, imaginary = torch.nn.functional.conv2d(fine, features.fine).chunk(2, 1)
    modulus = (real**2 + imaginary**2).sqrt()
    for direction in (0, 5):
        again = features.paths(modulus[:, direction : direction + 1])[0, 0]
        coarse_of_it = again[1 + DIRECTIONS : 1 + 2 * DIRECTIONS]
        twice = features.paths(image)[0, 0, 1 + 2 * DIRECTIONS :].unflatten(0, (DIRECTIONS, DIRECTIONS))
        torch.testing.assert_close(twice[direction], coarse_of_it, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [FINE, COARSE])
def test_a_wavelet_has_no_response_to_a_constant_image_and_turns_by_an_eighth_of_a_half_turn(scale: int) -> None:
    waves = morlets(scale)
    assert waves.sum((1, 2, 3)).abs().max() < 1e-6
    quarter = torch.rot90(waves[0, 0], -1)
    torch.testing.assert_close(quarter, waves[DIRECTIONS // 2, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 19, 23), (2, 9, 30)])
def test_every_image_size_has_as_many_features_as_are_announced_all_of_one_norm(shape: tuple[int, int, int]) -> None:
    features = Scattering(shape)
    found = features(images(3, *shape))
    channels, height, width = shape
    assert found.shape == (3, features.features)
    assert features.features == channels * PATHS * math.ceil(height / STEP) * math.ceil(width / STEP)
    torch.testing.assert_close(found.norm(dim=1), torch.full((3,), NORM))


def test_an_image_of_one_grey_has_no_features_and_rounding_is_not_made_large() -> None:
    for level in (0.0, 0.5, 1.0):
        assert float(Scattering((1, 28, 28))(torch.full((1, 1, 28, 28), level)).norm()) < 1e-3 * NORM


def test_features_are_the_same_each_time_and_have_nothing_to_learn_or_to_keep() -> None:
    first, second, batch = Scattering((1, 12, 12)), Scattering((1, 12, 12)), images(5, 1, 12, 12)
    assert torch.equal(first(batch), first(batch))
    assert torch.equal(first(batch), second(batch))
    assert not list(first.parameters())
    assert not first.state_dict()


def test_an_empty_batch_has_no_features() -> None:
    assert Scattering((1, 8, 8))(torch.zeros(0, 1, 8, 8)).shape == (0, 324)


@pytest.mark.parametrize("shape", [(20,), (1, 7, 8), (8, 8)])
def test_what_is_no_image_is_refused_with_the_cure(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"at least 8×8 pixels.*Use model 'mlp'"):
        Scattering(shape)


@pytest.mark.parametrize(
    "batch", [torch.zeros(2, 1, 8, 8, dtype=torch.float64), torch.zeros(2, 1, 8, 9), torch.zeros(2, 8, 8)]
)
def test_images_of_another_size_or_type_are_refused(batch: torch.Tensor) -> None:
    with pytest.raises(InvalidArgumentError, match="must be float32 images of shape"):
        Scattering((1, 8, 8))(batch)
