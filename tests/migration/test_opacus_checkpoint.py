"""A checkpoint of Opacus goes on here with the right account, and nobody is told that its noise was seen."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import opacus
import pytest
import torch
from click.testing import CliRunner
from opacus.schedulers import ExponentialGradClip, ExponentialNoise
from opacus_runs import FIXTURES, SAID, SHUFFLED, SIGMA, Attending, B, C, N, OpacusRun, Recurrent, data, mlp, probe_of
from torch import nn
from torch.utils.data import DataLoader

import hushgrad
from hushgrad.accounting import DisjointPass, PoissonSampled, epsilon, read_ledger
from hushgrad.checks.verification.verdict import Measured, Verdict
from hushgrad.cli.main import main
from hushgrad.errors import AccountingError, CheckpointError, ContractChangedError, InvalidArgumentError, LedgerError
from hushgrad.migration.opacus import read_checkpoint
from hushgrad.study.report.assumptions import assumptions_of

DELTA = 1e-3


@pytest.fixture(scope="module")
def poisson(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return OpacusRun(mlp(), (4,)).save(tmp_path_factory.mktemp("opacus") / "poisson.pt")


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return OpacusRun(mlp(), (4,), poisson_sampling=False).save(tmp_path_factory.mktemp("opacus") / "shuffled.pt")


def go_on(path: Path, ledger: Path, said: dict[str, Any], passes: int = 1, **options: Any) -> hushgrad.PrivacyEngine:
    """Train on from a checkpoint, as its page says."""
    found = read_checkpoint(path, **said)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model.load_state_dict(found.weights_for(model))
    optimizer.load_state_dict(found.optimizer_for(model))
    found.write_ledger(ledger)
    engine = hushgrad.PrivacyEngine(ledger=ledger)
    settings = {"noise_multiplier": 2.0, "max_grad_norm": 0.5, "phase": "after Opacus", **options}
    model, optimizer, loader = engine.make_private(
        module=model, optimizer=optimizer, data_loader=DataLoader(data(4), batch_size=B), **settings
    )
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for _ in range(passes):
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
    return engine


def test_a_checkpoint_of_poisson_steps_continues_with_the_epsilon_of_one_plan(poisson: Path, tmp_path: Path) -> None:
    """Guarantee: Poisson steps cost what a plan of the same noise, rate and number of steps costs."""
    engine = go_on(poisson, tmp_path / "ledger", SAID)
    plan = [(PoissonSampled(1 / 4, SIGMA), 7), (PoissonSampled(B / N, 2.0), 4)]
    assert engine.session.charged == plan
    assert engine.get_epsilon(DELTA) == epsilon(plan, DELTA)
    assert engine.guarantee(DELTA).steps == 11


def test_batches_of_a_shuffled_loader_cost_one_release_for_each_pass(shuffled: Path, tmp_path: Path) -> None:
    """Guarantee: batches of a shuffled loader cost one release without amplification for each pass."""
    found = read_checkpoint(shuffled, **SHUFFLED)
    assert found.events() == [(DisjointPass(SIGMA, 0), 4), (DisjointPass(SIGMA, 1), 3)]
    assert found.epsilon(DELTA) > read_checkpoint(shuffled, **SAID).epsilon(DELTA)  # what Opacus charges them as
    assert "its epsilon was too small and the true one is larger" in found.explanation()
    engine = go_on(shuffled, tmp_path / "ledger", SHUFFLED, poisson_sampling=False)
    plan = [*found.events(), (DisjointPass(2.0, 2), 4)]
    assert engine.session.charged == plan
    assert engine.get_epsilon(DELTA) == epsilon(plan, DELTA)


def test_poisson_steps_do_not_follow_shuffled_ones_on_one_account(shuffled: Path, tmp_path: Path) -> None:
    with pytest.raises(AccountingError, match="relation"):
        go_on(shuffled, tmp_path / "ledger", SHUFFLED)


def test_every_guarantee_of_the_ledger_says_that_the_noise_of_these_steps_was_not_observed(
    poisson: Path, tmp_path: Path
) -> None:
    """Guarantee: every guarantee of that ledger says that the noise of these steps was not observed."""
    path = tmp_path / "ledger"
    engine = go_on(poisson, path, SAID)
    told = engine.guarantee(DELTA)
    engine.session.close()
    shown = CliRunner().invoke(main, ["ledger", "show", str(path), "--delta", str(DELTA)]).output
    computed = CliRunner().invoke(main, ["epsilon", "--ledger", str(path), "--delta", str(DELTA)]).output
    verified = CliRunner().invoke(main, ["ledger", "verify", str(path)]).output
    assert not told.noise_is_observed
    assert not engine.session.noise_is_observed
    assert told.as_json()["noise_is_observed"] is False
    assert "noise not observed" in {condition.name for condition in told.conditions}
    for text in (str(told), " ".join(shown.split()), " ".join(computed.split())):
        assert "NOT VOUCHED FOR: the noise of some of these steps was not observed." in text
    assert "not vouched for" in verified
    assert "noise source not observed" in " ".join(verified.split())
    assert read_ledger(path).contract.noise_source == "not observed"
    assert [phase.contract.noise_source for phase in read_ledger(path).phases] == ["not observed", "operating system"]
    assert "'Opacus' (7 steps, sampling declared by the caller, noise not observed, N = 40" in str(told)


def test_a_verdict_on_what_follows_says_that_the_imported_noise_cannot_be_measured(
    poisson: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = go_on(poisson, tmp_path / "ledger", SAID, passes=0)
    measured = Verdict("training", (), (), Measured(), Measured())  # what is measured is tested where it is measured
    monkeypatch.setattr("hushgrad.checks.verification.training.verify._verdict", lambda *_: measured)
    verdict = hushgrad.verify(mlp(), DataLoader(data(4), batch_size=B), nn.CrossEntropyLoss(), engine)
    assert "NOT VOUCHED FOR: the ledger of this engine holds steps of another library" in str(verdict)


def test_a_report_on_such_a_ledger_knows_of_no_noise_that_nobody_can_predict(poisson: Path, tmp_path: Path) -> None:
    read_checkpoint(poisson, **SAID).write_ledger(tmp_path / "ledger")
    files = SimpleNamespace(ledger=read_ledger(tmp_path / "ledger"), summary={}, said=lambda name: None)
    rows = {row["assumption"]: row for row in assumptions_of(files, contradictions=0)}  # type: ignore[arg-type]
    for name in ("Nobody can predict the noise", "Noise was drawn after its step was charged, once for each step"):
        assert rows[name]["status"] == "not checked"
    assert "not vouched for" in rows["Nobody can predict the noise"]["evidence"]
    assert rows["Taken on trust: noise not observed"]["status"] == "not checked"


def test_a_guarantee_of_own_steps_alone_says_nothing_of_that(tmp_path: Path) -> None:
    model = mlp()
    engine = hushgrad.PrivacyEngine(ledger=tmp_path / "ledger")
    engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters()),
        data_loader=DataLoader(data(4), batch_size=B),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    assert engine.session.noise_is_observed
    assert "VOUCHED" not in str(engine.guarantee(DELTA))


def test_a_run_goes_on_only_in_a_phase_of_its_own(poisson: Path, tmp_path: Path) -> None:
    for phase in (None, "Opacus"):
        with pytest.raises(ContractChangedError, match="new"):
            go_on(poisson, tmp_path / f"ledger {phase}", SAID, phase=phase)


def test_a_target_epsilon_counts_the_imported_steps(poisson: Path, tmp_path: Path) -> None:
    read_checkpoint(poisson, **SAID).write_ledger(tmp_path / "ledger")
    model = mlp()
    engine = hushgrad.PrivacyEngine(ledger=tmp_path / "ledger")
    engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.SGD(model.parameters()),
        data_loader=DataLoader(data(4), batch_size=B),
        target_epsilon=4.0,
        target_delta=DELTA,
        epochs=3,
        max_grad_norm=1.0,
        phase="after Opacus",
    )
    whole = [(PoissonSampled(1 / 4, SIGMA), 7), *engine.mechanism.first(12)]
    assert 3.99 < epsilon(whole, DELTA) <= 4.0


def test_a_ledger_is_there_with_all_steps_or_not_at_all(
    poisson: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: the file is there with all steps or not at all, and never replaces another one."""
    found = read_checkpoint(poisson, **SAID)
    found.write_ledger(tmp_path / "ledger")
    before = (tmp_path / "ledger").read_bytes()
    with pytest.raises(LedgerError, match="a file at its path already"):
        found.write_ledger(tmp_path / "ledger")
    assert (tmp_path / "ledger").read_bytes() == before

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hushgrad.accounting.ledger.ledger.Ledger.note", interrupted)
    with pytest.raises(KeyboardInterrupt):
        found.write_ledger(tmp_path / "other")
    assert [file.name for file in tmp_path.iterdir()] == ["ledger"]
    with pytest.raises(LedgerError, match="cannot be written"):
        found.write_ledger(tmp_path / "no such folder" / "ledger")


