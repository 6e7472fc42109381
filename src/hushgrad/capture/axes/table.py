"""Which rule follows the batch through which operator. An operator that is not here loses the batch.

A name that torch lacks, and an operator that is named twice, are errors at import (`torch_names.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from hushgrad.capture.axes import batched as batched
from hushgrad.capture.axes import memory as memory
from hushgrad.capture.axes import products as products
from hushgrad.capture.axes import scattered as scattered
from hushgrad.capture.axes.measured import measured
from hushgrad.capture.axes.rules import (
    AxisRule,
    along,
    batch_first,
    before_last,
    copied,
    elementwise,
    exchanged,
    flipped,
    interleaved,
    like_first,
    padded,
    quantiles,
    reduced,
    repeated,
    reshaped,
    unsqueezed,
    viewed,
)
from hushgrad.capture.torch_names import Function, Space, in_place_forms, joined, named

SPACES: tuple[Space, ...] = (torch, Tensor, F, torch.special, torch.linalg, torch.fft)

ARITHMETIC = """
    floor_divide float_power neg negative positive abs absolute sign sgn signbit square sqrt rsqrt reciprocal exp exp2
    expm1 log log2 log10 log1p sin cos tan asin acos atan arcsin arccos arctan sinh cosh tanh asinh acosh atanh arcsinh
    arccosh arctanh sinc erf erfc erfinv lgamma digamma polygamma i0 i0e i1 i1e ndtr ndtri log_ndtr entr xlog1py arctan2
    logaddexp2 floor ceil round trunc fix frac clamp_min clamp_max nan_to_num ldexp heaviside deg2rad rad2deg logit
    expit sigmoid angle conj conj_physical resolve_conj resolve_neg real imag masked_fill __floordiv__
    __rfloordiv__ __mod__ __rmod__ __neg__ __pos__ __abs__ __invert__ __and__ __rand__ __or__ __ror__ __xor__ __rxor__
    __ifloordiv__ __imod__ __iand__ __ior__ __ixor__ not_equal less less_equal greater greater_equal isnan isinf
    isfinite isposinf isneginf isreal isclose logical_and logical_or logical_not logical_xor bitwise_and bitwise_or
    bitwise_xor bitwise_not bitwise_left_shift bitwise_right_shift __lshift__ __rshift__ __rlshift__ __rrshift__ gcd lcm
    igamma igammac gammainc gammaincc gammaln psi mvlgamma multigammaln nextafter frexp erfcx zeta airy_ai bessel_j0
    bessel_j1 bessel_y0 bessel_y1 modified_bessel_i0 modified_bessel_i1 modified_bessel_k0 modified_bessel_k1
    scaled_modified_bessel_k0 scaled_modified_bessel_k1 spherical_bessel_j0 chebyshev_polynomial_t
    chebyshev_polynomial_u hermite_polynomial_h hermite_polynomial_he laguerre_polynomial_l legendre_polynomial_p
    complex polar
"""
POINTWISE_LOSSES = """
    mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div
    poisson_nll_loss gaussian_nll_loss soft_margin_loss hinge_embedding_loss margin_ranking_loss
"""
"""Elementwise with `reduction="none"`; else they give a scalar, in which no example is told apart."""
ACTIVATIONS = """
    relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign softshrink hardshrink hardtanh hardsigmoid
    hardswish tanhshrink logsigmoid threshold rrelu dropout alpha_dropout feature_alpha_dropout feature_dropout
    dropout1d dropout2d dropout3d native_dropout
"""
SAME_VALUES = """
    clone contiguous detach detach_ requires_grad_ to type type_as float double half bfloat16 int long short char byte
    bool cpu cuda cfloat cdouble chalf view_as_real view_as_complex detach_copy alias_copy
    zeros_like ones_like full_like empty_like rand_like randn_like randint_like data
