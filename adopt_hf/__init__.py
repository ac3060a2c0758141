"""ADOPT, the optimizer (Taniguchi et al., NeurIPS 2024), for people who train with Hugging Face.

Importing this registers `optim="adopt"` with transformers, if that is installed.
"""

import importlib.util

from adopt_hf.optimizer import ADOPT
from adopt_hf.param_groups import param_groups

__version__ = "0.1.0"
__all__ = ["ADOPT", "__version__", "param_groups", "register", "trainer_kwargs", "unregister"]

if importlib.util.find_spec("transformers") is not None:
    from adopt_hf.integrations.trainer import register_on_import

    register_on_import()

from adopt_hf.integrations.trainer import register, trainer_kwargs, unregister
