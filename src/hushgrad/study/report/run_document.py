"""The report of a run: everything that "How to DP-fy ML" (arXiv:2303.00654, §5.3.3) and NIST SP 800-226 ask for."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

from hushgrad.accounting.guarantee import delta_text
from hushgrad.accounting.ledger.contract import noun_of
from hushgrad.accounting.meaning import percent_up
from hushgrad.study.report.comparison import contradictions
from hushgrad.study.report.document import (
    NOT_PRIVATE,
    PRIVATE,
    Document,
    Image,
    Section,
    TextTable,
    percent,
    plain,
    up,
)
from hushgrad.study.report.officer import monitors, open_decisions, provenance, sign_off
from hushgrad.study.score_words import auc_text
from hushgrad.study.sweep.pictures import curves_picture

Facts = Mapping[str, Any]

READABLE = {
    "augmentations": "random views of each record (their mean loss makes one gradient)",
    "average_decay": "decay of the average of parameters that was tested and released",
    "clipping": "clip rule that was asked for",
    "expected_batch_size": "expected batch size B",
    "max_grad_norm": "clipping norm C",
    "noise": "noise that was asked for",
    "noise_multiplier": "noise multiplier σ",
    "sampling_name": "sampling that was asked for",
    "max_batch_size": "most records of a batch",
    "sampling_rate": "sampling rate q",
    "delta": "δ",
    "target_epsilon": "target ε",
    "training_examples": "training records",
    "training_people": "people with training records",
    "schema_signed_by": "who declares what is said of the columns",
}


def run_document(facts: Facts) -> Document:
    """Return the document of a run's facts."""
    privacy, result = facts["privacy"], facts["result"]
    said = f"at δ = {delta_text(privacy['delta'])}" if privacy["delta"] else "no guarantee"
    if contradictions(facts):
        said = f"{said}: the largest that any file says"
    figures = [
        (f"ε = {up(privacy['epsilon'])}", said),
        (percent(result["test_accuracy"]), "test accuracy"),
        *_beside_accuracy(result["scores"]),
    ]
    if "mu" in privacy:
        power = privacy["attack"]["true_positive_rate_at"][1]
        figures += [
            (percent_up(power["true_positive_rate"]), "of members found at most, at 1% false alarms"),
        ]
        if privacy["mu"] is not None:
            figures.append((f"μ = {up(privacy['mu'])}", "Gaussian privacy"))
    sections = (
        _statement(facts),
        provenance(facts),
        open_decisions(facts),
        _result(facts),
        _subgroups(facts),
        _setting(facts),
        _accesses(facts),
        _mechanism(facts),
        _levels(facts),
        _attack(facts),
        _audit(facts),
        _assumptions(facts),
        monitors(facts),
        _settings(facts),
        _recompute(facts),
        sign_off(facts),
    )
    return Document(
        title=facts["name"],
        badge=PRIVATE if privacy["private"] else NOT_PRIVATE,
        contradictions=contradictions(facts),
        notices=tuple(facts["notices"]),
        lead=tuple(privacy.get("in_plain_words", ())),
        figures=tuple(figures),
        sections=tuple(section for section in sections if section is not None),
    )


def _beside_accuracy(scores: Facts | None) -> list[tuple[str, str]]:
    """Return what the accuracy is to be measured by."""
    if scores is None:
        return []
    share = percent(scores["largest_class_share"])
    return [
        (share, f"the largest class's share, {scores['largest_class']!r}: right by always answering it"),
        (auc_text(scores["auc"]), "AUC on test records (0.5: chance)"),
    ]


def _statement(facts: Facts) -> Section:
    privacy = facts["privacy"]
    if privacy["statement"] is None:
        return Section("Statement", ("NOT PRIVATE: ordinary training, without clipping and without noise.",))
    return Section("Statement", tuple(text for text in (privacy["statement"], privacy.get("beyond_ledger")) if text))


def _result(facts: Facts) -> Section:
    result, steps = facts["result"], facts["steps"]
    error = result["standard_error"]
    accuracy = percent(result["test_accuracy"]) + (f" (standard error {100 * error:.2g} points)" if error else "")
    told = [
        ("test accuracy", accuracy),
        *_scored(result["scores"]),
        ("test records", plain(result["test_examples"])),
        ("steps planned", plain(steps["planned"])),
        ("steps executed", plain(steps["executed"])),
        ("how it ended", facts["status"]),
        ("parameters", plain(facts["parameters"])),
    ]
    return Section("Result", facts=tuple(told), table=_by_class(result["scores"]), images=_curves(facts))


