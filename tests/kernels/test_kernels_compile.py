"""Every Triton kernel compiles for a Hopper GPU, to instructions that round as the definition does.

No device is needed for it: the arguments are of the host and nothing is run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.slow

INSTRUCTION = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z]\w*(?:\.\w+)+)", re.MULTILINE)


def inexact(ptx: str) -> set[str]:
    """Instructions that round otherwise than IEEE 754 does, lose subnormals, or add in any order.

    Rounding down is spared: what the kernels round down is 0 or normal.
    """
    used = set(INSTRUCTION.findall(ptx))
    return {
        name
        for name in used
        if name.startswith("fma.")
        or (".ftz" in name and not name.startswith("cvt.rmi."))
        or re.match(r"(div|sqrt|rcp)\.(?!rn\.).*f\d+$", name)
        or re.match(r"(atom|red)\..*f\d+$", name)
    }


def test_what_is_inexact_is_seen() -> None:
    bad = ["fma.rn.f32", "add.rn.ftz.f32", "div.full.f32", "sqrt.approx.f32", "red.global.add.f32"]
    fine = ["cvt.rmi.ftz.f32.f32", "div.rn.f32", "div.s64", "mul.rn.f32", "red.global.add.u32"]
    lines = [f"\t{name} \t%f1, %f2;" for name in fine] + [f"@%p1 {name} %f1;" for name in bad]
    assert inexact("\n".join(lines)) == set(bad)


def test_kernels_compile_to_instructions_that_round_as_the_definition_does() -> None:
    pytest.importorskip("triton")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    called = [sys.executable, __file__]
    done = subprocess.run(called, capture_output=True, text=True, timeout=600, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = done.stdout.split("\f")
    assert len(compiled) > 40
    for text in compiled:
        assert inexact(text) == set(), text[:100]
    assert any("div.rn.f32" in text for text in compiled)


TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


def _type(given: object) -> str:
    if isinstance(given, torch.Tensor):
        return TYPES[given.dtype]
    return "fp32" if isinstance(given, float) else "i32"


def _compile_all() -> dict[str, str]:
    """Calls every operation with launches that only compile, and returns PTX by kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from thinwire import host
    from thinwire.kernels import gpu

    texts: dict[str, str] = {}

    def launch(function, programs, *given, **constants):
        name = f"{function.__name__}{constants}"
        if not programs or name in texts:
            return
        types = {n: _type(x) for n, x in zip(function.arg_names, given, strict=False)}
        types |= dict.fromkeys(constants, "constexpr")
        aligned = {
            (i,): [["tt.divisibility", 16]] for i, t in enumerate(types.values()) if t[0] == "*"
        }
        source = ASTSource(function, types, constants, aligned)
        target, options = GPUTarget("cuda", 90, 32), {"enable_fp_fusion": False}
        texts[name] = triton.compile(source, target=target, options=options).asm["ptx"]

    for name, module in list(sys.modules.items()):
        if name.startswith("thinwire.kernels.gpu_") and hasattr(module, "launch"):
            module.launch = launch
    key, n = (1, 2), 10_000
    v, index, ones = host.zeros(n), torch.arange(n), torch.ones(2)
    starts, padded = torch.tensor([0, 5000, n]), torch.tensor([0, 8192, 16384])
    gpu.words(n, key)
    gpu.first_nonfinite(v, starts)
    for kind in ("l1", "l2", "max"):
        gpu.norms(v, starts, kind)
    gpu.topk(v, starts, torch.tensor([5, 5]))
    gpu.randk(starts, torch.tensor([5, 5]), key)
    for levels in (1, 7, 32767):
        width = (2 * levels).bit_length()
        packed = gpu.quantize(v, starts, ones, levels, key)
        coded = packed, width, starts, ones.double(), ones.double()
        gpu.fit(v, *coded)
        gpu.decode(*coded)
        gpu.accumulate_codes(v, None, *coded, -1.0)
        gpu.accumulate_codes(v, index, *coded, -1.0)
        gpu.pack(gpu.unpack(packed, n, width), width)
        gpu.largest_code(packed, n, width)
        gpu.quantize_levels(v, starts, ones, ones, levels, key)
    gpu.signs(v, starts)
    gpu.hadamard(gpu.hadamard(v, starts, padded, key, False), starts, padded, key, True)
    gpu.accumulate(v, None, v, 1.0)
    gpu.accumulate(v, index, v, 1.0)
    return texts


if __name__ == "__main__":
    print("\f".join(f"{name}\n{text}" for name, text in _compile_all().items()))
