"""AES-256 in counter mode by the processor's own instructions, for compiled loops that draw their own bits.

The bits are those of `KeyStream.fill`, without a return to Python for each chunk and, where one instruction encrypts
four blocks at once, in a third of the time. Importing this module needs numba.

A table indexed by secrets would leave traces in the caches. There is none here, nor in the key schedule.

Guarantee: the bits are those of `KeyStream.fill`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numpy.typing import NDArray

_ROUNDS = 14
_AT_ONCE = 8  # vectors, so that the latency of one instruction is filled by seven others
_I64 = ir.IntType(64)


def _lanes() -> int:
    """Return how many 64-bit lanes the widest AES instruction has that code is compiled for; 0 if there is none."""
    features = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    if "+vaes" in features and "+avx512f" in features:
        return 8
    if "+vaes" in features and "+avx2" in features:
        return 4
    return 2 if "+aes" in features else 0


LANES = _lanes()
GROUP_BYTES = _AT_ONCE * LANES * 8  # that one call of `_encrypt_group` makes


def _vector(lanes: int) -> ir.VectorType:
    return ir.VectorType(_I64, lanes)


def _function(builder: ir.IRBuilder, name: str, vector: ir.VectorType, arguments: int) -> ir.Function:
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(vector, [vector] * arguments), name)


def _pointer(context: Any, builder: ir.IRBuilder, kind: Any, array: Any, place: Any, vector: ir.VectorType) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [place]), vector.as_pointer())


def _encrypt_group_intrinsic(typing_context: Any, bits: Any, place: Any, keys: Any, address: Any, position: Any) -> Any:
    """bits[place : place + LANES * _AT_ONCE] = the stream's blocks at an address from `position` on."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        vector, suffix = _vector(LANES), {8: ".512", 4: ".256", 2: ""}[LANES]
        one_round = _function(builder, f"llvm.x86.aesni.aesenc{suffix}", vector, 2)
        last_round = _function(builder, f"llvm.x86.aesni.aesenclast{suffix}", vector, 2)
        swap_bytes = _function(builder, f"llvm.bswap.v{LANES}i64", vector, 1)  # counters are big-endian
        out, start, schedule, upper, lower = arguments
        into = _pointer(context, builder, signature.args[0], out, start, vector)
        schedule = _pointer(context, builder, signature.args[2], schedule, ir.Constant(_I64, 0), vector)
        first = ir.Constant(vector, ir.Undefined)
        for lane in range(LANES):
            first = builder.insert_element(first, lower if lane % 2 else upper, ir.Constant(ir.IntType(32), lane))

        def key(number: int) -> Any:
            return builder.load(builder.gep(schedule, [ir.Constant(_I64, number)]), align=8)

        states = []
        for number in range(_AT_ONCE):
            blocks = [number * LANES // 2 + lane // 2 if lane % 2 else 0 for lane in range(LANES)]
            counters = builder.call(swap_bytes, [builder.add(first, ir.Constant(vector, blocks))])
            states.append(builder.xor(counters, key(0)))
        for number in range(1, _ROUNDS + 1):
            function = one_round if number < _ROUNDS else last_round
            states = [builder.call(function, [state, key(number)]) for state in states]
        for number, state in enumerate(states):
            builder.store(state, builder.gep(into, [ir.Constant(_I64, number)]), align=4)
        return context.get_dummy_value()

    return types.void(bits, place, keys, address, position), code


def _substitute_intrinsic(typing_context: Any, word: Any) -> Any:
    """Return AES's SubWord: the S-box on each byte of a 32-bit word.

    The last round on four copies of the word is SubBytes and ShiftRows, which moves bytes between equal columns.
    """

    def code(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        vector, words = _vector(2), ir.VectorType(ir.IntType(32), 4)
        copies = ir.Constant(words, ir.Undefined)
        for column in range(4):
            copies = builder.insert_element(copies, arguments[0], ir.Constant(ir.IntType(32), column))
        last_round = _function(builder, "llvm.x86.aesni.aesenclast", vector, 2)
        replaced = builder.call(last_round, [builder.bitcast(copies, vector), ir.Constant(vector, [0, 0])])
        return builder.extract_element(builder.bitcast(replaced, words), ir.Constant(ir.IntType(32), 0))

    return types.uint32(types.uint32), code


_encrypt_group: Any = intrinsic(_encrypt_group_intrinsic)
_substitute: Any = intrinsic(_substitute_intrinsic)


def _schedule(key: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return the round keys of a 256-bit key (FIPS 197, section 5.2), each as often as a vector has blocks."""
    words = np.empty(4 * (_ROUNDS + 1), np.uint32)
    words[:8] = key
    constant = np.uint32(1)
    for i in range(8, len(words)):
        word = words[i - 1]
        if i % 8 == 0:
            word = _substitute(np.uint32((word >> np.uint32(8)) | (word << np.uint32(24)))) ^ constant
            constant = np.uint32(constant << np.uint32(1))
        elif i % 8 == 4:
            word = _substitute(word)
        words[i] = words[i - 8] ^ word
    pairs = words.view(np.uint64)
    keys = np.empty((_ROUNDS + 1) * LANES, np.uint64)
    for i in range(len(keys)):
        keys[i] = pairs[2 * (i // LANES) + i % 2]
    return keys


def _fill(bits: NDArray[np.uint64], keys: NDArray[np.uint64], address: np.uint64, position: np.uint64) -> None:
    """Overwrite `bits`, a multiple of GROUP_BYTES, with the stream at an address from block `position` on."""
    for place in range(0, len(bits), LANES * _AT_ONCE):
        _encrypt_group(bits, place, keys, address, position + np.uint64(place // 2))


schedule, fill = njit(nogil=True)(_schedule), njit(nogil=True)(_fill)
