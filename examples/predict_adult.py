"""A table of people, trained on privately, used on new rows and exported with a model card.

Run `python examples/predict_adult.py`. The rows are made up, with columns as in Adult; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

import hushgrad

WORK = ("Private", "State-gov", "Self-emp", "Never-worked")
SCHOOL = ("HS-grad", "Bachelors", "Masters", "Doctorate")


def people(count: int, seed: int) -> list[dict[str, object]]:
    """Return made-up rows."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        age, hours, school = int(draw.integers(17, 90)), int(draw.integers(1, 80)), int(draw.integers(len(SCHOOL)))
        earns = age * 0.5 + hours + 15 * school + draw.normal(0, 10) > 80
        row = {"age": age, "workclass": WORK[int(draw.integers(len(WORK)))], "education": SCHOOL[school]}
        rows.append({**row, "hours-per-week": hours, "income": ">50K" if earns else "<=50K"})
    return rows


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """Write rows as CSV."""
    lines = [",".join(rows[0]), *(",".join(str(cell) for cell in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Train, predict, export."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/predict"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    write(out / "people.csv", people(2_000, seed=1))
    command = [sys.executable, "-m", "hushgrad.cli.main", "train", "--task", "csv", "--data", str(out / "people.csv")]
    declared = [
        "--target",
        "income",
        "--classes",
        "<=50K,>50K",
        "--bounds",
        "age:0:100",
        "--bounds",
        "hours-per-week:0:100",
    ]
    aims = ["--epsilon", "3", "--delta", "1e-4", "--batch-size", "200", "--epochs", "4", "--spare-steps", "8"]
    subprocess.run([*command, *declared, *aims, "--out", str(out / "run")], check=True, stdout=subprocess.DEVNULL)

    trained = hushgrad.load(out / "run")
    new = people(5, seed=2)
    new[0]["workclass"] = "Astronaut"  # a text that no training record had: encoded by its hash, like any other
    for row, name, chances in zip(new, trained.predict(new), trained.predict_proba(new), strict=True):
        print(f"{row['age']} years, {row['workclass']}: {name} ({chances.max():.0%})")
    print(trained.export(out / "exported", format="safetensors"))
    print(trained.guarantee)


if __name__ == "__main__":
    main()
