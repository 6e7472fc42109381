"""fastDP (awslabs/fast-differential-privacy) from a folder of its source: it isn't in the package registry.

Written by its documented use: `PrivacyEngine(model, ...)`, `attach(optimizer)`, then an ordinary loop with the mean
loss. `clipping_fn="Abadi"` is the clipping that everybody here does; its default, "automatic", scales short gradients
up to the norm C and so makes another update. `clipping_mode` is left at its default, the fastest one. Once it runs as
it comes, and once with `origin_params`, which its README recommends for speed: only the first layers' parameters
require gradients, so that autograd forms no gradients which book-keeping throws away.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from benchmarks.runner import MAX_GRAD_NORM, Runner, sgd, trainable
from benchmarks.workloads import Batch, Workload

PACKAGE = "fastDP"
VARIABLE = "HUSHGRAD_FASTDP"
"""The environment variable that names the folder; processes for one workload inherit it."""

RECORDS_FOR_EACH = 100  # of the data set for one of the batch; enters its accounting, which no step does


def name_folder(folder: Path | None) -> None:
    """Name the folder of fastDP's source for this process and its children; None leaves what the environment names."""
    if folder is None and VARIABLE in os.environ:
        folder = Path(os.environ[VARIABLE])
    if folder is not None:
        os.environ[VARIABLE] = str(folder.resolve())


def missing() -> str | None:
    """Return why fastDP cannot take part, with the cure, or None."""
    folder = os.environ.get(VARIABLE)
    if folder is not None:
        init = Path(folder) / PACKAGE / "__init__.py"
        return None if init.is_file() else f"the folder that {VARIABLE} or --fastdp names has no {PACKAGE}/__init__.py"
    if importlib.util.find_spec(PACKAGE) is None:
        return (
            "fastDP isn't in the package registry: clone awslabs/fast-differential-privacy and name the folder with "
            f"--fastdp FOLDER or {VARIABLE}"
        )
    return None


def version(package: str = PACKAGE) -> str:
    """Return what fastDP's source calls its version, without importing it."""
    folder = os.environ.get(VARIABLE)
    spec = None if folder is not None else importlib.util.find_spec(package)
    init = Path(folder) / package / "__init__.py" if folder is not None else Path(spec.origin or "") if spec else None
    found = None if init is None else re.search(r"^__version__ = ['\"]([^'\"]+)", init.read_text("utf-8"), re.MULTILINE)
    return f"{found[1] if found else 'of unknown version'} (from its source)"


def book_keeping(workload: Workload, noise_multiplier: float) -> Runner:
    """fastDP as it comes: hybrid book-keeping."""
    return _attached(workload, noise_multiplier, with_origin=False)


def from_origin(workload: Workload, noise_multiplier: float) -> Runner:
    """fastDP with the parameters named from which its backward starts."""
    return _attached(workload, noise_multiplier, with_origin=True)


def origin_of(model: nn.Module) -> list[str]:
    """Return what `origin_params` names: all trained embeddings, or the bias (else the weight) of the first layer."""
    modules = dict(model.named_modules())
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    embeddings = [name for name in names if isinstance(modules[name.rpartition(".")[0]], nn.Embedding)]
    first = names[0].rpartition(".")[0]
    bias = f"{first}.bias"
    return embeddings or [bias if bias in names else names[0]]


def _attached(workload: Workload, noise_multiplier: float, *, with_origin: bool) -> Runner:
    with _importable():
        from fastDP import PrivacyEngine

    model = workload.model()
    # fastDP takes the requirement of a gradient from most parameters, so what is trained is asked before.
    parameters, optimizer, criterion = trainable(model), sgd(model), workload.criterion()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        engine = PrivacyEngine(
            model,
            batch_size=workload.batch_size,
            sample_size=RECORDS_FOR_EACH * workload.batch_size,
            epochs=1,
            noise_multiplier=noise_multiplier,
            max_grad_norm=MAX_GRAD_NORM,
            clipping_fn="Abadi",
            clipping_style="all-layer",
            origin_params=origin_of(model) if with_origin else None,
        )
        engine.attach(optimizer)

    def step(batch: Batch) -> None:
        criterion(model(batch[0]), batch[1]).backward()
        optimizer.step()
        optimizer.zero_grad()

    batch = workload.batch()
    return Runner(lambda: batch, step, parameters)


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    folder = os.environ.get(VARIABLE)
    if folder is None:
        yield
        return
    sys.path.insert(0, str(Path(folder).resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(Path(folder).resolve()))
