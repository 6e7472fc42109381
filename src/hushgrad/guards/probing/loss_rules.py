"""The rules by which a loss is read, by the names of the operators in its graph."""

from __future__ import annotations

from collections.abc import Callable

from hushgrad.guards.probing.loss_arithmetic import (
    LINEAR,
    NONLINEAR,
    ROW_CRITERIA,
    SCALING,
    along,
    criterion,
    elementwise,
    negative_log_likelihood,
    over_classes,
)
from hushgrad.guards.probing.loss_shapes import connectionist, distances, expand, picked, product, stacked, turned, view
from hushgrad.guards.probing.loss_values import LossOperator, Reading, Value

ELEMENTWISE = LINEAR | SCALING | NONLINEAR | {"Lerp", "NanToNum", "NativeDropout", "Sign", "Where"}
CRITERIA = {
    "BinaryCrossEntropy", "BinaryCrossEntropyWithLogits", "HuberLoss", "MseLoss", "SmoothL1Loss", "SoftMarginLoss",
}  # fmt: skip
ALONG = {"Amax", "Amin", "LinalgVectorNorm", "Logsumexp", "Max", "Mean", "Median", "Min", "Norm", "Prod", "Std", "Sum",
         "Var"}  # fmt: skip
VIEWS = {"ReshapeAlias", "Squeeze", "Unsqueeze", "UnsafeView", "View"}
PICKING = {"Index", "MaskedSelect", "Select", "Slice"}


Rule = Callable[[Reading, LossOperator], Value]

RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(CRITERIA | ROW_CRITERIA, criterion),
    **dict.fromkeys(("NllLoss", "NllLoss2D"), negative_log_likelihood),
    **dict.fromkeys(ALONG, along),
    **dict.fromkeys(("Cumsum", "Gather", "LogSoftmax", "Softmax"), over_classes),
    **dict.fromkeys(VIEWS, view),
    **dict.fromkeys(("Permute", "T", "Transpose"), turned),
    **dict.fromkeys(PICKING, picked),
    **dict.fromkeys(("Addmm", "Baddbmm", "Bmm", "Mm"), product),
    **dict.fromkeys(("Cat", "Stack"), stacked),
    "Cdist": distances,
    "CtcLoss": connectionist,
    "Expand": expand,
}
