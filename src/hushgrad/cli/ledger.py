"""`hushgrad ledger`: what a ledger file says, and whether it can be trusted."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from hushgrad.accounting.composition import finding_of
from hushgrad.accounting.conditions import NOISE_NOT_OBSERVED
from hushgrad.accounting.guarantee import guarantee, round_up
from hushgrad.accounting.ledger.contract import Contract
from hushgrad.accounting.ledger.monitors import normal
from hushgrad.accounting.ledger.records import LedgerHead
from hushgrad.accounting.ledger.view import LedgerView, read_ledger
from hushgrad.arguments import whole_number
from hushgrad.cli.options import ACCOUNTANT, GROUP_SIZE, JSON
from hushgrad.cli.output import print_facts, print_json, print_table

PATH = click.argument("path", type=click.Path(dir_okay=False))


@click.group()
def ledger() -> None:
    """Read and verify the record of what a run spent."""


@ledger.command()
@PATH
@click.option("--delta", type=float, help="Also print the epsilon at this delta, and the guarantee in full.")
@GROUP_SIZE
@ACCOUNTANT
@JSON
def show(path: str, delta: float | None, group_size: int, accountant: str, as_json: bool) -> None:
    """Print the contract and the steps of a ledger, after verifying it.

    \b
    hushgrad ledger show run/ledger.jsonl --delta 1e-5
    """
    view = read_ledger(path)
    if delta is None and group_size != 1:
        raise click.UsageError("--group-size needs --delta")
    result = None
    if delta is not None:
        result = guarantee(view.events, delta, accountant, view.contract, view.conditions, group_size)
    if as_json:
        value: dict[str, Any] = {
            **_facts(path, view),
            "events": [{**event.to_json(), "count": count} for event, count in view.events],
            "notes": [{"about": note.about, "steps": note.steps, "values": dict(note.values)} for note in view.notes],
        }
        print_json(value if result is None else {**value, **result.as_json()})
        return
    facts = _facts(path, view)
    if result is not None:
        facts = {"epsilon": round_up(result.epsilon), "delta": delta, **facts}
    print_facts(facts, "" if result is None else str(result))
    rows = []
    for event, count in view.events:
        fields = {key: value for key, value in event.to_json().items() if key not in ("type", "version")}
        rows.append([f"{count}", event.type, ", ".join(f"{key} {_plain(value)}" for key, value in fields.items())])
    if rows:
        click.echo()
        print_table(["times", "event", "with"], rows)
    if view.notes:
        click.echo()
        found = [
            [
                f"{note.steps}",
                note.about,
                ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in note.values.items()),
                normal(note.about),
            ]
            for note in view.notes
        ]
        print_table(["after steps", "note of", "found", "normal"], found)


@ledger.command()
@PATH
@click.option("--anchor-record", type=int, help="With --anchor-hash: a record that the ledger once ended with.")
@click.option("--anchor-hash", help="The hash of that record, as this command printed it then.")
@JSON
def verify(path: str, anchor_record: int | None, anchor_hash: str | None, as_json: bool) -> None:
    """Verify every byte of a ledger; exit code 1 and the first bad record where it was damaged or edited.

    That it is whole does not mean that its steps are established: a finding is named.

    The last record's number and hash are printed. Kept elsewhere, and given back as --anchor-record and --anchor-hash,
    they also show whether records were cut off at the end since.
    """
    if (anchor_record is None) != (anchor_hash is None):
        raise click.UsageError("give --anchor-record and --anchor-hash together")
    anchor = None
    if anchor_record is not None and anchor_hash is not None:
        anchor = LedgerHead(whole_number("anchor_record", anchor_record, minimum=0), anchor_hash)
    view = read_ledger(path, anchor)
    facts = {"verified": True, **_facts(path, view)}
    if as_json:
        print_json(facts)
    else:
        print_facts(facts, "Every record matches its hash and the one before it.")


def _facts(path: str, view: LedgerView) -> dict[str, Any]:
    contract = view.contract
    found = finding_of(view.events)
    named = [phase for phase in view.phases if phase.name is not None]
    return {
        **({} if found is None else {"not_established": found}),
        **({} if contract.noise_is_observed else {"not_vouched_for": NOISE_NOT_OBSERVED.sentence}),
        "ledger": path,
        "run": view.run,
        "steps": view.steps,
        **({"phases": ", ".join(f"{phase.name!r} from step {phase.begins + 1}" for phase in named)} if named else {}),
        "sampling": contract.sampling,
        "noise_source": contract.noise_source,
        "clip_rule": contract.clipping,
        **({} if contract.sparse_rows is None else {"sparse_rows": contract.sparse_rows}),
        "max_grad_norm": contract.max_grad_norm,
        "expected_batch_size": contract.expected_batch_size,
        "population": contract.population,
        "unit": contract.unit,
        **_grid(contract),
        "last_record": view.anchor.seq,
        "last_hash": view.anchor.hash,
    }


def _grid(contract: Contract) -> dict[str, Any]:
    """Return what the contract says of noise on a grid."""
    if contract.rounding is None:
        return {}
    return {f"rounding_{name}": value for name, value in asdict(contract.rounding).items()}


def _plain(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