def test_an_imported_ledger_that_was_edited_is_refused_as_any_other(poisson: Path, tmp_path: Path) -> None:
    read_checkpoint(poisson, **SAID).write_ledger(tmp_path / "ledger")
    content = (tmp_path / "ledger").read_bytes()
    for old, new in ((b'"count":7', b'"count":6'), (b'"not observed"', b'"operating system"')):
        assert old in content
        (tmp_path / "ledger").write_bytes(content.replace(old, new))
        with pytest.raises(LedgerError, match="record"):
            read_ledger(tmp_path / "ledger")


def test_the_ledger_says_where_its_steps_come_from(poisson: Path, tmp_path: Path) -> None:
    found = read_checkpoint(poisson, **SAID)
    found.write_ledger(tmp_path / "ledger")
    note = next(note for note in read_ledger(tmp_path / "ledger").notes if note.about == "imported")
    assert note.values["from"] == "Opacus"
    assert note.values["steps"] == 7
    assert note.values["sha256_of_checkpoint"] == found.stored.sha256


@pytest.mark.parametrize("accountant", ["rdp", "gdp", "prv"])
def test_the_history_of_every_accountant_is_charged_alike(accountant: str, tmp_path: Path) -> None:
    path = OpacusRun(mlp(), (4,), accountant=accountant).save(tmp_path / "opacus.pt")
    found = read_checkpoint(path, **SAID)
    assert found.stored.accountant == accountant
    assert found.events() == [(PoissonSampled(1 / 4, SIGMA), 7)]
    assert ("can state an epsilon that is too small" in found.explanation()) == (accountant == "gdp")


