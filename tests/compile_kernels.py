"""Compile the head's kernels for GPUs that need not be there, on all cores, and print whether they fit.

    python -m tests.compile_kernels

A line holds: the verdict, kernel, compute capability, dimensions, bytes of shared memory, number of matrix instructions.
test_margin_softmax_triton.py runs it in a process of its own, without Triton's interpreter.
"""
import inspect
import multiprocessing
import re

import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from inference.cli import Parser, run_cli
from kernels import margin_softmax_triton as kernels

# compute capability: bytes of shared memory that a program may have
GPUS = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
POINTERS = {"x": "bf16", "unit": "bf16", "out": "bf16", "column": "i32", "taking_part": "i64", "rows": "i64", "seen": "u8",
            "skip": "u8"}
NUMBERS = {"batch": "i32", "n": "i32", "first": "i32", "s": "fp32", "limit": "fp32", "lr": "fp32", "momentum": "fp32",
           "weight_decay": "fp32"}


def compiled(name, capability, stages, constants):
    kernel = getattr(kernels, name)
    names = list(inspect.signature(kernel.fn).parameters)
    signature = {name: "constexpr" if name in constants else NUMBERS.get(name) or "*" + POINTERS.get(name, "fp32")
                 for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs, aligned)
    return compile(source, target=GPUTarget("cuda", capability, 32),
                   options={"num_warps": kernels.WARPS, "num_stages": stages})


def line_of(name, capability, stages, dims, constants):
    """What a kernel with matmuls takes of the shared memory; None for one without, which need only compile."""
    done = compiled(name, capability, stages, constants)
    if dims is None:
        return None
    taken, matmuls = done.metadata.shared, len(re.findall("wgmma|mma.sync|tcgen05.mma", done.asm["ptx"]))
    verdict = "fits" if taken <= GPUS[capability] and matmuls else "DOES NOT FIT"
    return f"{verdict} {name} {capability} {dims} {taken} {matmuls}"


def all_kernels():
    for capability, shared in GPUS.items():
        for dims in (64, 256, 512, 1024) if capability in (90, 120) else (256,):
            blocks = kernels.Blocks.of(1024, dims, shared)
            common = dict(D=dims, OPERAND=tl.bfloat16, BLOCK_B=blocks.rows, BLOCK_D=blocks.dims)
            yield "_row_sums", capability, blocks.stages, dims, common | dict(SHIFTED=True, BLOCK_C=blocks.sum_classes)
            yield "_cosine_gradients", capability, 2, dims, common | dict(BLOCK_C=blocks.gradient_classes)
        steps = dict(D=256, BLOCK_N=8, BLOCK_D=256, GATHERED=True)
        yield "_normalize_rows", capability, 3, None, steps
        yield "_step", capability, 3, None, steps | dict(STEP=True, SEEN=True, MOVE=True, SKIP=True)


def main(arguments=None):
    Parser(prog="python -m tests.compile_kernels", description=__doc__).parse_args(arguments)
    with multiprocessing.get_context("fork").Pool() as pool:  # forked: torch and Triton are imported already
        lines = pool.starmap(line_of, all_kernels(), chunksize=1)
    print("\n".join(line for line in lines if line))


if __name__ == "__main__":
    run_cli(main)
