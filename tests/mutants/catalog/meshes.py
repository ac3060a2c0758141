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
)
