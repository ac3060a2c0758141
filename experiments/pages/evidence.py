"""What stands between the markers of docs/evidence.md; experiments.paper.evidence draws its plots as well."""

from collections.abc import Callable


def results() -> str:
    """The claims, and each experiment with its table."""
    from experiments.harness import runs
    from experiments.paper import evidence, experiments

    found = [(module, runs.kept(module.NAME)) for module in experiments.load()]
    return evidence.text(found, evidence.PAGE.with_suffix("").name)


TEXTS: dict[str, Callable[[], str]] = {"results": results}
