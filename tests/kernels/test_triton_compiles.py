"""The Triton kernels compile for Ampere and Hopper, and fit their shared memory; no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.triton
pytest.importorskip("triton", reason="Triton is not installed")

SHARED = {80: 163, 86: 99, 90: 227}  # KB that a block can have
# in a process of its own: this one may have the interpreter in place of the compiler
SCRIPT = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from qvl.kernels import triton_attention, triton_linear

def shared(kernel, arch, types, **fixed):
    stages = fixed.pop("stages", 3)
    names = kernel.arg_names
    signature = {n: "constexpr" if n in fixed else types.get(n, "i32") for n in names}
    values = {(names.index(n),): value for n, value in fixed.items()}
    target = GPUTarget("cuda", arch, 32)
    options = {"num_warps": 4, "num_stages": stages}
    made = triton.compile(ASTSource(kernel, signature, values), target=target, options=options)
    assert len(made.asm["cubin"]) > 0
    return made.metadata.shared

arch, found = int(sys.argv[1]), {}
for dtype in ("bf16", "fp32"):
    x, fp32 = "*" + dtype, dtype == "fp32"
    lists = {"table": "*i32", "cu_q": "*i32", "k_lens": "*i32"}
    sums = {"part": "*fp32", "part_sums": "*fp32"}
    for name, head, split, page, rows in (
        ("prompt", 128, 0, 16, 64), ("decode", 128, 256, 16, 16), ("picture", 80, 0, 0, 64)
    ):
        types = {"q": x, "k": x, "v": x, "out": x, "scale": "fp32", **lists}
        types |= sums if split else {"part": x, "part_sums": x}
        found[f"{name} {dtype}"] = shared(
            triton_attention.attend_kernel, arch, types, GROUP=6, HEAD=head, D=128, M=rows,
            N=32 if fp32 else 64, CAUSAL=page > 0, PAGE=page, SPLIT=split, SHORT=8 if page else 0,
            stages=2,
        )
    found[f"combine {dtype}"] = shared(
        triton_attention.combine_kernel, arch, {"out": x, **lists, **sums}, HEAD=80, D=128,
        SPLIT=256, SHORT=8,
    )
    weight = {"nibbles": "*u8", "scales": "*fp16", "zeros": "*u8", "bias": x}
    for biased in (False, True):
        found[f"int4 {dtype} {biased}"] = shared(
            triton_linear.int4_kernel, arch, {"x": x, "y": x, **weight}, M=16, N=32, HALF=64,
            BIASED=biased, stages=4,
        )
    if arch >= 89:
        types = {"x": x, "values": "*fp8e4nv", "scales": "*fp32", "most_fp8": "fp32", "least": "fp32"}
        found[f"fp8 rows {dtype}"] = shared(triton_linear.fp8_rows_kernel, arch, types, AT_ONCE=1024)
print(json.dumps(found))
"""


@pytest.mark.parametrize("arch", SHARED)
def test_every_kernel_compiles_and_fits(arch, tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(arch)],
        env=env | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) >= 12
    assert {name: size for name, size in found.items() if size > SHARED[arch] << 10} == {}
