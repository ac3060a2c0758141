"""ADOPT with Kahan summation, for comparison: the part of a bfloat16 parameter that rounding loses is kept in bfloat16.

python -m experiments.low_bits.kahan SCRIPT ARGS...    # a recipe, whose optim="adopt" is this one
"""

import runpy
import sys
from typing import Any

from adopt_hf import ADOPT
from adopt_hf.integrations.transformers import arguments


class KahanADOPT(ADOPT):
    """ADOPT that trains `p + lost`. The state has `lost`, of the parameter's shape and dtype, next to the moments."""

    def step(self, closure: Any = None) -> Any:
        assert closure is None
        trained = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p in trained:
            grad, p.grad = p.grad, None
            lost = self.state[p].pop("lost", None)
            p.data = p.data.float() if lost is None else p.data.float() + lost.float()
            p.grad = grad.float()
        super().step()
        for p in trained:
            exact, p.grad = p.data, None
            p.data = exact.bfloat16()
            self.state[p]["lost"] = (exact - p.data.float()).bfloat16()


if __name__ == "__main__":
    arguments.ADOPT = KahanADOPT  # type: ignore[misc]
    script, *sys.argv[1:] = sys.argv[1:]
    sys.argv[0] = script
    runpy.run_path(script, run_name="__main__")
