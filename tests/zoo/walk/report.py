"""What the walk found, as sections of docs/structures.md."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from walk.walk import RESULTS

Programs = Mapping[str, Mapping[str, Any]]

WORDS = {
    "exact": "exact",
    "cured": "exact with the line of code that the refusal says",
    "alone": "refused, though nothing mixes; exact with `max_physical_batch_size=1`, as the refusal says",
    "mixes": "refused, and the model itself mixes the examples of a batch",
    "refused": "refused, though nothing mixes, and what the refusal says is no line of the training",
    "wrong": "wrong",
    "untyped": "ends in an error of another kind",
    "unbuilt": "not run: the walk cannot make it small, or it needs a package that is not there",
    "unfed": "not run: the walk has no inputs for it",
}
RUN = ("exact", "cured", "alone", "mixes", "refused", "wrong", "untyped")
LIMIT = 0.05
"""The largest share of programs that may be refused though nothing mixes."""

HEAD = """
## Every architecture of `transformers`, every method of `peft`

Walked by the packages' own registries (transformers {transformers}, peft {peft}): one class for each model type, made
small by what its sizes are called, and each method of peft on a BERT and on a Llama. Each trains a step through
`PrivacyEngine`, without noise and with dropout switched off, on three examples, and the clipped sum is compared with
that of one example at a time through an ordinary copy: exact is a difference of at most 1e-5 of the whole (in float64
where float32 itself rounds to more). BatchNorm was replaced by `make_private_ready`. Whether a model mixes examples was
seen by running it without hushgrad, one example alone and in a batch; that it does not show is no proof that it never
does. `python tests/zoo/walk/walk.py` walks anew (`make test-latest` does, with the newest packages), then
`python docs/structures.py` writes this page.
"""


def stored() -> Mapping[str, Any]:
    """Return what the last walk found."""
    found: Mapping[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def is_adapter(name: str) -> bool:
    return name.startswith("peft ")


def counts(programs: Programs) -> dict[str, Counter[str]]:
    """Return how many architectures and adapters came to each verdict."""
    found: dict[str, Counter[str]] = {"architectures": Counter(), "adapters": Counter()}
    for name, one in programs.items():
        found["adapters" if is_adapter(name) else "architectures"][one["verdict"]] += 1
    return found


def share_refused(verdicts: Counter[str]) -> float:
    """Return the share of those that ran that were refused though nothing mixes, and are not exact by a line of code.

    Items of one example are no way to train large models, and count as refused.
    """
    return (verdicts["refused"] + verdicts["alone"]) / max(sum(verdicts[word] for word in RUN), 1)


def sections(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of the page."""
    programs: Programs = result["programs"]
    number = counts(programs)
    lines = [HEAD.format(**result["versions"]), "| | architectures | methods of peft |", "| --- | --- | --- |"]
    for word, text in WORDS.items():
        lines.append(f"| {text} | {number['architectures'][word]} | {number['adapters'][word]} |")
    for word in ("cured", "alone", "refused", "mixes", "wrong", "untyped"):
        groups = _grouped(programs, word)
        if groups:
            lines += [f"\n*{WORDS[word][0].upper()}{WORDS[word][1:]}*\n", "| which | message |", "| --- | --- |"]
            lines += [f"| {', '.join(names)} | {_cell(message)} |" for message, names in groups]
    for title, verdicts in (("Exact", ("exact",)), ("Not run", ("unbuilt", "unfed"))):
        names = [_shown(name) for name, one in sorted(programs.items()) if one["verdict"] in verdicts]
        lines.append(f"\n*{title}*: {', '.join(names)}.")
    return lines


def _grouped(programs: Programs, word: str) -> list[tuple[str, list[str]]]:
    """Return the messages of a verdict, each with those that gave it, but for names and shapes of the model's own."""
    found: dict[str, list[str]] = {}
    for name, one in sorted(programs.items()):
        if one["verdict"] == word:
            found.setdefault(_general(one["detail"]), []).append(_shown(name))
    return sorted(found.items(), key=lambda entry: (-len(entry[1]), entry[1]))


def _general(message: str) -> str:
    """Return a message without what is the model's own in it."""
    message = re.sub(r" in \w+\.forward \([^)]*\)", "", message)
    message = re.sub(r"(\bof )?shape \[[\d, ]*\]", "of one shape", message)
    message = re.sub(r"base_model\.[\w.]+", "a parameter", message)
    return re.sub(r"the forward of \w+ itself", "the forward of the model itself", message)


def _shown(name: str) -> str:
    return name.removeprefix("peft ").replace("_", "\\_")


def _cell(message: str) -> str:
    for character in "|<*_":
        message = message.replace(character, "&lt;" if character == "<" else f"\\{character}")
    return message
