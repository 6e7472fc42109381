"""What a guarantee rests on, and whether it held: seen in the files, enforced while the run went on, or not known."""

from __future__ import annotations

from hushgrad.accounting.composition import finding_of, steps_of
from hushgrad.accounting.conditions import DISCARDED, UNCOUNTED
from hushgrad.accounting.guarantee import delta_text
from hushgrad.accounting.ledger.contract import OBSERVED, ONE_RECORD
from hushgrad.study.report.run_files import RunFiles, anchor_in

HELD, BROKEN, UNKNOWN = "held", "did not hold", "not checked"


def assumptions_of(files: RunFiles, *, contradictions: int) -> list[dict[str, str]]:
    """Return {"assumption", "status", "evidence"} for each condition of the ε; none for a run without privacy."""
    ledger, summary = files.ledger, files.summary or {}
    if ledger is None:
        return []
    contract = ledger.contract
    trusted = ledger.conditions
    bears_on_gradients = any(condition.name not in (DISCARDED, UNCOUNTED) for condition in trusted)
    found = finding_of(ledger.events)
    distinct = {(event.type, event.noise_multiplier) for event, _ in steps_of(ledger.events)}
    delta, population = summary.get("delta"), contract.population
    rows = [
        (
            "The run's files say the same",
            BROKEN if contradictions else HELD,
            f"{contradictions} of them differ, named at the top; what follows is of the ledger as it is now"
            if contradictions
            else "ledger, summary, metrics and model were compared",
        ),
        (
            "Records were drawn as is charged",
            HELD if contract.sampling == OBSERVED else UNKNOWN,
            "hushgrad's own loader drew every batch"
            if contract.sampling == OBSERVED
            else "the caller drew the batches and declared how",
        ),
        (
            "Nobody can predict the noise",
            BROKEN if not contract.noise_is_secret else HELD if contract.noise_is_observed else UNKNOWN,
            f"key of noise: {contract.noise_source}"
            + ("" if contract.noise_is_observed else ", by another library: not vouched for"),
        ),
        (
            "Noise was drawn after its step was charged, once for each step",
            UNKNOWN if contradictions or not contract.noise_is_observed else HELD,
            "the files contradict each other"
            if contradictions
            else "another library ran some of the steps"
            if not contract.noise_is_observed
            else "enforced while the run went on; the ledger's chain of hashes is whole",
        ),
        (
            "Every step had the same noise multiplier",
            HELD if len(distinct) <= 1 else UNKNOWN,
            "read from the ledger; steps that differ would be charged as they were",
        ),
        (
            "One record's gradient depends on that record alone, and its norm is at most C",
            BROKEN if found is not None else UNKNOWN if bears_on_gradients else HELD,
            f"found after steps that were released: {found}"
            if found is not None
            else "enforced: per-example gradients are clipped before they are added; model and loss were examined on "
            "the first batch, and a parameter that was used out of sight stops the run"
            + ("; on trust is what stands below by name" if bears_on_gradients else ""),
        ),
        _delta_row(delta, population),
        _person_row(contract.unit),
        (
            "N, the batch size and all other settings are public",
            UNKNOWN,
            "declared; a setting that was derived from the records is outside ε",
        ),
        (
            "Real numbers",
            UNKNOWN,
            "the mathematics is for real numbers; noise is added in floating point, and an attack on its last bits is "
            "outside ε",
        ),
        ("The ledger has not been cut short", *_whole(files)),
        *((f"Taken on trust: {condition.name}", UNKNOWN, condition.sentence) for condition in trusted),
    ]
    return [{"assumption": said, "status": status, "evidence": evidence} for said, status, evidence in rows]


def _whole(files: RunFiles) -> tuple[str, str]:
    """Return whether the ledger still holds the record that the summary knows, and how that is known."""
    elsewhere = "who can change both files is found by a copy of the last record's hash kept elsewhere"
    anchor = anchor_in(files.summary)
    if anchor is None:
        return UNKNOWN, f"the summary keeps no hash of it; {elsewhere}"
    if files.known is None:
        return BROKEN, f"it lacks record {anchor.seq}, whose hash the summary keeps"
    return HELD, f"it holds record {anchor.seq}, whose hash the summary keeps; {elsewhere}"


def _person_row(unit: str) -> tuple[str, str, str]:
    if unit != ONE_RECORD:
        return "ε holds for a person with all of their records", HELD, f"drawn and clipped whole, as {unit}"
    return (
        "One person has one record",
        UNKNOWN,
        "only the owner of the data can know; where one person has several records, ε holds for each record and not "
        "for the person",
    )


def _delta_row(delta: float | None, population: int | None) -> tuple[str, str, str]:
    said = "δ is below 1/N"
    if delta is None or population is None:
        return said, UNKNOWN, "N was not declared"
    return said, HELD if delta < 1 / population else BROKEN, f"δ = {delta_text(delta)}, 1/N = {1 / population:.3g}"