def _scored(scores: Facts | None) -> list[tuple[str, str]]:
    if scores is None:
        return []
    return [
        (f"always answering {scores['largest_class']!r}, the largest class", percent(scores["largest_class_share"])),
        ("balanced accuracy (mean recall of the classes)", percent(scores["balanced_accuracy"])),
        ("area under the ROC curve (AUC)", auc_text(scores["auc"])),
    ]


def _by_class(scores: Facts | None) -> TextTable | None:
    if scores is None:
        return None
    rows = tuple(
        (row["name"], str(row["count"]), str(row["right"]), str(row["answered"]), percent(row["recall"]))
        for row in scores["by_class"]
    )
    return TextTable(("class", "test records", "of them right", "answered", "recall"), rows)


def _curves(facts: Facts) -> tuple[Image, ...]:
    if not facts["curves"]:
        return ()
    delta = facts["privacy"]["delta"] or 1e-5
    picture = curves_picture([(facts["name"], facts["curves"])], title="", delta=delta)
    return (Image(picture.svg, "Test accuracy and epsilon over the steps of training"),)


def _subgroups(facts: Facts) -> Section | None:
    found = facts["subgroups"]
    if found is None:
        return None
    rows = tuple((group["name"], str(group["count"]), percent(group["accuracy"])) for group in found["groups"])
    return Section(
        f"Accuracy by {found['column']}",
        ("Noise and clipping cost small groups more than large ones. Counts are of test records, without noise.",),
        facts=(("largest gap", percent(found["gap"])),),
        table=TextTable((found["column"], "test records", "accuracy"), rows),
    )


def _setting(facts: Facts) -> Section:
    privacy = facts["privacy"]
    if privacy["private"]:
        released = "what is released is protected"
    elif contradictions(facts):
        released = "whether what is released is protected is not known while the files contradict each other"
    else:
        released = "nothing protects what is released"
    told = [("setting", f"central: whoever trains sees the records; {released}")]
    if "unit" in privacy:
        told += [
            ("what is released", "the parameters after every step, the last ones included"),
            ("unit of privacy", privacy["unit"]),
            ("neighbouring relation", privacy["adjacency"]),
            (f"training {noun_of(privacy['unit'])}s N", f"{plain(privacy['population'])}, declared public"),
        ]
    return Section("Setting", facts=tuple(told))


def _accesses(facts: Facts) -> Section:
    outside = facts["outside_the_guarantee"]
    covered: tuple[tuple[str, str], ...] = ()
    if facts["privacy"]["private"]:
        covered = (
            ("gradients of training records in every step", "covered"),
            ("the parameters, and anything computed from them alone", "covered"),
        )
        if facts["settings"].get("vocabulary_noise_multiplier") is not None:
            covered = (*covered, ("words of training records, counted with noise before training", "covered"))
        if facts["settings"].get("class_counts_noise_multiplier") is not None:
            covered = (*covered, ("classes of training records, counted with noise before training", "covered"))
    tuned = (
        ("tuning: settings chosen after other runs on these records", "not covered"),
        ("how long the run took, which shows how many records were drawn", "not covered"),
        ("early stopping or choosing a checkpoint by results on these records", "not covered"),
        ("preprocessing that was fitted on the records", "not covered"),
    )
    rows = (*covered, *tuned, *((said, "not covered") for said in outside))
    return Section("What touches the data", table=TextTable(("access", "by ε"), rows))


def _grid(rounding: Facts | None) -> list[tuple[str, str]]:
    if rounding is None:
        return []
    return [("grid of sums and noise", f"{plain(rounding['grid'])}, for sums off by up to {plain(rounding['error'])}")]


def _mechanism(facts: Facts) -> Section | None:
    privacy = facts["privacy"]
    if "unit" not in privacy:  # nothing was charged that the files show
        return None
    noise, clip, batch = privacy["noise_multipliers"], privacy["max_grad_norm"], privacy["expected_batch_size"]
    told = [
        ("mechanism", "DP-SGD: per-record gradients clipped to norm C, summed, Gaussian noise on the sum"),
        ("noise multiplier σ", plain(noise)),
        *_grid(privacy.get("rounding")),
        *([("correlation of noise between steps", privacy["strategy"])] if "strategy" in privacy else []),
        ("clip rule", privacy.get("clip_rule") or "not declared"),
        ("clipping norm C", plain(clip)),
        ("division of the noised sum", f"by B = {plain(batch)}" if privacy["loss_reduction"] == "mean" else "none"),
        ("sampling", f"{privacy['sampling']}; {privacy['sampling_was']}"),
        ("noise source", privacy["noise_source"]),
        ("accountant", privacy["accountant"]),
        ("numerical error", privacy["numerics"] or "none: nothing to compute"),
    ]
    views = facts["settings"]["augmentations"]
    if views:
        told.insert(1, ("views of a record", f"{plain(views)} random ones; their mean loss makes one gradient"))
    if len(noise) == 1 and clip is not None:
        told.insert(len(told) - 5, ("standard deviation of the noise on the sum, σ·C", plain(noise[0] * clip)))
    return Section("Mechanism and accountant", facts=tuple(told))


