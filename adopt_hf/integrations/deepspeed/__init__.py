"""ADOPT under DeepSpeed: by name in its config, in every ZeRO stage, offloaded, and never replaced.

A config that works, in Python:

    config = adopt_hf.integrations.deepspeed.config(stage=2, offload="optimizer")
    TrainingArguments(..., optim="adopt", deepspeed=config)            or DeepSpeedPlugin(hf_ds_config=config)
"""

from adopt_hf.integrations.deepspeed.ds_config import config

__all__ = ["config"]