FACTS = {
    f"{version}/{name}": facts
    for version in ("1.4.0", "1.5.2")
    for name, facts in json.loads((FIXTURES / version / "facts.json").read_text()).items()
}
SHAPES = {"lstm": (5, 3), "attention": (5, 4)}


@pytest.mark.parametrize("stored", FACTS)
def test_stored_checkpoints_of_earlier_versions_are_read_like_those_of_today(stored: str) -> None:
    facts, name = FACTS[stored], stored.partition("/")[2]
    found = read_checkpoint(FIXTURES / f"{stored}.pt", **(SHUFFLED if facts["shuffled"] else SAID))
    models: dict[str, nn.Module] = {
        "rdp": mlp(),
        "lstm": Recurrent(nn.LSTM),
        "attention": Attending(nn.MultiheadAttention),
    }
    model = models.get(name, nn.Linear(4, 2))
    model.load_state_dict(found.weights_for(model))
    probe = probe_of(*SHAPES.get(name, (4,)))
    output = model.eval()(probe.transpose(0, 1) if name == "attention" else probe)
    torch.testing.assert_close(output, torch.tensor(facts["output"]), atol=1e-6, rtol=0)
    assert found.steps == 7
    assert found.stored.accountant == (name if name in ("rdp", "gdp", "prv") else "rdp")
    shuffled = [(DisjointPass(SIGMA, 0), 4), (DisjointPass(SIGMA, 1), 3)]
    assert found.events() == (shuffled if facts["shuffled"] else [(PoissonSampled(1 / 4, SIGMA), 7)])
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.load_state_dict(found.optimizer_for(model))
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].shape == parameter.shape


def test_a_noise_schedule_is_charged_step_by_step_and_told(tmp_path: Path) -> None:
    run = OpacusRun(mlp(), (4,), schedule=lambda optimizer: ExponentialNoise(optimizer, gamma=0.9))
    found = read_checkpoint(run.save(tmp_path / "opacus.pt", noise_scheduler=run.schedule), **SAID)
    noises = [event.noise_multiplier for event, _ in found.events()]
    assert noises == pytest.approx([SIGMA * 0.9**step for step in range(7)])
    assert "The noise followed a schedule" in found.explanation()


def test_a_clip_schedule_is_told(tmp_path: Path) -> None:
    run = OpacusRun(mlp(), (4,), schedule=lambda optimizer: ExponentialGradClip(optimizer, gamma=0.9))
    found = read_checkpoint(run.save(tmp_path / "opacus.pt", grad_clip_scheduler=run.schedule), **SAID)
    assert found.events() == [(PoissonSampled(1 / 4, SIGMA), 7)]
    assert "The clip norm followed a schedule" in found.explanation()


def test_what_the_file_does_not_say_is_asked_for_all_at_once(poisson: Path) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_checkpoint(poisson)
    for name in ("poisson_sampling", "batch_size", "population", "max_grad_norm", "clipping"):
        assert f"{name}: " in caught.value.what
        assert f"{name}=" in caught.value.cure
    with pytest.raises(InvalidArgumentError, match="passes=2") as caught:
        read_checkpoint(poisson, **{**SAID, "poisson_sampling": False})
    assert "how often the loop began to go through the loader" in caught.value.what


