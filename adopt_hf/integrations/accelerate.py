"""ADOPT in `accelerate.Accelerator`: a prepared ADOPT stays ADOPT, also if DeepSpeed offloads it."""

from typing import Any

from adopt_hf.identity import innermost, is_adopt_optimizer
from adopt_hf.integrations import guard, patching
from adopt_hf.integrations.after_import import when_imported, when_imported_no_more
from adopt_hf.integrations.deepspeed.ds_config import forget_auto, is_adopt_block, is_auto, keep_adopt
from adopt_hf.integrations.patching import Package, Patch


def prepare(original: Any, accelerator: Any, *args: Any, **kwargs: Any) -> Any:
    """Keep ADOPT in `Accelerator.prepare`, and complete its block of a DeepSpeed config from a DummyOptim.

    Raises:
        ValueError: If the DeepSpeed config asks for another optimizer, or its block contradicts the DummyOptim.
        RuntimeError: If Accelerate has made another optimizer of an ADOPT.
    """
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None:
        config = plugin.deepspeed_config
        if is_adopt_block(config):
            for arg in args:
                if type(arg).__name__ == "DummyOptim":
                    _fill(config["optimizer"], arg.kwargs)
            forget_auto(config)
        if any(map(is_adopt_optimizer, args)):
            keep_adopt(config)
    result = original(accelerator, *args, **kwargs)
    for given, got in zip(args, result if isinstance(result, tuple) else (result,), strict=False):
        inner = innermost(got)
        if is_adopt_optimizer(given) and not is_adopt_optimizer(inner):
            raise RuntimeError(
                f"Accelerator.prepare was given {type(given).__name__} and returned {type(inner).__name__}, which "
                "trains with another update: choose a launch mode or a precision with which Accelerate keeps the "
                "optimizer"
            )
    return result


def _fill(block: dict[str, Any], given: dict[str, Any]) -> None:
    """Write the keyword arguments of a DummyOptim into the "optimizer" block, in place.

    `lr` and `weight_decay` are not among them: Accelerate fills these in.

    Raises:
        ValueError: If the block has another value for one of them.
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


PREPARE = Patch(
    target="accelerate:Accelerator.prepare",
    around=prepare,
    takes="self",
    issue="If the DeepSpeed config offloads the optimizer, Accelerate replaces every optimizer that it does not know "
    "by DeepSpeedCPUAdam, without a warning.",
    why="This public method replaces the optimizer. Before it runs, the config can still forbid that.",
    remove_when="Accelerate keeps the optimizer that it is given, or raises an error.",
    asks=is_adopt_optimizer,
)
LOADS = (
    Patch(
        target="accelerate.optimizer:AcceleratedOptimizer.load_state_dict",
        around=guard.load_state_dict,
        takes="self",
        issue="Optimizers with a `load_state_dict` of their own, such as those of bitsandbytes, do not call torch's "
        "method.",
        why="The Trainer and Accelerate load every optimizer through this wrapper.",
        remove_when="The patch of torch's method is removed.",
        optional=True,
    ),
    Patch(
        target="accelerate.accelerator:load_fsdp_optimizer",
        why="`Accelerator.load_state` has imported this public function by name.",
        **guard.FSDP_LOAD,
    ),
)
PACKAGE = Package("accelerate", "1.10", "ADOPT", (PREPARE, *LOADS))


def register() -> None:
    """Patch Accelerate when it has been imported, now or later. A second call does nothing."""
    when_imported("accelerate", _install)


def unregister() -> None:
    """Undo `register()`."""
    when_imported_no_more("accelerate", lambda: patching.uninstall(PACKAGE.patches))


def _install() -> None:
    patching.install([PREPARE], PACKAGE.mismatch())
    patching.install(LOADS)
