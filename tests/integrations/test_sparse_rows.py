"""Tables whose rows are chosen privately, in the loops of frameworks: as by a session of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from lightning.fabric import Fabric
from lit import trainer
from tiny import B, C, Texts, bert, collate
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from hushgrad import Privacy, SparseRows
from hushgrad.errors import UnsupportedOptimizerError
from hushgrad.integrations import accelerate, fabric
from hushgrad.integrations.lightning import PrivateTraining
from hushgrad.integrations.model_losses import of_examples
from hushgrad.integrations.transformers import private

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

TABLE = "bert.embeddings.word_embeddings.weight"
DENSE = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=0.0, test_key=1)
Kind = type[torch.optim.Optimizer]


@pytest.fixture(autouse=True)
def one_accelerator() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process."""
    yield
    AcceleratorState._reset_state()
    PartialState._reset_state()


def chosen() -> Privacy:
    """Return training without noise that chooses every row which a record touches."""
    rule = SparseRows(tables=(TABLE,), threshold=0.5, rows_per_record=1000, count_share=0.1)
    return replace(DENSE, sparse_rows=rule)


def loader() -> DataLoader[Any]:
    return DataLoader(Texts(3), batch_size=B, collate_fn=collate)


def by_fabric(model: nn.Module, privacy: Privacy, kind: Kind, _: Path) -> None:
    launched, optimizer = Fabric(accelerator="cpu", devices=1), kind(model.parameters(), lr=0.1)  # type: ignore[call-arg]
    prepared, stepped, batches, session = fabric.prepare(
        launched, model, optimizer, loader(), privacy=privacy, epochs=1, max_physical_batch_size=4
    )
    follow(lambda item: of_examples(prepared, model, dict(item), None), stepped, batches, session)


def by_accelerate(model: nn.Module, privacy: Privacy, kind: Kind, _: Path) -> None:
    optimizer = kind(model.parameters(), lr=0.1)  # type: ignore[call-arg]
    prepared, stepped, batches, session = accelerate.prepare(
        Accelerator(cpu=True), model, optimizer, loader(), privacy=privacy, epochs=1, max_physical_batch_size=4
    )
    follow(lambda item: of_examples(prepared, model, dict(item), None), stepped, batches, session)


def follow(losses: Callable[[Any], Tensor], stepped: Any, batches: Any, session: Any) -> None:
    for batch in batches:
        for item in batch:
            session.backward(losses(item))
            session.end_item()
        stepped.step()


def by_trainer(model: nn.Module, privacy: Privacy, kind: Kind, folder: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=B // 2, gradient_accumulation_steps=2, num_train_epochs=1,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    optimizer = kind(model.parameters(), lr=0.1)  # type: ignore[call-arg]
    private(Trainer)(
        model=model, args=arguments, train_dataset=Texts(3), data_collator=collate, privacy=privacy,
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
    ).train()  # fmt: skip


class Lit(L.LightningModule):
    """The model in Lightning."""

    def __init__(self, model: nn.Module, privacy: PrivateTraining, kind: Kind) -> None:
        super().__init__()
        self.model, self.privacy, self.kind = model, privacy, kind

    def training_step(self, batch: dict[str, Tensor], _: int) -> Any:
        return self.privacy.loss(of_examples(self.model, self.model, dict(batch), None))

    def configure_optimizers(self) -> Any:
        return self.kind(self.parameters(), lr=0.1)  # type: ignore[call-arg]


def by_lightning(model: nn.Module, privacy: Privacy, kind: Kind, folder: Path) -> None:
    callback = PrivateTraining(privacy, max_physical_batch_size=4)
    trainer(folder, callback, max_epochs=1).fit(Lit(model, callback, kind), callback.batches(loader()))


LOOPS: dict[str, Callable[[nn.Module, Privacy, Kind, Path], None]] = {
    "Fabric": by_fabric,
    "Accelerate": by_accelerate,
    "Trainer": by_trainer,
    "Lightning": by_lightning,
}


@pytest.mark.parametrize(
    "name", ["Fabric", "Trainer", *(pytest.param(name, marks=pytest.mark.slow) for name in ("Accelerate", "Lightning"))]
)
def test_where_every_touched_row_is_chosen_training_without_noise_is_that_of_whole_tables(
    name: str, tmp_path: Path
) -> None:
    trained = {}
    for said, privacy in (("whole", DENSE), ("chosen", chosen())):
        model = bert()
        table = dict(model.named_parameters())[TABLE]
        before = table.detach().clone()
        LOOPS[name](model, privacy, torch.optim.SGD, tmp_path / said)
        assert not torch.equal(before, table)
        trained[said] = table.detach().clone()
    torch.testing.assert_close(trained["whole"], trained["chosen"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOOPS)
def test_an_optimizer_that_moves_all_rows_is_refused_at_set_up(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOptimizerError, match="not known to touch the chosen rows"):
        LOOPS[name](bert(), chosen(), torch.optim.AdamW, tmp_path)
