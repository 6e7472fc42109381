"""The kernels compile for GPUs, although none is there: Triton and the assemblers that it brings need none."""

import importlib.util

import pytest

from hushgrad.noise.cuda.definition import LANES

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

TARGETS = [("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64)]


def compiled(kernel, pointers, constants, target, **options):
    """Return the compiled kernel; arguments that are neither pointers nor constants are 32-bit numbers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = dict.fromkeys(kernel.arg_names, "i32")
    types |= dict.fromkeys(constants, "constexpr") | {name: f"*{kind}" for name, kind in pointers.items()}
    types |= {name: "fp32" for name in ("std", "divisor") if name in types}
    source = ASTSource(kernel, signature=types, constexprs=constants)
    return triton.compile(source, target=GPUTarget(*target), options=options)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    """Compile anew, and not into the user's home."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("target", TARGETS)
def test_noise_compiles_and_rounds_products_and_divisions_as_defined(target):
    """In float32 no product is joined with a sum, and divisions are those of IEEE 754."""
    from hushgrad.noise.cuda.kernel import _noisy_update

    pointers = dict.fromkeys(("out", "total", "picks"), "fp32")
    pointers |= dict.fromkeys(("edges", "heights", "boxes", "gaps"), "fp64")
    constants = {"THREADS": LANES, "STEPS": 15}
    kernel = compiled(_noisy_update, pointers, constants, target, num_warps=1, enable_fp_fusion=False)
    if target[0] == "cuda":
        assembly = kernel.asm["ptx"]
        assert "fma.rn.f32" not in assembly
        assert assembly.count("div.rn.f32") == 17
        assert "div.full" not in assembly
        assert "approx.f32" not in assembly
        assert "mul.ftz" not in assembly
        assert "add.ftz" not in assembly


@pytest.mark.parametrize(("dtype", "target"), [("fp32", TARGETS[0]), ("bf16", TARGETS[1]), ("fp16", TARGETS[0])])
def test_norms_compile_with_products_in_full_precision(dtype, target):
    """float32 is not rounded to TF32; 16-bit values are multiplied by tensor cores and summed in float32."""
    from hushgrad.gradients.cuda.gram import _gram
    from hushgrad.gradients.cuda.instantiate import _instantiate

    pointers = {"left": dtype, "right": dtype, "partial_norms": "fp32"}
    constants = {"BLOCK": 64, "LEFT": 32, "RIGHT": 32, "WIDEN": False}
    gram = compiled(_gram, pointers, constants, target, num_warps=8, enable_fp_fusion=True)
    pointers = {"left": dtype, "right": dtype, "partial": "fp32", "gradients": "fp32"}
    constants = {"KEEP": True, "BLOCK": 64, "DEPTH": 32, "WIDEN": False}
    gradients = compiled(_instantiate, pointers, constants, target, num_warps=8, enable_fp_fusion=True)
    for kernel in (gram, gradients):
        assert "tf32" not in kernel.asm["ptx"]
        assert ("mma" in kernel.asm["ptx"]) is (dtype != "fp32")
