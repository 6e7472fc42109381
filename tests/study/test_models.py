import pytest
import torch

from hushgrad.errors import InvalidArgumentError
from hushgrad.study.models import MODELS, OF_WORDS, build_model

ON_IMAGES = tuple(name for name in MODELS if name not in OF_WORDS)


def build(name="mlp", input_shape=(1, 8, 8), num_classes=3, seed=0, **options):
    return build_model(name, input_shape=input_shape, num_classes=num_classes, seed=seed, **options)


@pytest.mark.parametrize("name", ON_IMAGES)
@pytest.mark.parametrize("input_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 19, 23)])
def test_every_model_gives_one_logit_per_class_for_every_image_size(name, input_shape):
    assert build(name, input_shape)(torch.zeros(5, *input_shape)).shape == (5, 3)


@pytest.mark.parametrize("name", ON_IMAGES)
def test_an_example_does_not_influence_another_ones_output(name):
    model, images = build(name), torch.randn(4, 1, 8, 8)
    changed = images.clone()
    changed[1] = 100.0
    torch.testing.assert_close(model(images)[[0, 2, 3]], model(changed)[[0, 2, 3]])


@pytest.mark.parametrize("name", ON_IMAGES)
def test_the_seed_fixes_the_parameters_and_the_global_generator_is_left_alone(name):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = build(name, seed=1), build(name, seed=1), build(name, seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_the_mnist_network_is_the_tutorials():
    assert sum(p.numel() for p in build("cnn", (1, 28, 28), num_classes=10).parameters()) == 26_010


def test_no_hidden_layer_is_a_linear_model():
    assert sum(p.numel() for p in build("mlp", (20,), hidden_sizes=()).parameters()) == 63


@pytest.mark.parametrize("name", ["cnn", "resnet", "scatter-linear"])
def test_an_image_model_refuses_what_is_no_image_with_the_cure(name):
    for shape in ((20,), (1, 7, 8)):
        with pytest.raises(InvalidArgumentError, match="Use model 'mlp'"):
            build(name, shape)


def test_unknown_names_are_refused():
    with pytest.raises(InvalidArgumentError, match="model: must be one of"):
        build("vit")
    with pytest.raises(InvalidArgumentError, match="activation: must be one of"):
        build(activation="gelu")


def test_the_transformer_reads_sentences_and_an_example_does_not_influence_another_ones_output():
    model = build("transformer", (6,), vocabulary_size=20)
    numbers = torch.tensor([[1, 2, 0, 0, 0, 0], [0] * 6, [3] * 6])
    logits = model(numbers)
    assert logits.shape == (3, 3)
    assert bool(torch.isfinite(logits).all())
    changed = numbers.clone()
    changed[2] = 7
    torch.testing.assert_close(model(changed)[:2], logits[:2])


def test_padding_is_not_read():
    model = build("transformer", (6,), vocabulary_size=20)
    before = model(torch.tensor([[1, 2, 0, 0, 0, 0]]))
    with torch.no_grad():
        model.words.weight[0] += 5.0
    torch.testing.assert_close(model(torch.tensor([[1, 2, 0, 0, 0, 0]])), before)


def test_sentences_need_the_transformer_and_it_needs_sentences():
    with pytest.raises(InvalidArgumentError, match="are for sentences"):
        build("transformer", (6,))
    with pytest.raises(InvalidArgumentError, match="are for sentences"):
        build("mlp", (6,), vocabulary_size=20)


def test_the_transformer_begins_as_the_sum_of_its_words_over_the_root_of_their_number():
    model = build("transformer", (6,), vocabulary_size=20)
    numbers = torch.tensor([[3, 1, 4, 0, 0, 0]])
    vectors = model.words(numbers[:, :3]) + model.positions(torch.arange(3))
    torch.testing.assert_close(model(numbers), model.logits(vectors.sum(dim=1) / 3**0.5))
