"""Packages that only some features need: the extras of this distribution, and one error for what is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from hushgrad.errors import MissingExtraError

EXTRAS = {
    "cross-check": ("dp_accounting",),
    "report": ("dp_accounting", "jinja2", "markupsafe", "matplotlib"),
    "checkpoint": ("safetensors",),
    "study": ("dp_accounting", "jinja2", "markupsafe", "matplotlib", "sklearn", "safetensors", "rich"),
    "sweep": ("optuna",),
    "hf": ("transformers", "accelerate", "safetensors"),
    "text": ("transformers", "tokenizers", "peft", "safetensors", "accelerate"),
    "lightning": ("lightning", "safetensors"),
    "export": ("onnx", "onnxscript"),
    "tensorboard": ("tensorboard",),
    "tables": ("pyarrow",),
}
"""The modules that each extra brings, by the name that `pip install 'hushgrad[NAME]'` takes."""


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Import inside of this what an extra brings.

    Args:
        extra: a name of `EXTRAS`.
        what: the feature that needs it, as the subject of a sentence.

    Raises:
        MissingExtraError: a module that the extra brings is not installed. Every other error passes as it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if isinstance(error, MissingExtraError) or module not in EXTRAS[extra]:
            raise
        raise MissingExtraError(
            f"{what} needs {module}, which is not installed", cure=f"Run: pip install 'hushgrad[{extra}]'"
        ) from error


def require(*modules: str, extra: str, what: str) -> None:
    """Raise MissingExtraError unless the modules can be imported: before long work, not at its end."""
    with needs_extra(extra, what):
        for module in modules:
            import_module(module)
