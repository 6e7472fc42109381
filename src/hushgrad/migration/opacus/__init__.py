"""Going on from what Opacus wrote: its checkpoints, and the one layer of it that computes something of its own."""

from hushgrad.migration.opacus.attention import OpacusAttention, reproduce_attention
from hushgrad.migration.opacus.checkpoint import OpacusCheckpoint, read_checkpoint

__all__ = ["OpacusAttention", "OpacusCheckpoint", "read_checkpoint", "reproduce_attention"]
