"""ADOPT, the optimizer (Taniguchi et al., NeurIPS 2024), for people who train with Hugging Face.

Importing this package registers `optim="adopt"` with transformers, if transformers is installed. It also makes
Accelerate and DeepSpeed keep ADOPT where they would replace it. The import loads torch only: another package is patched
when it is imported.
"""

from typing import TYPE_CHECKING, Any

from adopt_hf.integrations import register, register_on_import, trainer_kwargs, unregister
from adopt_hf.layerwise import LayerwiseADOPT, LayerwiseADOPTW
from adopt_hf.monitor import Monitor
from adopt_hf.optimizer import ADOPT, ADOPTW
from adopt_hf.param_groups import param_groups
from adopt_hf.state.formats import keep_float32

if TYPE_CHECKING:
    from adopt_hf.integrations import AdoptMonitor

__version__ = "0.2.0"
__all__ = [
    "ADOPT",
    "ADOPTW",
    "AdoptMonitor",
    "LayerwiseADOPT",
    "LayerwiseADOPTW",
    "Monitor",
    "__version__",
    "keep_float32",
    "param_groups",
    "register",
    "trainer_kwargs",
    "unregister",
]

register_on_import()


def __getattr__(name: str) -> Any:
    """Import AdoptMonitor when it is asked for, because its base class imports transformers."""
    if name == "AdoptMonitor":
        from adopt_hf.integrations import AdoptMonitor

        return AdoptMonitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
