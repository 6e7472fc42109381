"""Ledgers of both formats: the first, which named no clip rule and no unit of privacy, and that of today."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hushgrad.accounting import Contract, Ledger, PoissonSampled, guarantee, read_ledger
from hushgrad.accounting.ledger.records import NO_HASH, decode, encode
from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import ContractChangedError, LedgerError

GOLDEN = Path(__file__).parents[1] / "golden" / "ledgers"
FLAT = Contract(
    "observed",
    "operating system",
    expected_batch_size=100.0,
    max_grad_norm=1.0,
    population=10000,
    clipping=FlatClipping(1).describe(),
)
PER_LAYER = replace(FLAT, clipping="PerLayer(limits=(0.6, 0.8))")
FORMAT_1 = sorted(path.name for path in GOLDEN.glob("*.jsonl"))
FORMAT_2 = {"flat.jsonl": FLAT, "per-layer.jsonl": PER_LAYER}


@pytest.fixture(params=["add-remove-one.jsonl", "format-2/flat.jsonl"])
def of_flat(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a ledger of flat clipping, in each format."""
    return shutil.copy(GOLDEN / request.param, tmp_path / "ledger.jsonl")


@pytest.mark.parametrize("name", FORMAT_1)
def test_a_ledger_that_named_no_clip_rule_was_of_flat_clipping_and_one_record(name: str) -> None:
    assert read_ledger(GOLDEN / name).contract == FLAT


@pytest.mark.parametrize("name", FORMAT_2)
def test_what_this_version_writes_is_read_and_written_with_the_same_bytes(name: str) -> None:
    path = GOLDEN / "format-2" / name
    view = read_ledger(path)
    assert (view.contract, view.events) == (FORMAT_2[name], [(PoissonSampled(0.01, 1.1), 20)])
    (header,) = decode(path.read_bytes().splitlines(keepends=True)[0])
    body = {"format": 2, "hushgrad": header["hushgrad"], "run": view.run, "contract": FORMAT_2[name].to_json()}
    assert path.read_bytes().startswith(encode("header", 0, NO_HASH, body)[0])


def test_a_ledger_of_either_format_goes_on_under_its_rule(of_flat: Path) -> None:
    before = read_ledger(of_flat)
    with Ledger(of_flat, contract=FLAT) as ledger:
        ledger.charge(PoissonSampled(0.01, 1.1))
    after = read_ledger(of_flat)
    assert (after.contract, after.steps) == (FLAT, before.steps + 1)
    assert after.events[: len(before.events) - 1] == before.events[:-1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"clipping": PER_LAYER.clipping}, [FLAT.clipping, PER_LAYER.clipping]),
        ({"clipping": FlatClipping(1.5).describe()}, [FLAT.clipping, "FlatClipping(max_grad_norm=1.5)"]),
        ({"clipping": None}, [FLAT.clipping, "None"]),
        ({"unit": "one user"}, ["one record", "one user"]),
    ],
)
def test_no_ledger_is_continued_under_another_rule_or_unit(
    of_flat: Path, change: dict[str, str | None], named: list[str]
) -> None:
    before = of_flat.read_bytes()
    with pytest.raises(ContractChangedError) as caught:
        Ledger(of_flat, contract=replace(FLAT, **change))  # type: ignore[arg-type]
    assert all(text in str(caught.value) for text in named)
    assert of_flat.read_bytes() == before


@pytest.mark.parametrize(
    ("format_", "left_out"), [(1, set()), (1, {"unit"}), (2, {"clipping"}), (2, {"clipping", "unit"}), (3, set())]
)
def test_a_contract_with_the_fields_of_another_format_is_refused(
    tmp_path: Path, format_: int, left_out: set[str]
) -> None:
    said = {name: value for name, value in FLAT.to_json().items() if name not in left_out}
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(encode("header", 0, NO_HASH, {"format": format_, "run": "x", "contract": said})[0])
    with pytest.raises(LedgerError, match="record 0 of the ledger: it cannot be understood"):
        read_ledger(path)


def test_the_guarantee_is_for_the_unit_of_the_contract() -> None:
    for unit in ("one record", "one user"):
        said = guarantee([(PoissonSampled(0.01, 1.1), 20)], 1e-5, contract=replace(FLAT, unit=unit))
        assert said.unit == unit
        assert f"for {unit} under add/remove-one neighbours" in str(said)
