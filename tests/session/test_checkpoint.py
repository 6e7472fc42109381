"""Coming back: a checkpoint goes on with its own account, or is refused before anything is changed."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.checkpoints.file import read_checkpoint, write_checkpoint
from hushgrad.errors import CheckpointError, HushgradError, InvalidArgumentError, LedgerError, ProtocolError

STEPS = 12


class Run:
    """A run of 12 planned steps over 32 records, in items of at most 4, with a schedule; it can stop and come back."""

    def __init__(self, folder: Path, *, width: int = 4, ledger: bool = True, spare_steps: int = 0) -> None:
        self.folder = folder
        self.model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.1, STEPS)
        self.engine = PrivacyEngine(ledger=folder / "ledger.jsonl" if ledger else None, test_key=1)
        data = TensorDataset(torch.randn(32, 3), torch.randn(32, 2))
        _, _, self.loader = self.engine.make_private_with_epsilon(
            module=self.model,
            optimizer=self.optimizer,
            data_loader=DataLoader(data, batch_size=8),
            target_epsilon=3.0,
            target_delta=1e-3,
            epochs=STEPS // 4,
            max_grad_norm=1.0,
            max_physical_batch_size=4,
            spare_steps=spare_steps,
        )
        self.criterion = self.engine.per_example(nn.MSELoss())

    @property
    def path(self) -> Path:
        return self.folder / "checkpoint"

    def train(self, steps: int) -> None:
        while True:
            for x, y in self.loader:
                self.optimizer.zero_grad()
                self.criterion(self.model(x), y).backward()
                self.optimizer.step()
                if self.engine.last_step_updated:
                    self.scheduler.step()
                    steps -= 1
                    if not steps:
                        return

    def save(self, **named: Any) -> None:
        self.engine.save_checkpoint(self.path, schedulers=[self.scheduler], **named)

    def load(self) -> Any:
        return self.engine.load_checkpoint(self.path, schedulers=[self.scheduler])

    def state(self) -> list[Any]:
        states = [self.model.state_dict(), self.optimizer.state_dict(), self.scheduler.state_dict()]
        return [*(value.clone() for value in states[0].values()), repr(states[1:])]

    def is_as(self, before: list[Any]) -> bool:
        now = self.state()
        return now[-1] == before[-1] and all(map(torch.equal, now[:-1], before[:-1]))


@pytest.fixture(autouse=True)
def another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a ledger that another machine wrote nothing is known here, so the receipt alone must tell."""
    monkeypatch.setenv("HUSHGRAD_STATE", "off")


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[Path, list[Any]]:
    """A run that wrote a checkpoint after 5 steps and stopped after 7; its folder, and what it was at 5."""
    (tmp_path / "run").mkdir()
    run = Run(tmp_path / "run")
    run.train(5)
    run.save(extra={"epoch": 1})
    state = run.state()
    run.train(2)
    run.engine.session.close()
    return tmp_path / "run", state


def test_a_run_goes_on_from_its_checkpoint_and_its_account_from_its_ledger(stopped: tuple[Path, list[Any]]) -> None:
    folder, state = stopped
    run = Run(folder)
    assert run.engine.session.lost_steps == 0
    resumed = run.load()
    assert (resumed.steps, resumed.lost_steps, resumed.extra) == (5, 2, {"epoch": 1})
    assert run.engine.session.lost_steps == 2
    assert run.is_as(state)
    assert run.engine.session.steps == 7
    assert run.engine.session.steps_left == STEPS - 7
    run.train(STEPS - 7)
    assert run.engine.session.steps == STEPS
    named = {condition.name for condition in run.engine.guarantee(1e-3).conditions}
    assert "parameters written by the loop" not in named


def test_spare_steps_let_a_run_reach_its_end_over_a_crash(tmp_path: Path) -> None:
    run = Run(tmp_path, spare_steps=2)
    run.train(5)
    run.save()
    run.train(2)
    run.engine.session.close()
    run = Run(tmp_path, spare_steps=2)
    resumed = run.load()
    run.train(STEPS - resumed.steps)
    assert run.scheduler.last_epoch == STEPS
    assert run.engine.session.steps == STEPS + resumed.lost_steps
    assert run.engine.get_epsilon(1e-3) <= 3.0
    with pytest.raises(HushgradError, match="DP503"):
        run.train(1)


