"""Faults on device meshes of several dimensions: what their shards may have, and what is said of it."""

from tests.mutants.mutant import Mutant

FORMATS = "adopt_hf/state/formats.py"
OF_MESHES = ("tests/state/test_mesh_formats.py",)

MUTANTS = (
    Mutant(
        "mesh-strided-rows-in-float32",
        FORMATS,
        'getattr(placement, "dim", None) == 0 for',
        "placement.is_shard(0) for",
        OF_MESHES,
        "with FSDP2 the moments of experts would take four times the memory that was asked for",
    ),
    Mutant(
        "mesh-columns-in-8-bits",
        FORMATS,
        'getattr(placement, "dim", None) == 0 for',
        "True for",
        OF_MESHES,
        "the scales of a shard of columns would be saved as those of rows",
    ),
    Mutant(
        "mesh-float32-unsaid",
        FORMATS,
        '        logger.warning(\n            "state_bits=8: the moments',
        '        logger.debug(\n            "state_bits=8: the moments',
        OF_MESHES,
        "8-bit moments would take 8 bytes per element, and nothing would say so",
    ),
    Mutant(
        "mesh-cut-parameters-observed",
        "adopt_hf/monitor/__init__.py",
        "        _check_not_cut(optimizer)\n",
        "",
        ("tests/monitor/test_bad_input.py", "-k", "without_a_mesh"),
        "with AutoTP the figures would be those of one process, and nothing would say so",
    ),
    Mutant(
        "mesh-cut-partitions-observed",
        "adopt_hf/monitor/__init__.py",
        " or any(each.is_cut for each in optimizer.partitions.values())",
        "",
        ("tests/monitor/test_bad_input.py", "-k", "without_a_mesh"),
        "with AutoTP under ZeRO the figures would be those of one process",
    ),
    Mutant(
        "mesh-flattened-state-converted",
        "adopt_hf/commands/convert/layouts.py",
        'startswith("param_groups.")',
        'startswith("no such entry")',
        ("tests/commands/convert/test_layouts.py", "-k", "without_groups"),
        "a user would read that there is no state, and not which function wrote it in another form",
    ),
)