"""
FILLS = "fill_ zero_ normal_ uniform_ bernoulli_ exponential_"
VIEWS = """
    transpose swapaxes swapdims t permute movedim moveaxis unsqueeze squeeze select unbind narrow split chunk
    unsafe_split unsafe_chunk split_with_sizes unsafe_split_with_sizes tensor_split hsplit vsplit dsplit
    atleast_1d atleast_2d atleast_3d diagonal expand expand_as broadcast_to adjoint
    T mT H mH
"""
MATRICES = """
    inv inv_ex inverse pinv pinverse det slogdet logdet cholesky cholesky_ex cholesky_inverse qr svd svdvals eig eigh
    eigvals eigvalsh lu lu_factor lu_factor_ex ldl_factor ldl_factor_ex matrix_exp matrix_power matrix_rank cond
"""
MEASURED = """
    tensordot cdist cross inner outer ger kron vecdot dot vdot multi_dot chain_matmul addbmm addmv addr solve solve_ex
    solve_triangular triangular_solve cholesky_solve lstsq tensorsolve tensorinv householder_product vander trapezoid
    trapz cumulative_trapezoid hstack vstack dstack column_stack row_stack diag_embed diag diagflat trace fliplr flipud
    rot90 select_scatter slice_scatter diagonal_scatter meshgrid
"""
"""Reviewed: which values meet in them depends on shapes and constants alone (`measured.py`)."""
RESHAPES = "reshape view reshape_as view_as flatten unflatten ravel"
CREATED = "new_zeros new_ones new_empty zeros ones empty rand randn"

REDUCTIONS = """
    sum mean amax amin aminmax max min prod std var std_mean var_mean nansum nanmean logsumexp argmax argmin all any
    median nanmedian mode count_nonzero
