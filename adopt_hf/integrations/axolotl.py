"""ADOPT in axolotl. Two lines of its YAML choose it, in every process that axolotl starts:

plugins: [adopt_hf.integrations.axolotl.AdoptPlugin]
optimizer: adopt
"""

from typing import Any

from axolotl.integrations.base import BasePlugin

from adopt_hf import integrations


class AdoptPlugin(BasePlugin):  # type: ignore[misc]
    """Make `optimizer: adopt` mean ADOPT. axolotl imports the plugins before it validates the config."""

    def register(self, cfg: Any) -> None:
        """Check what the config asks for.

        Args:
            cfg: The config as it was read, a mapping.

        Raises:
            ValueError: If it asks for axolotl's own implementation of ADOPT.
            ImportError: If transformers does not fit.
        """
        if cfg.get("optimizer") == "adopt_adamw":
            raise ValueError(
                "the config has `optimizer: adopt_adamw`, which is axolotl's own copy of the authors' code, and the "
                f"plugin {type(self).__module__}.{type(self).__qualname__}, which brings another implementation. Write "
                "`optimizer: adopt` for the plugin's, or remove the plugin"
            )
        integrations.register()
