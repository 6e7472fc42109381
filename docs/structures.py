"""Writes structures.md: what each structure of a model or loop does here, and in Opacus. Every cell is a run.

Run `python docs/structures.py` to write the page anew; a test checks that it is current. The structures themselves are
in `tests/zoo/clean_structures.py`, the programs that people bring in `tests/zoo/brought`; what the walk through all
architectures found last is in `tests/zoo/walk`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

PAGE = Path(__file__).with_name("structures.md")
sys.path.insert(0, str(PAGE.parents[1] / "tests" / "zoo"))

from brought.report import sections as brought  # noqa: E402
from clean_contestants import Outcome, by_hushgrad, by_opacus  # noqa: E402
from clean_structures import GROUPS  # noqa: E402
from walk.report import sections as walked  # noqa: E402
from walk.report import stored  # noqa: E402

HEAD = """# What works

Each row is a model or a loop that was run on five examples, and its per-example gradients were compared with those of
one example at a time through an ordinary copy of the model. *Exact* means a difference of at most 1e-5 of the whole
(2% in bf16, the error of that precision itself). *Refused* means a typed error before anything could be released.

The last column is the same program in Opacus 1.6.0: validated and wrapped as its `make_private` does, with its default
way of computing per-example gradients, then one `step()` of its optimizer. *Fails* means an exception in the loop;
*wrong* means that it ran through, and what it would have clipped is not the gradient of a record.

`torch.compile(model)` gives right gradients and no speed: a forward that is captured runs as it is, also its compiled
parts. What the loop computes around it is compiled, evaluations are too (docs/performance.md). Compile what the loop
calls before the model: augmentation, a frozen backbone.

A record's gradient may be exact and training still not private: the two `Embedding` options that are refused here move
weights without noise, or divide a record's gradient by what other records looked up.

A tensor that the model is given for all batches alike (a mask `[T, T]`, features of classes `[C, d]`, weights `[C]`)
has the shape of what a loop may compute from the batch, so it is refused unless it was declared before the loop:
`mask = engine.session.public(mask)`. Buffers, and what the forward makes itself, need no declaration.

Rows that a forward selects by the batch's values are told by where they came from: `h[mask]` and `out[mask] = ...`,
`torch.where` and `index_add`, `sort` and back. So mixtures of experts train exactly, those of `transformers` in all
three of its ways (`grouped_mm`, `batched_mm`, and `eager`, whose loop over the experts that are there is told as
`numbers read in the forward`). A capacity, the k largest rows of a batch and a loss that
balances the experts over the batch are no function of single records, and are refused; where the rows come back only as
long as a capacity is not reached, the first batch that reaches it is. To cut sorted rows into pieces yourself
(`h[:n]`), select each expert's rows by `torch.where(expert == e)` instead.

Parts made by `torch.jit` run outside of Python: with trainable parameters they are refused at set-up, and without any
the batch is lost in what they return. Under the transforms of `torch.func` (`vmap`, `grad`, `jvp`) and forward-mode
differentiation trainable parameters are refused: call the model on the whole batch, or transform a copy of it.

Threads: each has a capture of its own, so that a model may run in several at once. An evaluation under `no_grad()`
beside training is an ordinary one; training may run in any thread, a backward in another one than its forward. Whatever
the thread, a backward that reaches parameters between a loader item and its `optimizer.step()` counts for that item, so
evaluate under `no_grad()`. Read a private loader in one thread. While the first batch is examined, forwards of other
threads that draw random numbers, or change what the model keeps, would be taken for its own: begin them after the first
step.

Batches need not be `[B, ...]`. These are exact too, without a declaration (`tests/zoo/silent/joined_batches.py` has
them beside leaky look-alikes):

- *end to end*: rows of all records, one record behind the other, with whole numbers that say where each begins:
  `offsets` `[B]` or `[B + 1]` (`nn.EmbeddingBag`), the owner of each row `[N]` (`batch` in PyG), or both;
  `edge_index` `[2, E]` and what has a row for each edge. In the forward they may be looked up (`h[source]`), added up
  (`index_add`, `scatter_add`, `scatter_reduce`, `bincount`) and split. An edge between two records, or owners that
  lie, are refused. Put them together in `collate_fn`; what a model returns has a row for each record, so pool in the
  forward. Two bags with offsets `[B]` each: pass `[B + 1]` (`include_last_offset=True`), since nothing says to which
  of them a vector `[B]` belongs;
- *lists*: an entry for each record (`[r[0] for r in records]`, `tuple(zip(*records))`, targets of detection).
  `stack`, `cat` and `pad_sequence` join them; what is computed of each alone is dear for large batches;
- *in another order*: a `collate_fn` that sorts, and `pack_padded_sequence` with torch's defaults. Not with
  `constant_shapes`, where padding is known by its place;
- *time first*: inputs `[T, B, ...]` and states `[layers, B, h]`, also where T = B. A criterion of
  `engine.per_example` takes outputs with the records first; `session.backward(losses)` takes losses `[B]` of any
  outputs.

Refused: `torch.nested` tensors (pass rows end to end), and lengths that were divided by the longest of a batch (pass
them as they are, and divide by the width inside the forward).

The page is written by `python docs/structures.py`, and a test checks that it is current. Whole architectures, by hand
and from `transformers` and `peft`, are tested in the same way: about a hundred under `tests/zoo`, and all that the
packages have, once for each release, [below](#every-architecture-of-transformers-every-method-of-peft).
"""


def cell(outcome: Outcome) -> str:
    """Return an outcome as a cell of the table."""
    detail = outcome.detail.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
    return f"**{outcome.verdict}**: {detail}" if detail else outcome.verdict


def page(programs: Sequence[str] | None = None) -> str:
    """Return the whole page; `programs` are the lines of those that people bring, which are run if it is None."""
    torch.set_num_threads(1)
    sections = [HEAD.rstrip()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for title, structures in GROUPS.items():
            sections += [f"\n## {title}\n", "| structure | here | Opacus 1.6.0 |", "| --- | --- | --- |"]
            for name, structure in structures.items():
                sections.append(f"| {name} | {cell(by_hushgrad(structure))} | {cell(by_opacus(structure))} |")
        programs = brought() if programs is None else programs
    return "\n".join([*sections, *programs, *walked(stored())]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
