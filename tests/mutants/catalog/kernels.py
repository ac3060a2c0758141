"""Faults of the backends: the compiled CPU kernel, the Triton kernels, and how C is compiled."""

from tests.mutants.mutant import Mutant

CPU_C, ROUNDED_H, NUMBERS_H = (f"adopt_hf/backends/{name}" for name in ("cpu.c", "cpu_rounded.h", "cpu_numbers.h"))
TRITON = "adopt_hf/backends/triton_kernels.py"
TO_THE_BIT = ("tests/test_cpu.py", "-k", "references_to_the_bit")
EIGHT_BITS = ("tests/test_cpu_rounded.py",)
INTERPRETED = ("tests/test_backends.py", "-k", "triton or nan")
CAPTURABLE = ("tests/test_triton.py", "-k", "capturable or counts or sizes")

MUTANTS = (
    Mutant(
        "cpu-8-bit-maximize-ignored",
        CPU_C,
        "    NUMBERS_OF_U_AND_V(floats, float)\n    const floats v_scale",
        "    Scalars other = *s; other.scale = 1; s = &other;\n"
        "    NUMBERS_OF_U_AND_V(floats, float)\n    const floats v_scale",
        EIGHT_BITS,
        "with 8 bits maximize=True would minimize",
    ),
    Mutant(
        "cpu-no-lower-clip",
        CPU_C,
        "    u = LARGER_##REAL(-clip, u);",
        "    ;                         ",
        TO_THE_BIT,
        "steps against the sign of a rare large gradient would not be clipped",
    ),
    Mutant(
        "cpu-no-weight-decay",
        CPU_C,
        "    theta = theta * decay;",
        "    ;                     ",
        TO_THE_BIT,
        "decoupled weight decay would do nothing on a CPU",
    ),
    Mutant(
        "cpu-step-by-u",
        CPU_C,
        "    theta = theta - lr * m;",
        "    theta = theta - lr * u;",
        TO_THE_BIT,
        "there would be no momentum",
    ),
    Mutant(
        "cpu-first-observation-averaged",
        CPU_C,
        "    v = SELECT_##REAL(seen, next, first);",
        "    v = next; (void)first;               ",
        TO_THE_BIT,
        "v would start at (1 - beta2) of the first square",
    ),
    Mutant(
        "cpu-8-bit-unobserved-encoded-as-small",
        ROUNDED_H,
        "            if (kind != ABOVE_ZERO) of_v[k] &= (words)(vs != 0);\n",
        "",
        EIGHT_BITS,
        "an element that was never observed would have a tiny v, and its first gradient a step at the clip",
    ),
    Mutant(
        "cpu-8-bit-range-with-zeros",
        CPU_C,
        "extremes->below_v = smaller_words(extremes->below_v, (words)v - 1);",
        "extremes->below_v = smaller_words(extremes->below_v, (words)v);",
        EIGHT_BITS,
        "a block with unobserved elements would have the coarsest grid",
    ),
    Mutant(
        "cpu-8-bit-zero-again",
        ROUNDED_H,
        "if (grids.kind[b] == ANYTHING || (ranges->below_v[b] == UINT32_MAX && ranges->most_v[b] > 0)) find",
        "if (grids.kind[b] == ANYTHING) find",
        EIGHT_BITS,
        "a v that returned to 0 would spoil the grid of its block",
    ),
    Mutant(
        "cpu-8-bit-zeros-not-noticed",
        ROUNDED_H,
        "ranges->least_v[b] == 0 ? UNSEEN : ABOVE_ZERO",
        "ABOVE_ZERO",
        EIGHT_BITS,
        "an element that was never observed would count as observed after the first step",
    ),
    Mutant(
        "cpu-16-bit-v-becomes-zero",
        ROUNDED_H,
        "            of_v[k] = larger_words(bits_v + (random >> 16), least);",
        "            of_v[k] = bits_v + (random >> 16); (void)least;        ",
        ("tests/test_storage.py", "-k", "above_zero"),
        "a tiny v would be rounded to 0, and its element start again",
    ),
    Mutant(
        "cpu-bfloat16-ties",
        NUMBERS_H,
        "(bits + 0x7fff + (bits >> 16 & 1)) >> 16",
        "(bits + 0x8000) >> 16",
        ("tests/test_cpu.py", "-k", "float32_is_rounded"),
        "ties would be rounded up: bfloat16 weights would drift",
    ),
    Mutant(
        "cpu-contracted",
        "adopt_hf/backends/native.py",
        '"-ffp-contract=off"',
        '"-ffp-contract=fast"',
        TO_THE_BIT,
        "results would differ from processor to processor",
    ),
    Mutant(
        "native-damaged-library-loaded",
        "adopt_hf/backends/native.py",
        'intact = kept.name == f"{name}-{_digest(file.read())}.so"',
        "intact = True",
        ("tests/test_native.py", "-k", "damaged or cut_off"),
        "a library that was cut off would end the process",
    ),
    Mutant(
        "triton-nan-lost",
        TRITON,
        "    u = tl.where(u > clip, clip, u)\n",
        "    u = tl.minimum(u, clip)\n",
        ("tests/test_triton.py", "-k", "operation_by_operation"),  # the interpreter's minimum keeps NaN
        "a NaN gradient would become a step of the clip",
    ),
    Mutant(
        "triton-inf-frozen",
        TRITON,
        '    u = tl.where(root < float("inf"), u, float("nan"))',
        "    u = tl.where(root == root, u, u)",
        INTERPRETED,
        "an inf in a gradient would freeze its element in silence",
    ),
    Mutant(
        "triton-border-of-a-chunk",
        TRITON,
        "* CHUNK  # int64",
        "* (CHUNK - 1)  # int64",
        CAPTURABLE,
        "one element in 16,384 would be updated twice",
    ),
    Mutant(
        "triton-counts-what-waits",
        TRITON,
        "    tl.store(steps, t + 1.0, mask=mask & go)",
        "    tl.store(steps, t + 1.0, mask=mask)",
        CAPTURABLE,
        "an overflow, or a first gradient of zeros, would count as a step",
    ),
    Mutant(
        "triton-decay-on-the-first-step",
        TRITON,
        "        decay = tl.where(t > 0, 1.0 - rate * decoupled, 1.0)",
        "        decay = 1.0 - rate * decoupled",
        CAPTURABLE,
        "the step that only initialises v would shrink the weights",
    ),
    Mutant(
        "fallback-unsaid",
        "adopt_hf/backends/__init__.py",
        '    logger.warning(\n        \'backend="auto" updates',
        '    logger.debug(\n        \'backend="auto" updates',
        ("tests/test_native.py", "-k", "without_a_compiler"),
        "steps would take several times as long, and nothing would say so",
    ),
)
