"""The plugin for axolotl, with a stand-in for axolotl, which does not install beside the versions that are tested here.

The stand-in does what axolotl 0.19.0 does with a plugin. It imports the module, makes the class without arguments, and
calls `register(cfg)`. Then it makes TrainingArguments of the config, with `optim_args` written as text.
"""

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainingArguments

import adopt_hf
from adopt_hf.integrations.transformers import names

NAME = "adopt_hf.integrations.axolotl.AdoptPlugin"


class BasePlugin:
    def __init__(self) -> None:
        self.made = True

    def register(self, cfg: dict[str, Any]) -> None:
        raise AssertionError("is to be overridden")


@pytest.fixture
def load_plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("axolotl", "axolotl.integrations", "axolotl.integrations.base"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["axolotl.integrations.base"].BasePlugin = BasePlugin  # type: ignore[attr-defined]

    def load() -> Any:
        module, _, name = NAME.rpartition(".")
        return getattr(importlib.import_module(module), name)()

    yield load
    sys.modules.pop("adopt_hf.integrations.axolotl", None)


def arguments(cfg: dict[str, Any], folder: Path) -> TrainingArguments:
    """Do what axolotl's `_configure_optimizer` does with an optimizer that is none of its own."""
    optim_args = ",".join(f"{key}={value}" for key, value in cfg["optim_args"].items())
    return TrainingArguments(str(folder), optim=cfg["optimizer"], optim_args=optim_args, use_cpu=True, report_to="none")


def test_the_plugin_makes_the_name_mean_adopt(load_plugin: Any, registered: None, tmp_path: Path) -> None:
    adopt_hf.unregister()
    cfg = {"optimizer": "adopt", "optim_args": {"betas": [0.8, 0.95], "clip_exp": None, "beta2_warmup": False}}
    plugin = load_plugin()
    assert isinstance(plugin, BasePlugin)
    assert plugin.made
    plugin.register(cfg)
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments(cfg, tmp_path))
    assert cls is adopt_hf.ADOPTW
    assert (kwargs["betas"], kwargs["clip_exp"], kwargs["beta2_warmup"]) == ((0.8, 0.95), None, False)


@pytest.mark.parametrize("optimizer", [*names.NAMES, "adamw_torch", None])
def test_other_optimizers_are_left_alone(optimizer: str | None, load_plugin: Any) -> None:
    load_plugin().register({"optimizer": optimizer})


def test_axolotls_own_adopt_is_refused(load_plugin: Any) -> None:
    """It is another implementation, whose state and defaults differ."""
    message = f"`optimizer: adopt_adamw`, which is axolotl's own .* plugin {NAME}, .* Write `optimizer: adopt` "
    with pytest.raises(ValueError, match=message):
        load_plugin().register({"optimizer": "adopt_adamw"})
