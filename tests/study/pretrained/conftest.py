"""Base models of these tests are made from small configurations; nothing is downloaded."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from small_bases import KINDS, save_base


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Folders of base models by their kind."""
    return {kind: save_base(tmp_path_factory.mktemp("base") / kind, kind) for kind in KINDS}


@pytest.fixture(scope="session")
def sentences(tmp_path_factory):
    """A data folder like SST-2's."""
    folder = tmp_path_factory.mktemp("sentences")
    for name, count in (("train", 80), ("dev", 20)):
        lines = [f"{row % 2}\t{'a very ' * (row % 4)}{'good' if row % 2 else 'bad'} film" for row in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join(["label\tsentence", *lines]) + "\n")
    return folder
