"""The subprocesses of the integrations' tests."""

from tests.integrations.conftest import no_transformers, python, scripts, start

__all__ = ["no_transformers", "python", "scripts", "start"]
