"""The models of the training command. None mixes examples; every parameter starts from the user's seed.

The default activation is tanh: it bounds the effect of one example on the next layer, and trains better under clipping
than ReLU (Papernot et al. 2020, "Tempered sigmoid activations for deep learning with differential privacy").
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hushgrad.arguments import one_of
from hushgrad.errors import InvalidArgumentError
from hushgrad.study.frozen import OnFeatures
from hushgrad.study.pretrained.classifier import Base, classifier
from hushgrad.study.pretrained.tuning import TUNINGS
from hushgrad.study.scattering import Scattering
from hushgrad.study.transformer import Transformer
from hushgrad.study.wide_resnet import wide_resnet

MODELS = ("mlp", "cnn", "resnet", "wrn", "scatter-linear", "transformer", *TUNINGS)
OF_WORDS = ("transformer", *TUNINGS)
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
LARGE_SIDE = 20
RESNET_WIDTHS = (16, 32, 64)
GROUPS = 8


def build_model(
    name: str,
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    hidden_sizes: tuple[int, ...] = (64,),
    activation: str = "tanh",
    vocabulary_size: int | None = None,
    base: Base | None = None,
    depth: int = 16,
    width: int = 4,
) -> nn.Module:
    """Return the model `name` for inputs [B, *input_shape] and logits [B, num_classes].

    `vocabulary_size` is given for inputs that are word numbers, which only the transformer and models of a base take;
    the latter need the `base`. `hidden_sizes` are
    the widths of the mlp's hidden layers (none: a linear model), `depth` and `width` the sizes of the wrn; the other
    models ignore them.
    The global generator is left as it was. Raises InvalidArgumentError for an unknown name or a shape that the model
    cannot take.
    """
    one_of("model", name, MODELS)
    act = ACTIVATIONS[one_of("activation", activation, tuple(ACTIVATIONS))]
    if (name in OF_WORDS) != (vocabulary_size is not None):
        raise InvalidArgumentError(
            f"models {', '.join(OF_WORDS)} are for sentences, and sentences need one of them",
            where="model",
            cure="Use it with task 'text', and another model with any other task",
        )
    require_base(name, base is not None)
    if name in ("cnn", "resnet", "wrn") and (len(input_shape) != 3 or min(input_shape[1:]) < 8):
        raise InvalidArgumentError(
            f"{name!r} needs images of at least 8×8 pixels, got inputs of shape {input_shape}",
            where="model",
            cure="Use model 'mlp'",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if vocabulary_size is not None and base is not None:
            return classifier(
                name, base, num_classes=num_classes, vocabulary_size=vocabulary_size, length=input_shape[0]
            )
        if vocabulary_size is not None:
            return Transformer(vocabulary_size, input_shape[0], num_classes)
        if name == "mlp":
            return mlp(math.prod(input_shape), num_classes, hidden_sizes, act)
        if name == "scatter-linear":
            return scatter_linear(input_shape, num_classes)
        if name == "wrn":
            return wide_resnet(input_shape[0], num_classes, depth=depth, width=width, activation=act)
        if name == "cnn":
            return cnn(input_shape, num_classes, act)
        return resnet(input_shape[0], num_classes, act)


def require_base(name: str, is_given: bool) -> None:
    """Raise InvalidArgumentError where a model of a base has none, and where another one is given one."""
    if (name in TUNINGS) != is_given:
        raise InvalidArgumentError(
            f"models {', '.join(TUNINGS)} train a base model further, and a base is for them alone",
            where="model",
            cure="Give both: --base FOLDER --model base-lora; or neither",
        )


def mlp(
    inputs: int, num_classes: int, hidden_sizes: tuple[int, ...], activation: Callable[[], nn.Module]
) -> nn.Sequential:
    """Return a perceptron: [B, *] flattened to [B, inputs], hidden layers, logits."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden_sizes:
        layers += [nn.Linear(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, num_classes))


def scatter_linear(input_shape: tuple[int, ...], num_classes: int) -> OnFeatures:
    """Return a linear model on the scattering features of an image: 39,700 parameters for MNIST."""
    features = Scattering(input_shape)
    return OnFeatures(features, nn.Linear(features.features, num_classes))


def cnn(input_shape: tuple[int, ...], num_classes: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Return the convolutional network of the TensorFlow Privacy tutorial (26,010 parameters for MNIST).

    Images with a side under 20 get smaller kernels in the same arrangement.
    """
    large = min(input_shape[1:]) >= LARGE_SIDE
    first = (
        nn.Conv2d(input_shape[0], 16, 8, stride=2, padding=3) if large else nn.Conv2d(input_shape[0], 16, 3, padding=1)
    )
    second = nn.Conv2d(16, 32, 4, stride=2) if large else nn.Conv2d(16, 32, 3, stride=2)
    features = nn.Sequential(
        first, activation(), nn.MaxPool2d(2, 1), second, activation(), nn.MaxPool2d(2, 1), nn.Flatten()
    )
    with torch.no_grad():
        flat = features(torch.zeros(1, *input_shape)).shape[1]
    return nn.Sequential(*features, nn.Linear(flat, 32), activation(), nn.Linear(32, num_classes))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, each after group normalisation and activation, added to their input ("pre-activation").

    Group normalisation works within one example; batch normalisation would mix examples and cannot be private.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.before_first = nn.Sequential(nn.GroupNorm(GROUPS, inputs), activation())
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.before_second = nn.Sequential(nn.GroupNorm(GROUPS, outputs), activation())
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return [B, outputs, H/stride, W/stride] for [B, inputs, H, W]."""
        ready = self.before_first(images_BCHW)
        change = self.second(self.before_second(self.first(ready)))
        return torch.add(change, self.shortcut(ready))


def resnet(channels: int, num_classes: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Return a residual network with group normalisation: three blocks of 16, 32 and 64 channels."""
    blocks: list[nn.Module] = []
    width = RESNET_WIDTHS[0]
    for stage, following in enumerate(RESNET_WIDTHS):
        blocks.append(ResidualBlock(width, following, 1 if stage == 0 else 2, activation))
        width = following
    return nn.Sequential(
        nn.Conv2d(channels, RESNET_WIDTHS[0], 3, padding=1),
        *blocks,
        nn.GroupNorm(GROUPS, width),
        activation(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )
