"""Functions of DeepSpeed that are written for Adam. Each leaves ADOPT unchanged, or is refused by name."""

import functools
import inspect
import logging
from typing import Any

from adopt_hf.identity import innermost, is_adopt_optimizer
from adopt_hf.integrations.deepspeed import internals

logger = logging.getLogger("adopt_hf")


def one_cycle(original: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """Construct DeepSpeed's OneCycle so that it leaves the betas of an ADOPT unchanged.

    Raises:
        ValueError: If `cycle_momentum` is set to true.
    """
    call = inspect.signature(original).bind(scheduler, *args, **kwargs)
    if is_adopt_optimizer(innermost(call.arguments["optimizer"])):
        if call.arguments.get("cycle_momentum"):
            raise ValueError(
                "the optimizer is ADOPT, and cycle_momentum=True makes DeepSpeed's OneCycle scheduler set beta2 to 0.99"
                ' and, with decay_mom_rate, beta1 to more than 1: write "cycle_momentum": false in the params of the '
                '"scheduler" block (ADOPT then keeps its own betas), or use torch.optim.lr_scheduler.OneCycleLR, which '
                "only cycles beta1"
            )
        if "cycle_momentum" not in call.arguments:
            _warn_of_betas()
        call.arguments["cycle_momentum"] = False
    original(*call.args, **call.kwargs)


@functools.cache  # once a process
def _warn_of_betas() -> None:
    logger.warning(
        "DeepSpeed's OneCycle scheduler was made without cycle_momentum, which is on by default and would set ADOPT's "
        "beta2 to 0.99. The scheduler therefore only cycles the learning rate, and ADOPT keeps its own betas. Write "
        "cycle_momentum=False to say so"
    )


def offload_states(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse in `DeepSpeedEngine.offload_states` what stage 3 only does with FusedAdam.

    Raises:
        ValueError: If the moments or the float32 weights of an ADOPT are to be moved in stage 3.
    """
    if is_adopt_optimizer(getattr(engine, "basic_optimizer", None)) and engine.zero_optimization_stage() == 3:
        call = inspect.signature(original).bind(engine, *args, **kwargs)
        moved = internals.states_of_fused_adam(engine, call.arguments.get("include"))
        if moved:
            raise ValueError(
                f"the optimizer is ADOPT, and offload_states would move {' and '.join(moved)}, which DeepSpeed does in "
                "stage 3 with its FusedAdam only: leave them out of `include` (lp_params, lp_grads and "
                "contiguous_grad_buffer work), use stage 2, or offload the optimizer (offload_optimizer)"
            )
    return original(engine, *args, **kwargs)
