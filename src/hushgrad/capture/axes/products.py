"""Axis rules of products, attention and recurrent layers: where the batch lies after a contraction."""

from __future__ import annotations

from torch import Tensor

from hushgrad.capture.axes.rules import Axis, OperatorCall


def _product(call: OperatorCall, left: Tensor, right: Tensor, out: Tensor) -> Axis:
    """`left @ right` with torch's broadcasting; a batch that is summed over, or meets itself, is lost."""
    a, b = call.axis_of(left), call.axis_of(right)
    if a is not None and a == left.ndim - 1:
        return None
    if b is not None and b == max(right.ndim - 2, 0):
        return None
    if a is not None and b is not None:
        distance = left.ndim - a
        return out.ndim - distance if distance > 2 and distance == right.ndim - b else None
    if a is not None:
        return a if right.ndim == 1 else out.ndim - (left.ndim - a)
    if b is None:
        return None
    distance = right.ndim - b
    return out.ndim - distance + (1 if left.ndim == 1 and distance > 1 else 0)


def _checked(call: OperatorCall, out: Tensor, axis: Axis) -> Axis:
    size = call.sources[0].shape[call.axes[0]]
    return axis if axis is not None and 0 <= axis < out.ndim and out.shape[axis] == size else None


def product(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`matmul`, `mm`, `bmm`, `mv`."""
    left, right = call.first, call.args[1] if len(call.args) > 1 else None
    if right is None:
        right = next((call.kwargs[name] for name in ("other", "mat2", "vec", "x2") if name in call.kwargs), None)
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return None
    return _checked(call, out, _product(call, left, right, out))


def reflected_product(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`Tensor.__rmatmul__`, whose first argument stands on the right."""
    return _checked(call, out, _product(call, call.args[1], call.args[0], out))


def added_product(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`addmm` and `baddbmm`: a product plus a term that broadcasts against it."""
    term = call.first
    left = call.argument(1, "mat1", call.kwargs.get("batch1"))
    right = call.argument(2, "mat2", call.kwargs.get("batch2"))
    if not all(isinstance(value, Tensor) for value in (term, left, right)):
        return None
    own = call.axis_of(term)
    if all(source is term for source in call.sources) and own is not None:
        return _checked(call, out, out.ndim - (term.ndim - own))
    axis = _product(call, left, right, out)
    if own is not None and (axis is None or term.ndim - own != out.ndim - axis):
        return None
    return _checked(call, out, axis)


def linear(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`F.linear` with data on the left only."""
    x = call.first
    axis = call.only(x)
    return None if axis is None or axis == x.ndim - 1 else _checked(call, out, axis)


def bilinear(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`F.bilinear` of one or two inputs."""
    axis, x = call.shared_axis(), call.first
    constants = (call.argument(2, "weight"), call.argument(3, "bias"))
    if axis is None or axis == x.ndim - 1 or any(call.axis_of(value) is not None for value in constants):
        return None
    return _checked(call, out, axis)


def einsum(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """The batch must have one letter in all data of an equation, and keep it."""
    equation = call.args[0]
    if not isinstance(equation, str):
        return None
    terms, arrow, right = equation.replace(" ", "").partition("->")
    if not arrow:
        right = _implied(terms)
    operands = call.args[1] if isinstance(call.args[1], (tuple, list)) else call.args[1:]
    labels = set()
    for term, operand in zip(terms.split(","), operands, strict=True):
        axis = call.axis_of(operand)
        if axis is not None:
            labels.add(_labels(term, operand.ndim)[axis])
    kept = _labels(right, out.ndim)
    if len(labels) != 1 or kept.count(label := labels.pop()) != 1:
        return None
    return _checked(call, out, kept.index(label))


def _implied(terms: str) -> str:
    """Return the output of an equation that states none: what is broadcast, then what occurs once, in order."""
    letters = [letter for letter in terms if letter.isalpha()]
    return "..." * ("..." in terms) + "".join(sorted(letter for letter in letters if letters.count(letter) == 1))


def _labels(term: str, ndim: int) -> list[str]:
    """Return a label for each dimension; those under an ellipsis are numbered from the right, as they broadcast."""
    before, dots, after = term.partition("...")
    hidden = ndim - len(before) - len(after) if dots else 0
    return [*before, *[f".{number}" for number in range(hidden, 0, -1)], *after]


def attention(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`scaled_dot_product_attention`: the batch lies before positions and channels in queries, keys, values, mask."""
    distance = call.from_right()
    return None if distance is None or distance < 3 else _checked(call, out, out.ndim - distance)


def multi_head(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`multi_head_attention_forward`: data `[T, B, d]`, padding mask `[B, T]`; weights come out as `[B, ...]`."""
    padding = call.kwargs.get("key_padding_mask")
    for value in (*call.args, *call.kwargs.values()):
        axis = call.axis_of(value)
        if axis is not None and (value.ndim, axis) != ((2, 0) if value is padding else (3, 1)):
            return None
    return _checked(call, out, 1 if output_index == 0 else 0)


def recurrent(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`lstm`, `gru` and plain RNNs on padded input; packed input has its lengths where a state would be."""
    # (input, hx, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first)
    if len(call.args) != 9 or not isinstance(call.args[8], bool) or call.first.ndim != 3:
        return None
    axis = 0 if call.args[8] else 1
    states = call.args[1] if isinstance(call.args[1], (tuple, list)) else (call.args[1],)
    for source, own in zip(call.sources, call.axes, strict=True):
        if source is call.first:
            if own != axis:
                return None
        elif not any(source is state for state in states) or own != 1:
            return None
    return _checked(call, out, axis if output_index == 0 else 1)


def embedding(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`F.embedding` and `F.one_hot`: a row for each id, behind the ids' own dimensions."""
    axis = call.only(call.first)
    return None if axis is None else _checked(call, out, axis)


def embedding_bag(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`F.embedding_bag` of ids `[B, n]`, one bag for each example."""
    ids = call.first
    if output_index != 0 or call.shared_axis() != 0 or call.axis_of(ids) is None or ids.ndim != 2:
        return None
    return None if call.axis_of(call.argument(1, "weight")) is not None else _checked(call, out, 0)


def layer_normalized(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`F.layer_norm` and `F.rms_norm` over dimensions behind the batch's."""
    x, shape = call.first, call.argument(1, "normalized_shape")
    axis = call.only(x)
    return None if axis is None or axis >= x.ndim - len(shape) else _checked(call, out, axis)
