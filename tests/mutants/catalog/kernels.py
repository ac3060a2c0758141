"""Faults of the backends: the definition, the compiled CPU kernel, foreach and the Triton kernels."""

from tests.mutants.mutant import Mutant

CPU_8_BITS = ("tests/test_cpu_rounded.py",)
MUTANTS = (
    Mutant(
        "kernels-8-bit-maximize-ignored",
        "adopt_hf/backends/cpu.c",
        "    NUMBERS_OF_U_AND_V(floats, float)\n    const floats v_scale",
        "    Scalars other = *s; other.scale = 1; s = &other;\n"
        "    NUMBERS_OF_U_AND_V(floats, float)\n    const floats v_scale",
        CPU_8_BITS,
        "with 8 bits maximize=True would minimize",
    ),
)
