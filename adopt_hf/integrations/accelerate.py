"""ADOPT in `accelerate.Accelerator`: whoever prepares ADOPT trains with ADOPT, also where DeepSpeed offloads it."""

from typing import Any

from adopt_hf.integrations import compat
from adopt_hf.integrations.deepspeed import forget_auto, is_adopt_block, keep_adopt
from adopt_hf.optimizer import ADOPT


def register() -> None:
    """Look at what is prepared, once accelerate is imported. A second call does nothing."""
    compat.when_imported("accelerate", lambda: compat.wrap_accelerator_prepare(_prepare))


def unregister() -> None:
    """Undo `register()`."""
    compat.when_imported_no_more("accelerate")
    compat.when_imported("accelerate", compat.unwrap_accelerator_prepare)
    compat.when_imported_no_more("accelerate")


def _prepare(original: Any, accelerator: Any, *args: Any, **kwargs: Any) -> Any:
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None:
        config = plugin.deepspeed_config
        if is_adopt_block(config):
            forget_auto(config, but=("lr", "weight_decay"))  # those two Accelerate fills from its DummyOptim
        if any(isinstance(arg, ADOPT) for arg in args):
            keep_adopt(config)
    return original(accelerator, *args, **kwargs)
