"""The text between the markers of docs/evidence.md. experiments.paper.evidence also draws its plots."""

from collections.abc import Callable


def results() -> str:
    """Return the claims, and each experiment with its table."""
    from experiments.harness import runs
    from experiments.paper import evidence, experiments

    found = [(module, runs.kept(module.NAME)) for module in experiments.load()]
    return evidence.text(found, evidence.PAGE.with_suffix("").name)


TEXTS: dict[str, Callable[[], str]] = {"results": results}
