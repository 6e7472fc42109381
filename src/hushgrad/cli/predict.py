"""`hushgrad predict`: the model of a run on new rows, encoded as the run's own were."""

from __future__ import annotations

from pathlib import Path

import click

from hushgrad.result_file import claim_file, write_file


@click.command(name="predict")
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--data", type=click.Path(path_type=Path), required=True, help="The new rows: a file, or a folder of pictures."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="A file for the predictions; default: they are printed."
)
def predict(run: Path, data: Path, output: Path | None) -> None:
    """Predict the class of new rows by the model that RUN has trained; as CSV, with the probability of every class.

    For a table --data is a CSV or TSV file whose first line names the columns (others are ignored); for sentences a
    file under a header line (their column is the last); for images an IDX, .npy or .npz file; for pictures a folder.

    Predictions for other people's rows follow from the model alone, and cost no privacy of its training records.

    Example: hushgrad predict runs/adult --data people.csv --output predictions.csv
    """
    from hushgrad.study.trained.loading import load
    from hushgrad.study.trained.predictions import predictions_csv

    trained = load(run)
    file = None if output is None else claim_file("--output", output)
    table = predictions_csv(trained.classes, trained.predict_proba(trained.read(data)))
    if file is None:
        click.echo(table, nl=False)
    else:
        write_file("--output", file, table)
