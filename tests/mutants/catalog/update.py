"""Faults of the numbers of a step, of stochastic rounding and of 8-bit blocks."""

from tests.mutants.mutant import Mutant

ALGORITHM, ROUNDING, QUANTIZATION = (
    f"adopt_hf/{name}.py" for name in ("algorithm", "state/rounding", "state/quantization")
)
SCALARS = ("tests/core/test_algorithm.py",)
GOES_ON = ("tests/core/test_against_torch_adopt.py", "-k", "goes_on")
KEPT = ("tests/plan/test_kept.py",)

MUTANTS = (
    Mutant(
        "scalars-decay-on-the-first-step",
        ALGORITHM,
        "decay=1.0 - lr * weight_decay if decouple and t > 0 else 1.0,",
        "decay=1.0 - lr * weight_decay if decouple else 1.0,",
        SCALARS,
        "the step that only initialises v would shrink the weights",
    ),
    Mutant(
        "scalars-warm-up-off-by-one",
        ALGORITHM,
        "beta2=min(beta2, 1.0 - 1.0 / (t + 1.0) ** warmup) if warmup else beta2,",
        "beta2=min(beta2, 1.0 - 1.0 / (t + 2.0) ** warmup) if warmup else beta2,",
        SCALARS,
        "the running mean would count its first value twice",
    ),
    Mutant(
        "scalars-warm-up-without-its-exponent",
        ALGORITHM,
        "beta2=min(beta2, 1.0 - 1.0 / (t + 1.0) ** warmup) if warmup else beta2,",
        "beta2=min(beta2, 1.0 - 1.0 / (t + 1.0)) if warmup else beta2,",
        SCALARS,
        "every exponent would be the running mean",
    ),
    Mutant(
        "capturable-warm-up-without-its-exponent",
        ALGORITHM,
        '"beta2": (1.0 - 1.0 / (t + 1.0) ** warmup).clamp(max=beta2) if warmup else beta2,',
        '"beta2": (1.0 - 1.0 / (t + 1.0)).clamp(max=beta2) if warmup else beta2,',
        ("tests/backends/test_capturable.py",),
        "a captured run would be another one",
    ),
    Mutant(
        "state-true-is-the-present-exponent",
        "adopt_hf/hyperparameters.py",
        'group["beta2_warmup"] = RUNNING_MEAN',
        'group["beta2_warmup"] = WARMUP_EXPONENT',
        ("tests/core/test_adoptw.py",),
        "a run of an earlier version would go on with another memory",
    ),
    Mutant(
        "state-without-a-warm-up-gets-one",
        "adopt_hf/state/saved_groups.py",
        '    group.setdefault("beta2_warmup", False)  # torch-adopt and timm have none\n',
        "",
        ("tests/core/test_adoptw.py",),
        "a run of torch-adopt would go on with another memory",
    ),
    Mutant(
        "scalars-maximize-ignored",
        ALGORITHM,
        'scale=(-1.0 if group["maximize"] else 1.0) / grad_scale,',
        "scale=1.0 / grad_scale,",
        SCALARS,
        "maximize=True would minimize",
    ),
    Mutant(
        "scalars-clip-off-by-one",
        ALGORITHM,
        'clip=math.inf if group["clip_exp"] is None else t ** group["clip_exp"],',
        'clip=math.inf if group["clip_exp"] is None else (t + 1) ** group["clip_exp"],',
        SCALARS,
        "the clip would be that of the next step",
    ),
    Mutant(
        "scalars-capturable-decay-on-the-first-step",
        ALGORITHM,
        '"decay": torch.where(t > 0, 1.0 - lr * weight_decay, 1.0) if decouple else 1.0,',
        '"decay": 1.0 - lr * weight_decay if decouple else 1.0,',
        ("tests/backends/test_capturable.py", "-k", "ordinary"),
        "a captured run would decay once more than an ordinary one",
    ),
    Mutant(
        "numbers-of-a-schedule-unchecked",
        "adopt_hf/hyperparameters.py",
        "        and 0 <= beta1 < 1\n",
        "",
        KEPT,
        "a schedule that writes beta1 = 1.485 would train with it",
    ),
    Mutant(
        "rounding-tiny-v-becomes-zero",
        ROUNDING,
        "torch.where((rounded == 0) & (x > 0), 0x00010000, rounded)",
        "torch.where((rounded == 0) & (x < 0), 0x00010000, rounded)",
        ("tests/state/test_rounding.py",),
        "a tiny v would be rounded to 0, and its element start again",
    ),
    Mutant(
        "rounding-biased",
        ROUNDING,
        "    rounded = word_of(x) + (bits & 0xFFFF) & 0xFFFF0000",
        "    rounded = word_of(x) + (bits & 0x7FFF) & 0xFFFF0000",
        ("tests/state/test_rounding.py",),
        "small updates would be lost half of the time",
    ),
    Mutant(
        "rounding-one-key-for-all-tensors",
        "adopt_hf/plan/build.py",
        "prefixes = [rounding.key((seed, number, *shard(kind.sharding))) for number in together.numbers]",
        "prefixes = [rounding.key((seed, 0, *shard(kind.sharding))) for number in together.numbers]",
        ("tests/state/test_formats.py", "-k", "bits_differ"),
        "all tensors would draw the same random bits",
    ),
    Mutant(
        "quantization-v-below-the-grid-forgotten",
        QUANTIZATION,
        "    over_scale = (v * (1 / scale)[..., None]).clamp(min=1.0)",
        "    over_scale = v * (1 / scale)[..., None] + 1.0",
        ("tests/state/test_quantization.py",),
        "small v would be off by the scale of their block",
    ),
    Mutant(
        "quantization-decays-twice",
        QUANTIZATION,
        "    scale, bits = _grid(v, scales[..., 1] * beta2, scales[..., 2])",
        "    scale, bits = _grid(v, scales[..., 1] * beta2 * beta2, scales[..., 2])",
        ("tests/state/test_quantization.py",),
        "the decay of v would be rounded, and so not be exact",
    ),
    Mutant(
        "storage-small-tensors-in-8-bits",
        "adopt_hf/state/quantization.py",
        "SMALLEST_TENSOR = 4096",
        "SMALLEST_TENSOR = 4097",
        ("tests/state/test_formats.py", "-k", "smallest"),
        "a tensor of 4096 elements would keep 8 bytes an element, against the docs",
    ),
    Mutant(
        "update-observed-v-becomes-zero",
        ALGORITHM,
        "    v = torch.where((v == 0) & ~(new & (g == 0)), least, v)\n",
        "",
        GOES_ON,
        "an element would start again after a zero gradient at beta2 = 0",
    ),
    Mutant(
        "update-observed-by-m-too",
        ALGORITHM,
        "    new, least = v == 0, least_of(v.dtype)  # (2)",
        "    new, least = (v == 0) & (m == 0), least_of(v.dtype)  # (2)",
        ("tests/backends/test_backends.py", "-k", "told_from"),
        "another update, where a state was loaded whose m is not 0",
    ),
)
