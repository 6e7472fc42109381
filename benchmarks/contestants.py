"""Who trains it: the ordinary step, hushgrad and the peers. A further one is one more entry of `CONTESTANTS`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import hushgrad
from benchmarks import fastdp, peers
from benchmarks.runner import (
    MAX_GRAD_NORM,
    Contestant,
    Runner,
    not_installed,
    runner_of,
    sgd,
    trainable,
    whole_batch_loader,
)
from benchmarks.workloads import Batch, Workload
from hushgrad.gradients.contribution import Plan

ORDINARY = "ordinary"
HUSHGRAD = "hushgrad"
LEAN = "hushgrad-lean"


def _without_looks(session: hushgrad.Session) -> hushgrad.Session:
    """Measure the ordinary step: what looks at random later batches cost, docs/probe.md says by itself."""
    session._parts.probe.stop_looks()
    return session


def ordinary(workload: Workload, noise_multiplier: float) -> Runner:
    """The step without privacy; there is no noise in it."""
    model = workload.model()
    optimizer, criterion = sgd(model), workload.criterion()

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        criterion(model(batch[0]), batch[1]).backward()
        optimizer.step()

    return runner_of(workload, model, step)


def hushgrad_session(workload: Workload, noise_multiplier: float, plan: Plan | None = None) -> Runner:
    """`privatize` and `session.backward(losses)`, without a loader."""
    model = workload.model()
    optimizer, criterion = sgd(model), workload.criterion(reduction="none")
    mechanism = hushgrad.DPSGD(
        noise_multiplier=noise_multiplier,
        clipping=hushgrad.FlatClipping(MAX_GRAD_NORM),
        sampling=hushgrad.PoissonSampling(rate=0.01),
        expected_batch_size=workload.batch_size,
    )
    session = _without_looks(hushgrad.privatize(model, optimizer, mechanism, plan=plan))

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        session.backward(criterion(model(batch[0]), batch[1]))
        optimizer.step()

    return runner_of(workload, model, step)


def hushgrad_engine(workload: Workload, noise_multiplier: float) -> Runner:
    """`PrivacyEngine` with a plain loop. Sampling at rate 1 makes every draw the same full batch."""
    model = workload.model()
    engine = hushgrad.PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=sgd(model),
        data_loader=whole_batch_loader(workload),
        noise_multiplier=noise_multiplier,
        max_grad_norm=MAX_GRAD_NORM,
    )
    _without_looks(engine.session)
    criterion = engine.per_example(workload.criterion())

    def prepare() -> Batch:
        inputs, targets = next(iter(loader))
        return inputs, targets

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        criterion(model(batch[0]), batch[1]).backward()
        optimizer.step()

    return Runner(prepare, step, trainable(model))


_opacus = partial(Contestant, package="opacus", missing=partial(not_installed, "opacus"))
_fastdp = partial(Contestant, package=fastdp.PACKAGE, version=fastdp.version, missing=fastdp.missing)

CONTESTANTS: dict[str, Contestant] = {
    ORDINARY: Contestant("ordinary", ordinary),
    "compiled": Contestant("ordinary, compiled", peers.compiled, missing=peers.no_compiler, has_peak=False),
    HUSHGRAD: Contestant("hushgrad session", hushgrad_session),
    LEAN: Contestant("hushgrad, lean", partial(hushgrad_session, plan=Plan(keep_bytes=0))),
    "hushgrad-engine": Contestant("hushgrad engine", hushgrad_engine),
    "opacus-hooks": _opacus("Opacus hooks", peers.opacus_hooks),
    "opacus-ghost": _opacus("Opacus ghost", peers.opacus_ghost),
    "opacus-ew": _opacus("Opacus ew", peers.opacus_ew),
    "opacus-functorch": _opacus("Opacus functorch", peers.opacus_functorch),
    "fastdp": _fastdp("fastDP", fastdp.book_keeping),
    "fastdp-origin": _fastdp("fastDP, origin", fastdp.from_origin),
    "torch-func": Contestant("whole-model torch.func", peers.torch_func),
}
"""In the order of the tables."""

NOT_PRIVATE = (ORDINARY, "compiled")


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of the packages that some contestants measure."""
    return {CONTESTANTS[name].package: CONTESTANTS[name].version(CONTESTANTS[name].package) for name in names}
