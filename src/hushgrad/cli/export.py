"""`hushgrad export`: the model of a run for other programs, with its encoding and a model card beside it."""

from __future__ import annotations

from pathlib import Path

import click

FORMATS = ("safetensors", "torch-export", "onnx")


@click.command(name="export")
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="safetensors", show_default=True, help="Of the model."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the files; not the run's own.")
def export(run: Path, form: str, out: Path) -> None:
    """Write the model that RUN has trained, encoding.json and MODEL_CARD.md to a folder.

    The model takes encoded rows and gives logits. The card states what it was measured on and the guarantee.

    Example: hushgrad export runs/adult --format onnx --out exported
    """
    from hushgrad.study.trained.loading import load

    click.echo(load(run).export(out, format=form))
    click.echo(out / "encoding.json")
    click.echo(out / "MODEL_CARD.md")
