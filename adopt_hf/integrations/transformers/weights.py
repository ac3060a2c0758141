"""Weights that the Trainer loads: an adapter keeps its precision, and a run on NVMe finds its best model."""

import glob
import os
from typing import Any

import torch

from adopt_hf.integrations import peft
from adopt_hf.integrations.deepspeed import ds_config
from adopt_hf.integrations.transformers import arguments, names
from adopt_hf.optimizer import is_adopt_optimizer


def _load(original: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """A method of the Trainer that loads weights: an adapter's precision is unchanged if ADOPT trains it.

    The best model is taken from its file if the optimizer is an ADOPT on NVMe.
    """
    if (
        original.__name__ == "_load_best_model"
        and trainer.is_deepspeed_enabled
        and ds_config.is_on_nvme(trainer.model_wrapped)
    ):
        return load_weights(trainer.model_wrapped, trainer.state.best_model_checkpoint)
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    if (
        trainer.args.optim in names._registered
        or is_adopt_optimizer(optimizer)
        or arguments._was_given_the_class(trainer)
    ):
        return peft.keep_precision(original, trainer, *args, **kwargs)
    return original(trainer, *args, **kwargs)


def load_weights(engine: Any, folder: str) -> None:
    """Load the weights that the Trainer has saved in `folder` into the model of a ZeRO 3 engine, one after the other.

    All processes call this. The float32 copies of the optimizer stay as they are: the weights are not trained further.

    Raises:
        FileNotFoundError: If there are no weights in the folder.
    """
    from deepspeed.runtime.zero import GatheredParameters
    from safetensors import safe_open

    files = sorted(glob.glob(os.path.join(glob.escape(folder), "model*.safetensors")))
    if not files:
        raise FileNotFoundError(
            f"{folder} has no model.safetensors: the Trainer saves it under ZeRO 3 if the DeepSpeed config has "
            '"stage3_gather_16bit_weights_on_model_save": true'
        )
    tensors = dict(engine.module.named_parameters(remove_duplicate=False)) | dict(engine.module.named_buffers())
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no dictionary
                with GatheredParameters([tensors[name]], modifier_rank=0), torch.no_grad():
                    if torch.distributed.get_rank() == 0 or not hasattr(tensors[name], "ds_id"):
                        tensors[name].copy_(file.get_tensor(name))
