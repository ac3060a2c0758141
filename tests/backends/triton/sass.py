"""Compile the kernels of a file for NVIDIA GPUs, without one, and print what they have become, as JSON.

    python tests/backends/triton/sass.py adopt_hf/backends/triton/kernels.py 80:update:fp32:fp32 90:update:bf16:fp32 ...

A case is the compute capability, the kernel, and Triton's names of the types of theta and g; ":bare" at its end is for
a call without grad_scale, found_inf, a tensor lr, coupled weight decay and clipping, ":bits=8:block_size=256" and the
like for numbers that a kernel is compiled for. TRITON_INTERPRET must not be set.
nvdisasm and cuobjdump are those of Triton's wheel.
"""

import collections
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPTIONAL = dict.fromkeys(("grad_scale", "found_inf", "lr_tensor"), "*fp32")
ARGUMENTS = {"table": "*i64", "chunks": "*i32", "observed": "*i32", "tensors": "i32"} | OPTIONAL
TYPES = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16, "fp64": tl.float64}


def tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def compiled(kernels, case: str) -> dict[str, object]:
    capability, name, theta, grad, *more = case.split(":")
    bare = "bare" in more
    kernel = getattr(kernels, name)
    moments = tl.float64 if theta == "fp64" else tl.float32
    values = {
        "p_type": TYPES[theta],
        "g_type": TYPES[grad],
        "m_type": moments,
        "coupled": not bare,
        "clipped": not bare,
    }
    if bare:
        values |= dict.fromkeys(OPTIONAL)
    values |= {name: int(number) for name, number in (x.split("=") for x in more if x != "bare")}
    constants = {p.name: values[p.name] for p in kernel.params if p.name in values}
    signature = {
        p.name: "constexpr" if p.name in values else p.annotation_type or ARGUMENTS[p.name] for p in kernel.params
    }
    source = ASTSource(kernel, signature, constants)
    options = kernels.options(values["block_size"]) if "block_size" in values else kernels.OPTIONS
    done = triton.compile(source, target=GPUTarget("cuda", int(capability), 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(done.asm["cubin"])
        cubin.flush()
        sass, usage = tool("nvdisasm", "-c", cubin.name), tool("cuobjdump", "-res-usage", cubin.name)
    instructions = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ +)?([A-Z][\w.]*)", sass, re.MULTILINE)
    return {
        "triton": triton.__version__,
        "constants": sorted(p.name for p in kernel.params if p.is_constexpr),
        "sass": collections.Counter(instructions),
        "ptx": collections.Counter(re.findall(r"^\s*(?:@!?%p\d+ +)?([a-z][\w.]*)", done.asm["ptx"], re.MULTILINE)),
        "usage": {name.lower(): int(n) for name, n in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage)},
    }


if __name__ == "__main__":
    sys.modules["transformers"] = None  # which adopt_hf would import, for seconds
    spec = importlib.util.spec_from_file_location("kernels", sys.argv[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    print(json.dumps({case: compiled(module, case) for case in sys.argv[2:]}))
