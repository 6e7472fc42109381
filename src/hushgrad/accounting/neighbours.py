"""ε of one composition under other neighbouring relations than its own, and for groups of records.

What a ledger's events say is add/remove-one for Poisson sampling and full batches, and zero-out for the caller's own
batches. From the same events follows, for one sampled or unsampled Gaussian step:

- *zero-out* of a Poisson-sampled or unsampled step is the same pair of distributions as add/remove-one: the record is
  drawn and contributes, or is drawn and contributes nothing. The same ε.
- *replace-one* of an unsampled step changes the sum by up to 2C: half the noise multiplier. Of a Poisson-sampled step,
  with the same coin for both records, it compares (1−q)R + qP₀ with (1−q)R + qQ₀, where P₀ and Q₀ differ from R by a
  shift of at most C and from each other by at most 2C. By advanced joint convexity (Balle, Barthe & Gaboardi, 2018,
  arXiv:1807.01647, theorem 2) and ε₀ = log(1 + (e^ε − 1)/q), it has δ(ε) <= q·δ_G(ε₀) with δ_G that of the shift 2C:
  the bound of fixed-size sampling with the same rate (`fixed_size_losses`), true and not sharp.
- of *truncated* Poisson sampling replace-one and zero-out are at most what replace-one of plain sampling is: let it be
  known what would be kept without the record. With one probability, at most q, it takes the place of another one (or
  only comes), whatever is in it, so R, P₀ and Q₀ differ by at most 2C from each other, as above.
- *zero-out* of a step of *fixed size* is replace-one by one particular record. (No factor of 2 is saved: where the
  record is not taken, another one is, and differs from it by up to 2C.)
- of a pass over *random batches* (balls in bins) zero-out, too, is the same pair. Replace-one and groups: refused.
- *groups* of k records added or removed together: Ganesh (2024, arXiv:2401.10294), sharp, by the saddle-point
  accountant. Groups under replace-one: refused.
"""

from __future__ import annotations

from hushgrad.accounting.accountants import DEFAULT_ACCOUNTANT, epsilon_bounds
from hushgrad.accounting.bounds import EpsilonBounds
from hushgrad.accounting.composition import Composition, NormalForm, normal_form
from hushgrad.accounting.events.event import ADD_REMOVE_ONE, RELATIONS, REPLACE_ONE, ZERO_OUT
from hushgrad.accounting.truncation import as_if_never_cut
from hushgrad.arguments import one_of, open_unit_interval, whole_number
from hushgrad.errors import AccountingError


def epsilon_under(composition: Composition, delta: float, relation: str, group_size: int = 1) -> EpsilonBounds:
    """Return bounds on ε at `delta` where neighbours differ by `group_size` records, changed as `relation` says.

    Guarantee: the upper bound holds for that relation; the lower one is 0 where the bound is not known to be sharp.

    Raises `AccountingError` with the reason where nothing true is known: add/remove-one of events that are charged
    under zero-out (a record's absence would shift the later batches), groups under replace-one, groups of steps of
    truncated or of fixed size, or of cyclic Poisson sampling, groups and replace-one of passes over random batches.
    """
    delta = open_unit_interval("delta", delta)
    one_of("relation", relation, RELATIONS)
    size = whole_number("group_size", group_size, minimum=1)
    form = normal_form(composition)
    if form.empty:
        return EpsilonBounds(0.0, 0.0)
    if form.adjacency == relation and size == 1:
        return epsilon_bounds(composition, delta)
    if relation == REPLACE_ONE and size > 1:
        raise AccountingError(
            "epsilon of a group under replace-one is not computed: no sharp bound is known",
            where="group_size",
            cure="Ask for add/remove-one, or for group_size=1",
        )
    if relation == ADD_REMOVE_ONE and form.adjacency == ZERO_OUT:
        raise AccountingError(
            "the caller's own batches are charged under zero-out. Under add/remove-one there is no bound: without one "
            "example, every later batch would shift",
            where="relation",
            cure="Ask for zero-out, or train with Poisson sampling",
        )
    if form.allocated and (relation == REPLACE_ONE or size > 1):
        raise AccountingError(
            "epsilon of passes over random batches (balls in bins) is known for the presence of one record. For "
            f"{'replace-one' if relation == REPLACE_ONE else 'groups'} no sharp bound is known",
            where="relation" if relation == REPLACE_ONE else "group_size",
            cure="Ask for add/remove-one or zero-out of one record",
        )
    if size > 1 and form.sampled and any(event.in_block is not None for event, count in composition if count):
        raise AccountingError(
            "epsilon of a group is not computed for cyclic Poisson sampling: records of different groups share rows of "
            "the noise, and no sharp bound is known",
            where="group_size",
            cure="Ask for group_size=1, or train with Poisson sampling and independent noise",
        )
    if form.noiseless:
        return epsilon_bounds(composition, delta)
    if form.fixed_size and not form.truncated and relation == ZERO_OUT and size == 1:
        return EpsilonBounds(0.0, epsilon_bounds(composition, delta).upper)
    in_place = relation != ADD_REMOVE_ONE and size == 1
    if form.truncated and in_place:
        form, relation = as_if_never_cut(form), REPLACE_ONE
    form.without_allocation().require_plain(f"another relation than {form.adjacency}")
    from hushgrad.accounting.saddle_point.accountant import epsilon_bounds as of_form

    if relation != REPLACE_ONE:
        return of_form(form, delta, size)
    replaced = NormalForm(
        REPLACE_ONE,
        4 * form.gaussian_precision,
        (),
        False,
        fixed_size=tuple((rate, noise / 2, count) for rate, noise, count in form.sampled),
    )
    return of_form(replaced, delta)


def epsilon_of_group(
    composition: Composition, delta: float, group_size: int = 1, accountant: str = DEFAULT_ACCOUNTANT
) -> EpsilonBounds:
    """Return bounds on ε at `delta` for `group_size` records at once: all those of a person with at most so many.

    Under the relation that the composition is charged under. `group_size` times the ε of one record at the same δ is
    no bound: 11.5 for 16.6 of 16 records (σ = 2, q = 0.01, 1,000 steps, δ = 1e-6).

    Raises what `epsilon_under` does, and `AccountingError` for groups by another accountant than "saddle-point".
    """
    size = whole_number("group_size", group_size, minimum=1)
    if size == 1:
        return epsilon_bounds(composition, delta, accountant)
    if accountant != DEFAULT_ACCOUNTANT:
        raise AccountingError(
            f"epsilon of a group is computed by {DEFAULT_ACCOUNTANT!r} alone",
            where=f"accountant {accountant!r}",
            cure=f"Ask accountant={DEFAULT_ACCOUNTANT!r}",
        )
    return epsilon_under(composition, delta, normal_form(composition).adjacency, size)
