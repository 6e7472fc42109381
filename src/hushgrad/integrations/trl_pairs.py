"""Private training on pairs of answers (TRL's `DPOTrainer`): a record is a prompt with both of its answers."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hushgrad.errors import UnsupportedModelError
from hushgrad.integrations.pair_losses import LOSSES, Pairs
from hushgrad.integrations.private_trainer import PrivateTraining

_ROWS = ("input_ids", "attention_mask", "completion_mask")
"""What TRL collates with the chosen answers of a batch first, and the rejected ones after them."""


class PrivatePairs(PrivateTraining):
    """`PrivateTraining` of pairs. The reference is TRL's: a model, a model without its adapters, or what it stored."""

    def _default_arguments(self) -> Any:
        from trl.trainer.dpo_config import DPOConfig

        return DPOConfig(output_dir="trainer_output")

    def _settle(self, args: Any) -> None:
        super()._settle(args)
        if args.precompute_ref_batch_size is None:
            args.precompute_ref_batch_size = self._most_records  # as many as fit into memory

    def _collate(self, theirs: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return _BothAnswers(theirs)

    def per_example_losses(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Return one loss per pair, `[B]`: the weighted sum of the losses that `loss_type` names."""
        this: Any = self
        references = self._references(model, inputs)
        gains = [
            _log_probabilities(model, inputs, answer) - reference
            for answer, reference in zip(("chosen", "rejected"), references, strict=True)
        ]
        pairs = Pairs(
            gains[0],
            gains[1],
            inputs["chosen_completion_mask"].sum(1),
            inputs["rejected_completion_mask"].sum(1),
            this.beta,
            this.label_smoothing,
        )
        of_kinds = [
            weight * LOSSES[kind](pairs) for kind, weight in zip(this.loss_types, this.loss_weights, strict=True)
        ]
        return torch.stack(of_kinds).sum(0)

    def _references(self, model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
        this: Any = self
        if this.precompute_ref_logps:
            return [inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]]
        without_adapters: Any = contextlib.nullcontext()
        if this.ref_model is None:
            from trl.trainer.utils import use_adapter

            bare = self._base
            without_adapters = use_adapter(bare, adapter_name="ref" if "ref" in bare.peft_config else None)
        with torch.no_grad(), without_adapters:
            return [
                _log_probabilities(model if this.ref_model is None else this.ref_model, inputs, answer)
                for answer in ("chosen", "rejected")
            ]

    def _compare_with_own(self, model: nn.Module, inputs: dict[str, Any]) -> bool:
        """Refuse a Trainer whose own loss of the first pair is not what would be trained; otherwise return True.

        An answer without tokens has a loss, too: its log probability is 0.
        """
        this: Any = self
        first = {name: value[:1] for name, value in inputs.items()}
        theirs = {name: value for name, value in first.items() if not name.startswith(("chosen_", "rejected_"))}
        theirs |= {name: torch.cat([first[f"chosen_{name}"], first[f"rejected_{name}"]]) for name in _ROWS}
        modes = [(module, module.training) for module in this.model.modules()]
        kept, this._metrics = this._metrics, {mode: defaultdict(list) for mode in ("train", "eval")}
        this.model.eval()
        try:
            with torch.no_grad(), this.compute_loss_context_manager():
                own = this.compute_loss(this.model, theirs).float().reshape(())
                ours = self.per_example_losses(this.model, first).float().reshape(())
        finally:
            this._metrics = kept  # which would have been logged
            for module, mode in modes:
                module.training = mode
        is_narrow = this.args.bf16 or any(p.dtype != torch.float32 for p in this.model.parameters())
        tolerance = 2e-2 if is_narrow else 1e-5
        if not torch.allclose(own, ours, rtol=tolerance, atol=tolerance if is_narrow else 1e-6):
            raise UnsupportedModelError(
                "its own loss of one pair is not what private training would train",
                where=type(this.model).__name__,
                cure="Define per_example_losses(self, model, inputs) in the class that private(...) is given, to "
                "return one loss per pair, [B]",
            )
        return True


class _BothAnswers:
    """TRL's collate function, with the two answers of a pair in tensors of their own, `[B, T]` each."""

    def __init__(self, theirs: Callable[[Any], Any]) -> None:
        self._theirs = theirs

    def __call__(self, records: Any) -> dict[str, Any]:
        found, count = dict(self._theirs(records)), len(records)
        for name in _ROWS:
            both = found.pop(name)
            found[f"chosen_{name}"], found[f"rejected_{name}"] = both[:count], both[count:]
        return found


def _log_probabilities(model: nn.Module, inputs: dict[str, Any], answer: str) -> Tensor:
    """Return the log-probability of each answer, the sum over its tokens, `[B]`."""
    ids_BT, mask_BT = inputs[f"{answer}_input_ids"], inputs[f"{answer}_completion_mask"]
    outputs = model(input_ids=ids_BT, attention_mask=inputs[f"{answer}_attention_mask"], use_cache=False)
    logits_BTV = outputs.logits[:, -ids_BT.shape[1] :].float()  # virtual tokens of prompt tuning stand before
    losses_BT = F.cross_entropy(logits_BTV[:, :-1].transpose(1, 2), ids_BT[:, 1:], reduction="none")
    log_probabilities_B: Tensor = -(losses_BT * mask_BT[:, 1:]).sum(1)
    return log_probabilities_B
