"""All mutants, by the part that they damage."""

from tests.mutants.catalog import kernels
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (*kernels.MUTANTS,)
