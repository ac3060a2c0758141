"""The groups of optimizers that are measured together if all of them do not fit into memory."""

from collections.abc import Sequence

TEMPORARIES = 3  # the reference needs the most: 29 bytes an element of one flat tensor, where it holds 12


def groups(names: Sequence[str], anchors: Sequence[str], each: int, shared: int, available: int) -> list[list[str]]:
    """Divide `names` into groups that fit. Each has all `anchors`, which the others are compared to.

    Args:
        each: The bytes that one optimizer holds. `TEMPORARIES` times as much stay free for the one that steps.
        shared: The bytes that are held once.
        available: The free bytes. A group has one name in addition to the anchors even if that is too much.
    """
    others = [name for name in names if name not in anchors]
    fit = (available - shared) // each - len(anchors) - TEMPORARIES if each else len(others)
    size = max(1, fit)
    return [[*anchors, *others[i : i + size]] for i in range(0, max(len(others), 1), size)]
