"""Options that several commands share."""

from __future__ import annotations

import click

from hushgrad.accounting.accountants import ACCOUNTANTS, DEFAULT_ACCOUNTANT

JSON = click.option(
    "--json", "as_json", is_flag=True, help='Print one JSON object; an infinite number is the string "inf".'
)
ACCOUNTANT = click.option(
    "--accountant", type=click.Choice(sorted(ACCOUNTANTS)), default=DEFAULT_ACCOUNTANT, show_default=True
)
DELTA = click.option(
    "--delta", type=float, required=True, help="In (0, 1); usual: less than 1 / the number of records."
)
GROUP_SIZE = click.option(
    "--group-size",
    type=int,
    default=1,
    show_default=True,
    help="For people with at most so many records: the epsilon of all at once. So many times that of one is no bound.",
)
LEDGER = click.option(
    "--ledger", type=click.Path(dir_okay=False), help="Read what ran from a ledger, in place of a plan."
)
