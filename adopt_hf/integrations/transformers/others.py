"""Another optimizer in a Trainer whose training arguments ask for ADOPT."""

import logging
from typing import TYPE_CHECKING, Any

from adopt_hf.identity import innermost, is_adopt_optimizer
from adopt_hf.integrations.transformers import names

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger("adopt_hf")
_warned = False


def warn_of_another(optimizer: Any, args: "TrainingArguments") -> None:
    """Warn, once a process, if `optim` is a name of ADOPT and the Trainer steps with another optimizer.

    The Trainer ignores `optim` if it is given an optimizer, or if a subclass makes one, as LLaMA-Factory's does for
    `use_muon`.
    """
    global _warned
    inner = innermost(optimizer)
    if _warned or inner is None or args.optim not in names.registered or is_adopt_optimizer(inner):
        return
    _warned = True
    logger.warning(
        "optim=%r was given, and the Trainer trains with %s.%s: the Trainer was given that optimizer, or a subclass of "
        "it made it, so `optim` has no effect. To train with ADOPT remove the option or the argument that asks for the "
        "other optimizer",
        str(getattr(args.optim, "value", args.optim)),
        type(inner).__module__,
        type(inner).__qualname__,
    )
