"""ADOPT in `accelerate.Accelerator`: a prepared ADOPT stays ADOPT, also where DeepSpeed offloads it."""

import functools
import sys
from typing import Any

from adopt_hf.integrations import guard, patching
from adopt_hf.integrations.after_import import when_imported, when_imported_no_more
from adopt_hf.integrations.deepspeed.ds_config import forget_auto, is_adopt_block, is_auto, keep_adopt
from adopt_hf.optimizer import is_adopt_optimizer

ACCELERATE_MIN = "1.10"
FILLED = ("lr", "weight_decay")  # by Accelerate, from its DummyOptim


def register() -> None:
    """Look at what is prepared, once accelerate is imported. A second call does nothing."""
    when_imported("accelerate", _register_now)


def unregister() -> None:
    """Undo `register()`."""
    when_imported_no_more("accelerate", _unregister_now)


def _register_now() -> None:
    reason = accelerate_mismatch()
    wrap_accelerator_prepare(_prepare if reason is None else functools.partial(_refuse, reason))
    wrap_accelerated_load(guard.load_state_dict)
    guard.wrap_fsdp_load("accelerate.accelerator", guard.load_fsdp_optimizer)


def _unregister_now() -> None:
    unwrap_accelerator_prepare()
    unwrap_accelerated_load()
    guard.unwrap_fsdp_load("accelerate.accelerator")


def _prepare(original: Any, accelerator: Any, *args: Any, **kwargs: Any) -> Any:
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None:
        config = plugin.deepspeed_config
        if is_adopt_block(config):
            for arg in args:
                if type(arg).__name__ == "DummyOptim":
                    _fill(config["optimizer"], arg.kwargs)
            forget_auto(config, but=FILLED)
        if any(map(is_adopt_optimizer, args)):
            keep_adopt(config)
    result = original(accelerator, *args, **kwargs)
    for given, got in zip(args, result if isinstance(result, tuple) else (result,), strict=False):
        if is_adopt_optimizer(given):
            _check_kept(given, guard.innermost(got))
    return result


def _check_kept(given: Any, got: Any) -> None:
    """Raise RuntimeError if `prepare` made another optimizer `got` of the ADOPT `given`."""
    if not is_adopt_optimizer(got):
        raise RuntimeError(
            f"Accelerator.prepare was given {type(given).__name__} and made a {type(got).__name__} of it, which would "
            "train with another update: choose a launch mode or a precision of Accelerate that keeps the optimizer"
        )


def _refuse(reason: str, original: Any, accelerator: Any, *args: Any, **kwargs: Any) -> Any:
    """`Accelerator.prepare` of an Accelerate that is not known: ADOPT is an error, the rest is unchanged."""
    if any(map(is_adopt_optimizer, args)):
        raise ImportError(reason)
    return original(accelerator, *args, **kwargs)


def _fill(block: dict[str, Any], given: dict[str, Any]) -> None:
    """Write what a DummyOptim was given, beside `lr` and `weight_decay`, into the "optimizer" block, in place.

    Raises:
        ValueError: If the block says something else.
    """
    params = block["params"] = dict(block.get("params") or {})
    for name, value in given.items():
        written = params.get(name, "auto")
        if not is_auto(written) and _plain(written) != _plain(value):
            raise ValueError(
                f"DummyOptim was given {name}={value!r}, and optimizer.params of the DeepSpeed config has {written!r}: "
                f'write "{name}": "auto" there, or leave {name} out of DummyOptim'
            )
        params[name] = value


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)


# -- Accelerator.prepare: ADOPT stays ADOPT under ZeRO-Offload ---------------------------------------------------------
# Issue: where the DeepSpeed config offloads the optimizer, Accelerate replaces every optimizer that it does not know by
#        DeepSpeedCPUAdam, without a word.
# Why:   `prepare` is the public method in which it happens; in front of it the config can still say no.
# Remove when: Accelerate keeps the optimizer that it was given, or raises.


def accelerate_mismatch() -> str | None:
    """Why ADOPT cannot be kept by the imported Accelerate, or None."""
    import accelerate

    installed = getattr(accelerate, "__version__", "of unknown version")
    if "self" not in patching._parameters(getattr(accelerate, "Accelerator", None), "prepare"):
        return f"accelerate {installed} has changed Accelerator.prepare: adopt_hf must be updated"
    if patching._is_older(installed, ACCELERATE_MIN):
        return f"ADOPT needs accelerate {ACCELERATE_MIN} or later, installed is {installed}"
    return None


def wrap_accelerator_prepare(around: patching.Around) -> None:
    """Put `around` around `Accelerator.prepare`, if there is such a method."""
    import accelerate

    if hasattr(accelerate, "Accelerator") and hasattr(accelerate.Accelerator, "prepare"):
        patching.wrap(accelerate.Accelerator, "prepare", around)


def unwrap_accelerator_prepare() -> None:
    """Undo `wrap_accelerator_prepare`."""
    import accelerate

    if hasattr(accelerate, "Accelerator") and hasattr(accelerate.Accelerator, "prepare"):
        patching.unwrap(accelerate.Accelerator, "prepare")


# -- AcceleratedOptimizer.load_state_dict: the same, for classes with a method of their own ----------------------------
# Issue: bitsandbytes' optimizers do not call torch's method.
# Why:   the Trainer and Accelerate load every optimizer through this wrapper of theirs.
# Remove when: the one above is removed.


def wrap_accelerated_load(around: patching.Around) -> None:
    """Put `around` around `AcceleratedOptimizer.load_state_dict`, if there is such a method."""
    owner = _accelerated_optimizer()
    if owner is not None:
        patching.wrap(owner, "load_state_dict", around)


def unwrap_accelerated_load() -> None:
    """Undo `wrap_accelerated_load`."""
    owner = _accelerated_optimizer()
    if owner is not None:
        patching.unwrap(owner, "load_state_dict")


def _accelerated_optimizer() -> Any:
    """Return the class of which Accelerate makes prepared optimizers, or None for a stand-in of the package."""
    return getattr(sys.modules.get("accelerate.optimizer"), "AcceleratedOptimizer", None)
