"""Kernels of numba on the very threads that PyTorch computes with.

`spread(work, threads, data, count)`, in a kernel, calls work(lo, hi, data) on each thread, with its share of
`count`. It is a parallel region of the OpenMP library that PyTorch has loaded, whose other threads still spin
after a backward pass: they begin within a microsecond, where a pool of one's own would wait for a core that
is busy so. As of PyTorch's own operations, a forked child must begin none if its parent has.

Without GNU's interface to OpenMP (macOS, Windows) everything is done by the calling thread.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch  # noqa: F401  (loads its OpenMP)
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["HERE", "spread"]


def _is_here() -> bool:
    try:
        return hasattr(ctypes.CDLL(None), "GOMP_parallel")
    except TypeError:  # on Windows
        return False


HERE = _is_here()

BYTES, INT, WORD = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)


def _spread_typed(typingctx: Any, work: Any, threads: Any, data: Any, count: Any) -> Any:
    """work(lo, hi, data) on so many threads, each with its share of the count."""
    call = work.get_call_type(typingctx, (types.int64, types.int64, data), {})

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, threads, data, count = args
        compiled = work.dispatcher.overloads[call.args]
        context.add_linking_libs([compiled.library])
        callee = context.declare_function(builder.module, compiled.fndesc)

        def run(builder: Any, lo: Any, hi: Any, data: Any) -> Any:
            status, _ = context.call_conv.call_function(
                builder, callee, types.none, call.args, (lo, hi, data)
            )
            return status.is_error

        failed = _region(builder, run, threads, data, count) if HERE else run(builder, WORD(0), count, data)
        with cgutils.if_unlikely(builder, failed):
            # Kernels raise nothing themselves, but a few need some room of their own.
            context.call_conv.return_user_exc(builder, MemoryError, ("in a kernel of rllc",))
        return context.get_dummy_value()

    return types.void(work, types.int64, data, types.int64), generate


def _region(builder: Any, run: Any, threads: Any, data: Any, count: Any) -> Any:
    """A parallel region of run(builder, lo, hi, data), and whether one has failed."""
    module = builder.module
    seen = cgutils.pack_struct(builder, (data, count, cgutils.false_bit))
    shared = cgutils.alloca_once_value(builder, seen)

    def asked(name: str) -> Any:
        function = cgutils.get_or_insert_function(module, ir.FunctionType(INT, []), name)
        return inner.sext(inner.call(function, []), WORD)

    # void share(void *shared), which every thread runs
    share = ir.Function(module, ir.FunctionType(ir.VoidType(), [BYTES]), module.get_unique_name("share"))
    share.linkage = "internal"
    inner = ir.IRBuilder(share.append_basic_block())
    data, count, failed = (
        cgutils.gep_inbounds(inner, inner.bitcast(share.args[0], shared.type), 0, n) for n in range(3)
    )
    number, of = asked("omp_get_thread_num"), asked("omp_get_num_threads")
    lo, hi = (inner.sdiv(inner.mul(inner.load(count), n), of) for n in (number, inner.add(number, WORD(1))))
    with cgutils.if_unlikely(inner, run(inner, lo, hi, inner.load(data))):
        inner.store(cgutils.true_bit, failed)
    inner.ret_void()

    kind = ir.FunctionType(ir.VoidType(), [share.type, BYTES, INT, INT])
    begin = cgutils.get_or_insert_function(module, kind, "GOMP_parallel")
    builder.call(begin, (share, builder.bitcast(shared, BYTES), builder.trunc(threads, INT), INT(0)))
    return builder.load(cgutils.gep_inbounds(builder, shared, 0, 2))


spread: Any = intrinsic(_spread_typed)