"""

Rows = tuple[tuple[str, AxisRule], ...]
"""Names of operators, with their rule."""

ALONG: Rows = (
    ("softmax log_softmax softmin cumsum cumprod logcumsumexp cummax cummin", along(1)),
    ("index_fill index_add index_copy", along(1)),
    ("scatter scatter_add scatter_reduce", along(1)),
    ("sort argsort", along(1, default=-1)),
    ("topk kthvalue diff", along(2, default=-1)),
    ("roll", along(2, "dims")),
    ("fft ifft rfft irfft hfft ihfft", along(2, default=-1)),
    ("fft2 ifft2 rfft2 irfft2 hfft2 ihfft2", along(2, default=(-2, -1))),
    ("fftn ifftn rfftn irfftn hfftn ihfftn", along(2)),
    ("fftshift ifftshift", along(1)),
    ("glu", along(1, default=-1)),
    ("normalize", along(2, default=1)),
    ("gumbel_softmax", along(4, default=-1)),
    ("repeat_interleave", interleaved),
    ("flip", flipped),
)

OTHERS: Rows = (
    ("norm vector_norm", reduced(2)),
    ("quantile nanquantile", quantiles),
    ("matrix_norm", reduced(2, default=(-2, -1))),
    ("cosine_similarity", batched.compared(2, "dim", 1)),
    ("fake_quantize_per_tensor_affine fake_quantize_per_channel_affine bucketize", batched.only_first),
    ("isin", batched.is_member),
    ("searchsorted", batched.searched),
    ("repeat tile", repeated),
    ("pad", padded),
    ("bmm mv", products.product),
    ("__rmatmul__", products.reflected_product),
    ("baddbmm", products.added_product),
    ("bilinear", products.bilinear),
    ("einsum", products.einsum),
    ("scaled_dot_product_attention", products.attention),
    ("tril triu", before_last(2)),
    ("local_response_norm", batch_first()),
    ("interpolate upsample channel_shuffle native_channel_shuffle", batch_first()),
    ("fold", batch_first(3)),
    ("affine_grid", batched.one_each("theta")),
    ("grid_sample", batched.one_each("input", "grid")),
    ("nll_loss cross_entropy multi_margin_loss", batched.one_each("input", "target")),
    ("multilabel_margin_loss multilabel_soft_margin_loss", batched.one_each("input", "target")),
    ("cosine_embedding_loss", batched.one_each("input1", "input2", "target")),
    ("triplet_margin_loss", batched.one_each("anchor", "positive", "negative")),
    ("pixel_shuffle pixel_unshuffle", before_last(3)),
    ("stft", batch_first(2)),
    ("istft", batch_first(3)),
)


def _spatial() -> Rows:
    rows: list[tuple[str, AxisRule]] = []
    for space in (1, 2, 3):
        largest = f"max_pool{space}d adaptive_max_pool{space}d"
        with_indices = f"max_pool{space}d_with_indices adaptive_max_pool{space}d_with_indices"
        means = f"avg_pool{space}d adaptive_avg_pool{space}d lp_pool{space}d"
        rows.append((f"{largest} {with_indices} {means} max_unpool{space}d", before_last(space)))
    return tuple(rows)


def _table(rule: AxisRule, names: str, *, in_place: bool = False) -> dict[Function, AxisRule]:
    """Return one rule for some operators, all of which torch has, and for their forms in place if there are any."""
    forms = in_place_forms(names, SPACES) if in_place else []
    return dict.fromkeys([*named(names, SPACES), *forms], rule)


INITIALIZERS: set[Function] = {init.uniform_, init.normal_, init.constant_, init.kaiming_uniform_}
"""Those of `nn.init` that show themselves to a mode; they write into a tensor without gradients."""

ONE_BY_ONE: dict[Function, AxisRule] = {
    Tensor.unsqueeze_: unsqueezed,
    Tensor.transpose_: exchanged("dim0", "dim1"),
    Tensor.swapaxes_: exchanged("axis0", "axis1"),
    Tensor.swapdims_: exchanged("dim0", "dim1"),
    Tensor.new_tensor: copied,
    Tensor.unfold: along(1, "dimension"),
    F.unfold: batch_first(4),
    F.one_hot: products.embedding,
    torch.as_strided: memory.as_strided,
    Tensor.as_strided: memory.as_strided,
    torch.masked_scatter: scattered.masked_scattered,
    Tensor.masked_scatter: scattered.masked_scattered,
    Tensor.masked_scatter_: scattered.masked_scattered,
    F.pairwise_distance: batched.pairwise,
    torch.pairwise_distance: batched.pairwise,
}
AXIS_RULES: dict[Function, AxisRule] = joined(
    _table(elementwise, ARITHMETIC, in_place=True),
    _table(elementwise, ACTIVATIONS, in_place=True),
    _table(elementwise, "bernoulli broadcast_tensors normal poisson binomial"),
    _table(like_first, SAME_VALUES),
    _table(like_first, FILLS),
    _table(viewed, VIEWS),
    _table(reshaped, RESHAPES),
    _table(reduced(1), REDUCTIONS),
    _table(elementwise, POINTWISE_LOSSES),
    _table(batched.matrices, MATRICES),
    _table(measured, MEASURED),
    *(_table(rule, names, in_place=True) for names, rule in ALONG),
    *(_table(rule, names) for names, rule in (*OTHERS, *_spatial())),
    dict.fromkeys(INITIALIZERS, like_first),
    ONE_BY_ONE,
)
CONSTANTS = set(named(CREATED, SPACES))
COPIES: dict[Function, str] = {Tensor.new_tensor: "data", Tensor.new_full: "fill_value"}
"""What makes constants, unless the argument of this name, the last one by position, holds values of the batch."""
EMPTY_LIKE = set(named("zeros_like ones_like empty_like", SPACES))
"""Constants in the shape of data. They have its axis too, so that it is known where parts of the batch are written."""
LIKE_ANOTHER = set(named("expand_as view_as reshape_as type_as to", SPACES))
