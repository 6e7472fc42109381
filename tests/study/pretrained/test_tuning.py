"""What of a base model is trained, and that its gradients are those of one sentence at a time."""

import pytest
import torch
from summed_models import assert_sums_are_those_of_one_at_a_time

from hushgrad.study.models import build_model
from hushgrad.study.pretrained.classifier import Base
from hushgrad.study.pretrained.tuning import TUNINGS

LENGTH = 8
NUMBERS = torch.tensor([[3, 6, 7, 4, 0, 0, 0, 0], [3, 8, 9, 10, 11, 12, 13, 4], [3, 4, 0, 0, 0, 0, 0, 0], [0] * LENGTH])
LABELS = torch.tensor([0, 1, 2, 1])


def model_of(folder, tuning, seed=0):
    return build_model(
        tuning, input_shape=(LENGTH,), num_classes=3, seed=seed, vocabulary_size=20, base=Base(2, folder)
    )


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_each_way_trains_the_head_and_its_own_parameters_alone(kind, bases):
    found = {tuning: trained(model_of(bases[kind], tuning)) for tuning in TUNINGS}
    head = found["base-head"]
    assert {name.rpartition(".")[0] for name in head} == (
        {"network.classifier", "network.bert.pooler.dense"} if kind == "bert" else {"network.score"}
    )
    assert all(head <= names for names in found.values())
    assert all(name.endswith(".bias") for name in found["base-bitfit"] - head)
    assert all(".lora_" in name for name in found["base-lora"] - head)
    layers = 12 if kind == "bert" else 8  # query, key, value, output and two of the perceptron; c_attn, c_proj, two
    assert len(found["base-lora"] - head) == 2 * layers
    assert found["base-full"] == {name for name, _ in model_of(bases[kind], "base-full").named_parameters()}


def test_adapters_begin_as_the_base_model_itself(bases):
    torch.testing.assert_close(
        model_of(bases["bert"], "base-lora")(NUMBERS), model_of(bases["bert"], "base-head")(NUMBERS)
    )


def test_the_seed_fixes_what_is_new_and_the_global_generator_is_left_alone(bases):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (dict(model_of(bases["bert"], "base-lora", seed).named_parameters()) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {name for name in first if not torch.equal(first[name], other[name])} >= {"network.classifier.weight"}


@pytest.mark.parametrize(
    ("kind", "tuning"),
    [
        ("bert", "base-lora"),
        ("gpt2", "base-lora"),
        ("roberta", "base-bitfit"),
        ("llama", "base-full"),
        ("bert", "base-head"),
    ],
)
def test_the_clipped_sum_is_that_of_one_sentence_at_a_time(kind, tuning, bases):
    assert_sums_are_those_of_one_at_a_time(model_of(bases[kind], tuning).train(), NUMBERS, LABELS)
