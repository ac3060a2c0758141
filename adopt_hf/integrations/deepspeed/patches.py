"""The functions of DeepSpeed that are replaced, each with issue, why, and remove when; and which versions fit."""

import functools
from collections.abc import Callable, Iterable

from adopt_hf.integrations import patching
from adopt_hf.integrations.after_import import when_imported, when_imported_no_more
from adopt_hf.integrations.deepspeed import adam, checkpoints, initialize, internals
from adopt_hf.integrations.deepspeed.ds_config import CLASSES
from adopt_hf.integrations.patching import Around
from adopt_hf.optimizer import is_adopt_optimizer


def register() -> None:
    """Teach DeepSpeed what ADOPT is, once it is imported. A second call does nothing."""
    when_imported("deepspeed", _register_now)


def unregister() -> None:
    """Undo `register()`."""
    when_imported_no_more("deepspeed", lambda: unwrap_deepspeed(is_adopt_optimizer))


def _register_now() -> None:
    reason = deepspeed_mismatch()
    if reason is None:
        wrap_deepspeed(
            CLASSES.values(),
            initialize._initialize,
            initialize._engine,
            checkpoints.save_checkpoint,
            checkpoints.load_checkpoint,
        )
        wrap_deepspeed_adams(adam.one_cycle, adam.offload_states)
    else:
        wrap_deepspeed_to_refuse(functools.partial(initialize._refuse, reason))


DEEPSPEED_MIN = "0.17"


# -- deepspeed.initialize: ADOPT in the config, under ZeRO and offloaded -----------------------------------------------
# Issue: an "optimizer" block can only name classes of torch.optim and DeepSpeed's own; a client's optimizer is refused
#        under offload unless a flag is set, and what ZeRO flattens has lost its tensors.
# Why:   `initialize` is public and everything passes through it, Accelerate and the Trainer included.
# Remove when: DeepSpeed can be told of an optimizer class.
#
# -- ZERO_SUPPORTED_OPTIMIZERS: the list of classes that ZeRO calls tested ---------------------------------------------
# Issue: other classes need "zero_allow_untested_optimizer" in the config, and are warned of.
# Why:   the tests here run ADOPT in every stage.
# Remove when: DeepSpeed has ADOPT in the list, or none.
#
# -- DeepSpeedEngine: its constructor, save_checkpoint, load_checkpoint ------------------------------------------------
# Issue: an engine's optimizer is not told of the model's tensors, a universal checkpoint does not keep what belongs to
#        single tensors and groups, and the error about another world size does not say what to do about it.
# Why:   every engine is made, saved and loaded here, whoever calls `initialize`, and however it was imported.
# Remove when: DeepSpeed tells an optimizer what its partitions hold, and converts its state.


def deepspeed_mismatch() -> str | None:
    """Why the patches below do not fit the installed DeepSpeed, or None. Imports it."""
    import deepspeed

    installed = getattr(deepspeed, "__version__", "of unknown version")
    ours = {"model", "optimizer", "model_parameters", "config", "config_params"}
    if not ours.issubset(patching._parameters(deepspeed, "initialize")):
        return f"deepspeed {installed} has changed deepspeed.initialize: adopt_hf must be updated"
    if patching._is_older(installed, DEEPSPEED_MIN):
        return f"ADOPT under DeepSpeed needs deepspeed {DEEPSPEED_MIN} or later, installed is {installed}"
    from deepspeed.runtime.zero import utils

    if not isinstance(getattr(utils, "ZERO_SUPPORTED_OPTIMIZERS", None), list):
        return f"deepspeed {installed} has changed ZERO_SUPPORTED_OPTIMIZERS: adopt_hf must be updated"
    for name, parameters in (("save_checkpoint", {"save_dir"}), ("load_checkpoint", {"load_dir", "tag"})):
        if not parameters.issubset(patching._parameters(deepspeed.DeepSpeedEngine, name)):
            return f"deepspeed {installed} has changed DeepSpeedEngine.{name}: adopt_hf must be updated"
    return None


def wrap_deepspeed(
    optimizer_classes: Iterable[type],
    initialize: Around,
    engine: Around,
    save_checkpoint: Around,
    load_checkpoint: Around,
) -> None:
    """Put them around `deepspeed.initialize` and the engine's methods; let ZeRO support the classes."""
    import deepspeed

    for optimizer_class in optimizer_classes:
        internals.support_in_zero(optimizer_class)
    patching.wrap(deepspeed, "initialize", initialize)
    patching.wrap(deepspeed.DeepSpeedEngine, "__init__", engine)
    patching.wrap(deepspeed.DeepSpeedEngine, "save_checkpoint", save_checkpoint)
    patching.wrap(deepspeed.DeepSpeedEngine, "load_checkpoint", load_checkpoint)


# -- OneCycle.__init__ -------------------------------------------------------------------------------------------------
# Issue: unless it is told not to, it writes beta2 = 0.99 into every group that has betas, and lets beta1 grow above 1.
# Why:   a "scheduler" block, a scheduler that is handed over and one in a loop of one's own are all made here.
# Remove when: DeepSpeed cycles the first of the betas only.
#
# -- DeepSpeedEngine.offload_states ------------------------------------------------------------------------------------
# Issue: stage 3 asserts that the optimizer is FusedAdam, which `python -O` does not do.
# Why:   it is the public method.
# Remove when: stage 3 moves the state of any optimizer, as stages 1 and 2 do.


def wrap_deepspeed_adams(one_cycle: Around, offload_states: Around) -> None:
    """Put them around what DeepSpeed has written for Adam, as far as this version has it."""
    import deepspeed
    from deepspeed.runtime import lr_schedules

    if "cycle_momentum" in patching._parameters(getattr(lr_schedules, "OneCycle", None), "__init__"):
        patching.wrap(lr_schedules.OneCycle, "__init__", one_cycle)
    if "include" in patching._parameters(deepspeed.DeepSpeedEngine, "offload_states"):
        patching.wrap(deepspeed.DeepSpeedEngine, "offload_states", offload_states)


def unwrap_deepspeed_adams() -> None:
    """Undo `wrap_deepspeed_adams`."""
    import deepspeed
    from deepspeed.runtime import lr_schedules

    for owner, name in (
        (getattr(lr_schedules, "OneCycle", None), "__init__"),
        (deepspeed.DeepSpeedEngine, "offload_states"),
    ):
        if hasattr(owner, name):
            patching.unwrap(owner, name)


def wrap_deepspeed_to_refuse(initialize: Around) -> None:
    """Where the patches do not fit: put only this around `deepspeed.initialize`, if there is one."""
    import deepspeed

    if hasattr(deepspeed, "initialize"):
        patching.wrap(deepspeed, "initialize", initialize)


def unwrap_deepspeed(is_ours: Callable[[object], bool]) -> None:
    """Undo `wrap_deepspeed`, `wrap_deepspeed_to_refuse` and `support_in_zero` for the classes that are ours."""
    import deepspeed
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

    ZERO_SUPPORTED_OPTIMIZERS[:] = [c for c in ZERO_SUPPORTED_OPTIMIZERS if not is_ours(c)]
    patching.unwrap(deepspeed, "initialize")
    for name in ("__init__", "save_checkpoint", "load_checkpoint"):
        patching.unwrap(deepspeed.DeepSpeedEngine, name)
    unwrap_deepspeed_adams()
