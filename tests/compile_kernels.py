"""Compiles the head's kernels for GPUs that need not be there, and prints where they do not fit; run by
test_class_tiles_triton.py in a process of its own, without Triton's interpreter."""
import inspect
import re

import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from kernels import margin_softmax_triton as kernels

# compute capability: bytes of shared memory that a program may have
GPUS = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
POINTERS = {"x": "bf16", "unit": "bf16", "out": "bf16", "column": "i32", "taking_part": "i64", "rows": "i64", "seen": "u8",
            "skip": "u8"}
NUMBERS = {"batch": "i32", "n": "i32", "first": "i32", "s": "fp32", "limit": "fp32", "lr": "fp32", "momentum": "fp32",
           "weight_decay": "fp32"}


def shared_memory(kernel, capability, stages, **constants):
    names = list(inspect.signature(kernel.fn).parameters)
    signature = {name: "constexpr" if name in constants else NUMBERS.get(name) or "*" + POINTERS.get(name, "fp32")
                 for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs, aligned)
    compiled = compile(source, target=GPUTarget("cuda", capability, 32),
                       options={"num_warps": kernels.WARPS, "num_stages": stages})
    return compiled.metadata.shared, len(re.findall("wgmma|mma.sync|tcgen05.mma", compiled.asm["ptx"]))


for capability, shared in GPUS.items():
    for dims in (64, 256, 512, 1024) if capability in (90, 120) else (256,):
        blocks = kernels.Blocks.of(1024, dims, shared)
        common = dict(D=dims, OPERAND=tl.bfloat16, BLOCK_B=blocks.rows, BLOCK_D=blocks.dims)
        for kernel, stages, more in ((kernels._row_sums, blocks.stages, dict(SHIFTED=True, BLOCK_C=blocks.sum_classes)),
                                     (kernels._cosine_gradients, 2, dict(BLOCK_C=blocks.gradient_classes))):
            taken, matmuls = shared_memory(kernel, capability, stages, **common, **more)
            verdict = "fits" if taken <= shared and matmuls else "DOES NOT FIT"
            print(verdict, kernel.__name__, capability, dims, taken, matmuls)
    steps = dict(D=256, BLOCK_N=8, BLOCK_D=256, GATHERED=True)
    shared_memory(kernels._normalise_rows, capability, 3, **steps)
    shared_memory(kernels._step, capability, 3, STEP=True, SEEN=True, MOVE=True, SKIP=True, **steps)
