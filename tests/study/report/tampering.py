"""What somebody could do to the files of a run."""

import json
from dataclasses import replace

import safetensors.torch

from hushgrad.accounting.ledger.records import encode
from hushgrad.study.configuration import Privacy, suggested_run


def private(**changes):
    noise = {"noise_multiplier": changes.pop("noise_multiplier", 3.0), "max_grad_norm": 1.0}
    return replace(suggested_run("digits", privacy=Privacy(**noise)), **{"batch_size": 400, "epochs": 2, **changes})


def edit(folder, **changes):
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary |= {key: change(summary[key]) if callable(change) else change for key, change in changes.items()}
    path.write_text(json.dumps({key: value for key, value in summary.items() if value is not ...}))


def as_written_by_an_older_version(folder):
    edit(folder, ledger=..., model_digest=...)
    return folder


def edit_metrics(folder, line, **changes):
    path = folder / "metrics.jsonl"
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    rows[line] |= {key: change(rows[line][key]) for key, change in changes.items()}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def edit_model(folder, **words):
    path = folder / "model.safetensors"
    with safetensors.safe_open(path, "pt") as opened:
        words = opened.metadata() | words
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, metadata=words)


def edit_values(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(folder, *, charges=0):
    """Cut the ledger's last record, or all from the last `charges` charges on."""
    path = folder / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    last = len(lines) - 1
    while charges:
        charges -= '"kind":"charge"' in lines[last]
        last -= bool(charges)
    path.write_text("".join(lines[:last]))


def forge(folder, change):
    """Write the ledger anew with other contents and right hashes."""
    path = folder / "ledger.jsonl"
    previous, lines = "0" * 64, []
    for text in path.read_text().splitlines():
        record = change(json.loads(text))
        kind, seq = record.pop("kind"), record.pop("seq")
        body = {key: value for key, value in record.items() if key not in ("previous", "hash")}
        line, previous = encode(kind, seq, previous, body)
        lines.append(line)
    path.write_bytes(b"".join(lines))


def other_noise(record):
    return record | {"event": record["event"] | {"noise_multiplier": 9.0}} if record["kind"] == "charge" else record


def other_contract(**changes):
    def change(record):
        return record | {"contract": record["contract"] | changes} if record["kind"] == "header" else record

    return change


def epsilon_of(folder):
    return json.loads((folder / "summary.json").read_text())["epsilon"]
