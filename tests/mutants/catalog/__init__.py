"""All mutants, by the part that they damage."""

from tests.mutants.catalog import (
    compare,
    convert,
    docs,
    examples,
    found,
    integrations,
    kernels,
    machines,
    meshes,
    optimizer,
    startup,
    update,
)
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *kernels.MUTANTS,
    *update.MUTANTS,
    *optimizer.MUTANTS,
    *integrations.MUTANTS,
    *examples.MUTANTS,
    *found.MUTANTS,
    *convert.MUTANTS,
    *compare.MUTANTS,
    *docs.MUTANTS,
    *meshes.MUTANTS,
    *startup.MUTANTS,
    *machines.MUTANTS,
)