def test_spare_steps_are_refused_where_passes_are_counted(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(InvalidArgumentError, match="Plan one epoch more"):
        PrivacyEngine().make_private_with_epsilon(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(torch.randn(8, 3)), batch_size=4),
            target_epsilon=3.0,
            target_delta=1e-3,
            epochs=1,
            max_grad_norm=1.0,
            poisson_sampling=False,
            spare_steps=1,
        )


def cut(folder: Path) -> None:
    ledger = folder / "ledger.jsonl"
    ledger.write_bytes(b"\n".join([*ledger.read_bytes().split(b"\n")[:4], b""]))


def of_another_run(folder: Path) -> None:
    (folder / "ledger.jsonl").unlink()
    other = Run(folder)
    other.train(9)
    other.engine.session.close()


def cut_and_continued(folder: Path) -> None:
    """As many steps as the checkpoint saw, and more, but others."""
    cut(folder)
    other = Run(folder)
    other.train(5)
    other.engine.session.close()


def damaged(folder: Path) -> None:
    data = (folder / "checkpoint").read_bytes()
    (folder / "checkpoint").write_bytes(data[:200] + b"?" + data[201:])


BROKEN: dict[str, tuple[Callable[[Path], object], type[HushgradError], dict[str, Any]]] = {
    "its ledger is gone": (lambda folder: os.unlink(folder / "ledger.jsonl"), LedgerError, {}),
    "its ledger was cut": (cut, LedgerError, {}),
    "its ledger was cut and went on": (cut_and_continued, LedgerError, {}),
    "another run's ledger": (of_another_run, LedgerError, {}),
    "no ledger path": (lambda folder: None, LedgerError, {"ledger": False}),
    "another model": (lambda folder: None, CheckpointError, {"width": 5}),
    "a damaged file": (damaged, CheckpointError, {}),
    "no file": (lambda folder: os.unlink(folder / "checkpoint"), CheckpointError, {}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_checkpoint_that_cannot_be_continued_is_refused_before_anything_is_changed(
    name: str, stopped: tuple[Path, list[Any]]
) -> None:
    """Guarantee: a checkpoint that cannot be continued is refused before anything is changed."""
    spoil, kind, settings = BROKEN[name]
    spoil(stopped[0])
    run = Run(stopped[0], **settings)
    before, charged = run.state(), run.engine.session.steps
    with pytest.raises(kind):
        run.load()
    assert run.is_as(before)
    assert run.engine.session.steps == charged


@pytest.mark.parametrize("name", [name for name, (_, kind, _) in BROKEN.items() if kind is LedgerError])
def test_weights_whose_steps_the_ledger_does_not_hold_are_refused(name: str, tmp_path: Path) -> None:
    """Guarantee: weights whose steps this session's ledger does not hold are refused."""
    spoil, kind, settings = BROKEN[name]
    run = Run(tmp_path)
    run.train(5)
    receipt = run.engine.session.state_dict()
    run.engine.session.close()
    spoil(tmp_path)
    with pytest.raises(kind):
        Run(tmp_path, **settings).engine.session.load_state_dict(receipt)


def test_a_run_in_memory_goes_back_to_its_own_checkpoint_and_no_other_run_does(tmp_path: Path) -> None:
    run = Run(tmp_path, ledger=False)
    run.train(3)
    run.save()
    run.train(2)
    assert run.load().lost_steps == 2
    run_again = Run(tmp_path, ledger=False)
    with pytest.raises(LedgerError, match="in memory only"):
        run_again.load()


def test_inside_a_logical_batch_nothing_is_written_or_loaded(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save()
    item = next(iter(run.loader))
    run.criterion(run.model(item[0]), item[1]).backward()
    for forbidden in (run.save, run.load, lambda: run.engine.session.load_state_dict({})):
        with pytest.raises(ProtocolError, match="inside a logical batch"):
            forbidden()
    run.engine.session.discard()
    assert run.load().steps == 0


def test_a_copied_folder_is_continued_as_the_original(stopped: tuple[Path, list[Any]], tmp_path: Path) -> None:
    shutil.copytree(stopped[0], tmp_path / "copy")
    run = Run(tmp_path / "copy")
    assert run.load().lost_steps == 2


def test_schedulers_are_as_many_as_they_were(stopped: tuple[Path, list[Any]]) -> None:
    run = Run(stopped[0])
    before = run.state()
    with pytest.raises(CheckpointError, match="1 schedulers, and 0"):
        run.engine.load_checkpoint(run.path)
    assert run.is_as(before)


def test_a_receipt_holds_nothing_but_how_far_the_account_went(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.train(2)
    state = run.engine.session.state_dict()
    assert set(state) == {"format", "run", "steps", "anchor", "is_on_disk"}
    assert state["steps"] == 2
    assert str(tmp_path) not in str(state)


def test_the_loop_of_the_page_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "resuming.md").read_text(encoding="utf-8")
    block = compile(page.split("```python\n")[1].split("```")[0], "resuming.md", "exec")
    for _ in range(2):
        names: dict[str, Any] = {}
        exec(block, names)
        names["engine"].session.close()
    assert "going on after step 30; 0 steps came after" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["optimizer", "scheduler"])
def test_the_state_of_another_kind_of_optimizer_or_scheduler_is_refused(
    part: str, stopped: tuple[Path, list[Any]]
) -> None:
    run = Run(stopped[0])
    before = run.state()
    scheduler: Any = run.scheduler
    if part == "scheduler":
        scheduler = torch.optim.lr_scheduler.StepLR(run.optimizer, 1)
    else:
        run.engine.session.close()
        run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.01)  # type: ignore[assignment]
        run.engine.make_private(
            module=run.model,
            optimizer=run.optimizer,
            data_loader=DataLoader(TensorDataset(torch.randn(32, 3), torch.randn(32, 2)), batch_size=8),
            noise_multiplier=run.engine.session.mechanism.noise_multiplier,
            max_grad_norm=1.0,
            max_physical_batch_size=4,
        )
        before = run.state()
    with pytest.raises(CheckpointError, match="it holds the state of a"):
        run.engine.load_checkpoint(run.path, schedulers=[scheduler])
    assert run.is_as(before)


class Refusing:
    """A scheduler that gives a state and takes none."""

    def state_dict(self) -> dict[str, Any]:
        return {"a": 1}

    def load_state_dict(self, _: Any) -> None:
        raise ValueError


def test_a_scheduler_that_refuses_its_state_leaves_all_as_it_was(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.train(2)
    run.engine.save_checkpoint(run.path, schedulers=[run.scheduler, Refusing()])
    run.train(1)
    before = run.state()
    with pytest.raises(CheckpointError, match="Refusing does not take its state"):
        run.engine.load_checkpoint(run.path, schedulers=[run.scheduler, Refusing()])
    assert run.is_as(before)


@pytest.mark.parametrize(
    "change",
    [{"model": [1]}, {"optimizer": None}, {"optimizer": {}}, {"optimizer": {"param_groups": [{}]}}, {"schedulers": 3},
     {"kinds": []}],
)  # fmt: skip
def test_a_part_of_another_form_is_refused(change: dict[str, Any], stopped: tuple[Path, list[Any]]) -> None:
    run = Run(stopped[0])
    before = run.state()
    write_checkpoint(run.path, {**read_checkpoint(run.path), **change})
    with pytest.raises(CheckpointError, match="lacks its part"):
        run.load()
    assert run.is_as(before)


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("later", [0, 2])
def test_a_receipt_of_more_or_fewer_steps_than_its_ledger_held_is_refused(
    is_kept: bool, later: int, tmp_path: Path
) -> None:
    """Guarantee: how many steps were lost is told as it is, or nothing is loaded."""
    run = Run(tmp_path, ledger=is_kept)
    run.train(3)
    receipt = run.engine.session.state_dict()
    if later:
        run.train(later)
    for steps in (2, 4, 0, 99) if is_kept or not later else (99,):  # a ledger in memory keeps no earlier records
        with pytest.raises(CheckpointError, match=f"speaks of {steps} steps, and its ledger held"):
            run.engine.session.load_state_dict({**receipt, "steps": steps})
    assert run.engine.session.load_state_dict(receipt) == later


def test_a_checkpoint_with_the_receipt_of_another_step_is_refused_before_anything_is_changed(
    stopped: tuple[Path, list[Any]],
) -> None:
    run = Run(stopped[0])
    before = run.state()
    content = read_checkpoint(run.path)
    write_checkpoint(run.path, {**content, "receipt": {**content["receipt"], "steps": content["receipt"]["steps"] - 1}})
    with pytest.raises(CheckpointError, match="edited, or put together of two"):
        run.load()
    assert run.is_as(before)


def test_nothing_is_written_or_loaded_inside_a_step_wherever_it_is_asked_from(tmp_path: Path) -> None:
    """A signal's handler runs in the middle of an update, another thread beside it."""
    run = Run(tmp_path)
    run.save()
    asked: list[str] = []

    def ask(*_: Any) -> None:
        for forbidden in (run.save, run.load):
            try:
                forbidden()
            except ProtocolError as error:
                asked.append(error.what)

    def ask_in_both(*_: Any) -> None:
        ask()
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()

    run.optimizer.register_step_pre_hook(ask_in_both)  # runs after the session's own
    run.train(1)
    assert len(asked) % 4 == 0  # in each item's step both were refused to both
    assert all("inside optimizer.step()" in what for what in asked[-4:])  # that of the update
    assert all("inside a logical batch" in what for what in asked[:-4])
    run.save()


def test_a_step_that_an_exception_left_is_over(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = run.optimizer.register_step_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.train(1)
    handle.remove()
    run.engine.session.discard()
    run.save()


class Nested:
    """A part of a checkpoint during whose writing something else happens."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self.happens = happens

    def state_dict(self) -> dict[str, Any]:
        self.happens()
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError


def test_a_checkpoint_inside_a_checkpoint_is_refused_and_the_outer_one_is_whole(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def inner() -> None:
        with pytest.raises(ProtocolError, match="while another one is written"):
            run.save()

    run.engine.save_checkpoint(run.path, schedulers=[Nested(inner)])
    assert read_checkpoint(run.path)["schedulers"] == [{}]


def test_a_checkpoint_during_which_a_step_ran_is_refused_and_the_last_one_stays(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(extra="first")
    with pytest.raises(ProtocolError, match="steps ran while"):
        run.engine.save_checkpoint(run.path, schedulers=[Nested(lambda: run.train(1))], extra="second")
    assert read_checkpoint(run.path)["extra"] == "first"


def with_groups(folder: Path, order: list[tuple[str, float]], rows: int = 3) -> tuple[PrivacyEngine, Any, Any, Any]:
    """A model of two layers, with the group of each in an order and with a learning rate of its own."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(rows, 3), "b": nn.Linear(3, 3)})
    model.forward = lambda x: model["b"](model["a"](x).tanh())  # type: ignore[method-assign]
    optimizer = torch.optim.Adam([{"params": list(model[name].parameters()), "lr": rate} for name, rate in order])
    engine = PrivacyEngine(ledger=folder / "ledger.jsonl", test_key=1)
    data = TensorDataset(torch.randn(16, rows), torch.randn(16, 3))
    _, _, loader = engine.make_private(
        module=model, optimizer=optimizer, data_loader=DataLoader(data, batch_size=8), noise_multiplier=1.0,
        max_grad_norm=1.0,
    )  # fmt: skip
    return engine, model, optimizer, loader


@pytest.mark.parametrize("has_names", [True, False])
@pytest.mark.parametrize("rows", [3, 5])
def test_moments_and_learning_rates_go_to_the_parameters_they_came_from_or_nowhere(
    rows: int, has_names: bool, tmp_path: Path
) -> None:
    order = [("a", 0.01), ("b", 0.1)]
    engine, model, optimizer, loader = with_groups(tmp_path, order, rows)
    criterion, path = engine.per_example(nn.MSELoss()), tmp_path / "checkpoint"
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    engine.save_checkpoint(path)
    moments = optimizer.state[model["a"].weight]["exp_avg"].clone()
    engine.session.close()
    if not has_names:  # a file of before names were kept
        write_checkpoint(path, {name: value for name, value in read_checkpoint(path).items() if name != "parameters"})
    if has_names or rows == 5:
        engine, model, optimizer, _ = with_groups(tmp_path, order[::-1], rows)
        before = [value.clone() for value in model.state_dict().values()]
        with pytest.raises(CheckpointError, match="in another order" if has_names else "has the shape"):
            engine.load_checkpoint(path)
        assert not optimizer.state
        assert all(map(torch.equal, before, model.state_dict().values()))
        engine.session.close()
    engine, model, optimizer, _ = with_groups(tmp_path, order, rows)
    engine.load_checkpoint(path)
    assert torch.equal(optimizer.state[model["a"].weight]["exp_avg"], moments)
    engine.session.close()


def test_a_state_of_another_shape_under_the_right_names_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.train(2)
    run.save()
    run.engine.session.close()
    content = read_checkpoint(run.path)
    content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(2, 3)
    write_checkpoint(run.path, content)
    again = Run(tmp_path)
    before = again.state()
    with pytest.raises(CheckpointError, match="has the shape"):
        again.load()
    assert again.is_as(before)