def _levels(facts: Facts) -> Section | None:
    privacy = facts["privacy"]
    if "epsilon_at" not in privacy:
        return None
    delta = delta_text(privacy["delta"])
    others = [(f"ε by {name} at δ = {delta}", up(value)) for name, value in privacy["other_accountants"].items()]
    rows = tuple((delta_text(row["delta"]), up(row["epsilon"])) for row in privacy["epsilon_at"])
    told = (
        ("μ (Gaussian privacy, for δ ≥ 1e-10)", up(privacy["mu"])),
        ("ρ (zero-concentrated: of the steps as if none was sampled)", up(privacy["rho"])),
    )
    return Section(
        "ε at other δ, other accountants, other definitions",
        ("Every figure is rounded up. An accountant that gives more is not wrong, only less sharp.",),
        facts=(*told, *others),
        table=TextTable(("δ", "ε"), rows),
    )


def _attack(facts: Facts) -> Section | None:
    privacy = facts["privacy"]
    if "attack" not in privacy:
        return None
    attack = privacy["attack"]
    rows = tuple(
        (f"{row['false_positive_rate']:.1%}", percent_up(row["true_positive_rate"]))
        for row in attack["true_positive_rate_at"]
    )
    return Section(
        "What an attacker can do at most",
        (
            "The attacker knows every other record, sees every step, and guesses whether one record took part. These "
            "are upper bounds for every attack; most reach far less.",
        ),
        facts=(("advantage (true minus false positives)", percent_up(attack["advantage"])),),
        table=TextTable(("false alarms", "members found at most"), rows),
    )


def _audit(facts: Facts) -> Section | None:
    """Lower bounds, rounded down, beside the claims, rounded up."""
    audit = facts["audit"]
    if audit is None:
        return None
    steps = sum(release["count"] for release in audit["releases"])
    rows = tuple(
        (
            bound["method"],
            f"{math.floor(1e4 * float(bound['epsilon_at_least'])) / 1e4:g}",
            up(bound["epsilon_claimed"]),
            "REJECTED" if bound["rejected"] else "not contradicted",
            f"{bound['confidence']:g}",
            str(bound["observations"]),
        )
        for bound in audit["bounds"]
    )
    return Section(
        "What an audit reached",
        (
            f"A session with this noise was attacked with {audit['canaries']} canaries over {steps} steps. Each bound "
            f"is a lower one on the ε of what it looked at, at δ = {audit['delta']:g}: one step without amplification, "
            f"or the audited steps together. A bound above the claim would prove the claim false; one below proves "
            f"nothing.",
        ),
        table=TextTable(("audit", "ε at least", "ε claimed", "the claim is", "confidence", "observations"), rows),
    )


def _assumptions(facts: Facts) -> Section | None:
    if not facts["assumptions"]:
        return None
    rows = tuple((row["assumption"], row["status"], row["evidence"]) for row in facts["assumptions"])
    return Section("What it rests on", table=TextTable(("assumption", "status", "evidence"), rows))


def _settings(facts: Facts) -> Section:
    told = [
        (READABLE.get(key, key.replace("_", " ")), plain(value))
        for key, value in facts["settings"].items()
        if value is not None
    ]
    versions = [(name, plain(value)) for name, value in facts["versions"].items()]
    return Section("Settings and versions", facts=(*told, *versions))


def _recompute(facts: Facts) -> Section:
    rows = tuple((name, digest) for name, digest in facts["files"].items())
    end = facts["privacy"].get("ledger_end")
    told = [(row["what"], "agree" if row["held"] else "DO NOT AGREE") for row in facts["agreement"]]
    if end is not None:
        told.insert(0, ("hash of the ledger's last record", end["hash"]))
    commands = [("hushgrad report --check FOLDER", "computes every number on this page anew from the run's files.")]
    if end is not None:
        ask = f"hushgrad epsilon --ledger {shlex.quote(facts['ledger_file'])} --delta 1e-5"
        commands.append((ask, "computes ε from the ledger alone."))
    return Section(
        "How to recompute it", commands=tuple(commands), facts=tuple(told), table=TextTable(("file", "SHA-256"), rows)
    )
