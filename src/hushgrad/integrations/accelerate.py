"""Private training in a loop of Hugging Face Accelerate::

    from hushgrad import Privacy
    from hushgrad.integrations.accelerate import prepare

    model, optimizer, batches, session = prepare(
        accelerator, model, optimizer, loader, epochs=3,
        privacy=Privacy(max_grad_norm=1.0, target_epsilon=3, target_delta=1e-5),
    )
    for epoch in range(3):
        for batch in batches:  # a logical batch
            for item in batch:  # as much of it as fits into memory, on the accelerator's device
                with accelerator.autocast():
                    losses = losses_of(model, item)
                session.backward(losses)  # [b], one loss per example
                session.end_item()
            optimizer.step()
            scheduler.step()
    print(session.guarantee(delta=1e-5))

Steps, schedules and the account count logical batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hushgrad.extras import needs_extra
from hushgrad.integrations.fresh_generators import begin_generators_anew
from hushgrad.integrations.incompatible import refuse
from hushgrad.integrations.own_loop import Batches, attach, plan
from hushgrad.integrations.receipt_file import read_receipt, write_receipt
from hushgrad.privacy import Privacy
from hushgrad.sampling.records import Share
from hushgrad.session.session import Session

with needs_extra("hf", "hushgrad.integrations.accelerate"):
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, send_to_device


def prepare(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    data_loader: Any,
    *,
    privacy: Privacy,
    epochs: int,
    max_physical_batch_size: int | None = None,
) -> tuple[nn.Module, Optimizer, Batches, Session]:
    """Do what `accelerator.prepare` does, and make the training private.

    `accelerator.save_state` and `load_state` keep and check the session's receipt; `load_state` refuses a state whose
    steps the ledger does not hold before it loads a weight, which takes a ledger path (`Privacy(ledger=...)`).
    `save_state` seeds the random generators of torch, NumPy and Python anew, because it writes their states, which show
    how many numbers were drawn for dropout, and so how many records a step held. For the same reason it writes 0 for
    `accelerator.step`.

    Args:
        accelerator: of one process or several (DistributedDataParallel), without fp16 and without gradient
            accumulation.
        model: in training mode, not prepared.
        optimizer: over all of the model's trainable parameters, not prepared.
        data_loader: an ordinary DataLoader, not prepared; its batch size is B, and of several processes that of each of
            them, as everywhere in Accelerate (with `split_batches`, that of all).
        privacy: the clip norm, and ε or the noise.
        epochs: how many passes are planned; a pass is len(batches) steps.
        max_physical_batch_size: the most records in one item; None for all.

    Returns:
        The prepared model and optimizer, the logical batches, and the session.

    Raises:
        IncompatibleFrameworkError: the accelerator does what private training cannot bear.
    """
    _require_fit(accelerator)
    each = Share() if accelerator.split_batches else Share(accelerator.process_index, accelerator.num_processes)
    planned = plan(privacy, data_loader, epochs, each)
    prepared_model, prepared_optimizer = accelerator.prepare(model, optimizer)
    session, batches = attach(
        model if accelerator.num_processes == 1 else prepared_model,
        optimizer,
        planned,
        privacy,
        max_physical_batch_size,
        lambda item: send_to_device(item, accelerator.device),
    )

    def before_saving(models: Any, weights: Any, folder: str) -> None:
        begin_generators_anew()  # Accelerate writes their states next
        accelerator.step = 0  # and how often accelerator.accumulate was entered, which may be the number of items
        if accelerator.is_main_process:
            write_receipt(Path(folder), session)

    accelerator.register_save_state_pre_hook(before_saving)
    accelerator.register_load_state_pre_hook(  # before Accelerate loads any weight
        lambda models, folder: session.load_state_dict(read_receipt(Path(folder))[0].as_state())
    )
    return prepared_model, prepared_optimizer, batches, session


def _require_fit(accelerator: Accelerator) -> None:
    problems = []
    if accelerator.gradient_accumulation_steps != 1:
        problems.append(
            (
                f"gradient_accumulation_steps is {accelerator.gradient_accumulation_steps}, and a logical batch is one "
                f"batch of the loader",
                "Give the DataLoader the whole batch size, and prepare max_physical_batch_size",
            )
        )
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        problems.append(
            (
                f"the model is distributed as {accelerator.distributed_type.value}",
                "Launch it with DistributedDataParallel (accelerate launch --multi_gpu), or in one process",
            )
        )
    if accelerator.mixed_precision in ("fp16", "fp8"):
        problems.append(
            (
                f"mixed_precision={accelerator.mixed_precision!r} scales losses, and skips steps by looking at "
                f"gradients without noise",
                "Use mixed_precision='bf16'",
            )
        )
    refuse("accelerate", problems)