@pytest.mark.parametrize(
    ("said", "where", "part"),
    [
        ({"batch_size": 20}, "batch_size, population", "1 / 2"),
        ({"population": 400}, "batch_size, population", "the file has 0.25"),
        ({"clipping": "adaptive"}, "clipping", "up to 1.5"),
        ({"clipping": "ghost"}, "clipping", "per_layer"),
        ({"clipping": "per_layer"}, "max_grad_norm", "the list that make_private was given"),
        ({"max_grad_norm": [1.0, 1.0]}, "max_grad_norm", "one number"),
        ({"max_grad_norm": 0.0}, "max_grad_norm", ""),
        ({"poisson_sampling": "yes"}, "poisson_sampling", "True or False"),
        ({"passes": 2}, "passes", "Leave passes= out"),
        ({"poisson_sampling": False, "passes": 1}, "passes", "at least 2 passes"),
        ({"poisson_sampling": False, "passes": 8}, "passes", "7 steps"),
        ({"loss_reduction": "none"}, "loss_reduction", "mean"),
    ],
)
def test_an_answer_that_cannot_be_or_does_not_fit_the_file_is_refused(
    poisson: Path, said: dict[str, Any], where: str, part: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_checkpoint(poisson, **{**SAID, **said})
    assert caught.value.where == where
    assert part in str(caught.value)
    assert caught.value.cure


def test_clipping_per_layer_is_declared_with_the_norm_of_all_layers_together(poisson: Path) -> None:
    norms = [0.3, 0.4, 1.2, 0.0001]
    found = read_checkpoint(poisson, **{**SAID, "clipping": "per_layer", "max_grad_norm": norms})
    assert found.said.contract.max_grad_norm == pytest.approx(math.hypot(*norms))


def test_a_checkpoint_before_the_first_step_has_no_account_to_go_on_from(tmp_path: Path) -> None:
    path = tmp_path / "opacus.pt"
    with pytest.warns(UserWarning, match="Secure RNG"):
        engine = opacus.PrivacyEngine()
    engine.save_checkpoint(path=path, module=mlp())
    found = read_checkpoint(path, **SAID)
    assert found.events() == []
    with pytest.raises(LedgerError, match="no step"):
        found.write_ledger(tmp_path / "ledger")
    with pytest.raises(CheckpointError, match="holds no optimizer"):
        found.optimizer_for(mlp())


def test_the_same_constants_as_the_contract_are_in_the_ledger(poisson: Path, tmp_path: Path) -> None:
    read_checkpoint(poisson, **SAID).write_ledger(tmp_path / "ledger")
    contract = read_ledger(tmp_path / "ledger").contract
    assert (contract.expected_batch_size, contract.population, contract.max_grad_norm) == (B, N, C)
    assert contract.sampling == "declared by the caller"
    assert contract.clipping == "Opacus: flat, to 1"


def with_history(path: Path, history: list[tuple[float, float, int]], to: Path) -> Path:
    """Write a checkpoint again with another history."""
    content = torch.load(path, weights_only=True)
    content["privacy_accountant_state_dict"]["history"] = history
    torch.save(content, to)
    return to


def test_accumulated_batches_are_charged_where_no_step_can_join_two_passes(shuffled: Path, tmp_path: Path) -> None:
    path = with_history(shuffled, [(SIGMA, 0.5, 7)], tmp_path / "opacus.pt")  # two of four batches in each step
    found = read_checkpoint(path, **{**SHUFFLED, "passes": 4})
    assert [(event.data_pass, count) for event, count in found.events()] == [(0, 2), (1, 2), (2, 2), (3, 1)]
    thirds = with_history(shuffled, [(SIGMA, 0.75, 7)], tmp_path / "thirds.pt")
    for file, passes in ((path, 5), (thirds, 6)):
        with pytest.raises(InvalidArgumentError, match="one record twice"):
            read_checkpoint(file, **{**SHUFFLED, "passes": passes})


def test_passes_that_were_left_early_are_charged_with_the_smallest_noise_that_they_can_have_had(
    shuffled: Path, tmp_path: Path
) -> None:
    history = [(3.0, 0.25, 4), (2.0, 0.25, 4)]
    path = with_history(shuffled, history, tmp_path / "opacus.pt")
    whole = read_checkpoint(path, **SHUFFLED)
    assert whole.events() == [(DisjointPass(3.0, 0), 4), (DisjointPass(2.0, 1), 4)]
    cut = read_checkpoint(path, **{**SHUFFLED, "passes": 3})
    assert {event.noise_multiplier for event, _ in cut.events()} == {2.0}
    assert {event.data_pass for event, _ in cut.events()} == {0, 1, 2}
    assert sum(count for _, count in cut.events()) == 8
    assert cut.epsilon(DELTA) == epsilon([(DisjointPass(2.0, index), 1) for index in range(3)], DELTA)
