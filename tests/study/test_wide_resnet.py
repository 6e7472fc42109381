import pytest
import torch
from summed_models import assert_sums_are_those_of_one_at_a_time

from hushgrad.errors import InvalidArgumentError
from hushgrad.study.models import build_model
from hushgrad.study.wide_resnet import StandardisedConv


def build(depth=10, width=1, num_classes=3):
    return build_model("wrn", input_shape=(3, 8, 8), num_classes=num_classes, seed=0, depth=depth, width=width)


def test_wrn_16_4_has_the_size_that_the_literature_gives_it():
    sizes = [p.numel() for name, p in build(16, 4, 10).named_parameters() if "gain" not in name]
    assert 2.7e6 < sum(sizes) < 2.8e6


def test_weights_are_standardised_in_each_output_channel():
    conv = StandardisedConv(4, 5, 3)
    with torch.no_grad():
        conv.weight.add_(3.0)
        conv.bias.zero_()
        made = torch.stack([conv(image[None])[0, :, 1, 1] for image in torch.eye(36).reshape(36, 4, 3, 3)], dim=1)
    torch.testing.assert_close(made.mean(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.var(1, unbiased=False), torch.full((5,), 1 / 36), rtol=0.01, atol=0)


@pytest.mark.parametrize("depth", [4, 12, 17])
def test_a_depth_that_no_network_has_is_refused(depth):
    with pytest.raises(InvalidArgumentError, match="depth"):
        build(depth=depth)


def test_the_clipped_sum_is_that_of_one_image_at_a_time():
    assert_sums_are_those_of_one_at_a_time(build(), torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1]))
