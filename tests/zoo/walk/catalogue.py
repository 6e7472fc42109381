"""All programs of the walk, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import peft
import transformers as hf
from torch import nn

from walk.adapters import adapters
from walk.judging import built
from walk.registry import architectures

VERSIONS = {"transformers": hf.__version__, "peft": peft.__version__}
ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    kind: partial(built, name) for kind, name in architectures().items()
}
ADAPTERS = adapters()
PROGRAMS = {**ARCHITECTURES, **ADAPTERS}
