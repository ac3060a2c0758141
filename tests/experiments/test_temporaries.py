"""The measurement of temporaries sees them, and sees none where there are none."""

import pytest

from experiments.harness import fresh
from experiments.step import temporaries

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not temporaries.measurable(), reason="reads the peak of the resident set from /proc"),
]


def grown(peer: str) -> int:
    return fresh.call(
        temporaries.on_cpu,
        temporaries.ENVIRONMENT,
        peer=peer,
        shape="flat-124m",
        scale=0.05,
        dtype="fp32",
        threads=1,
        seed=0,
        peers_path=None,
    )


def test_a_fused_step_has_none() -> None:
    assert grown("adamw-fused") == 0


def test_those_of_a_foreach_step_are_seen() -> None:
    """AdamW's denominator, as large as the parameters: 6.2M elements of 4 bytes."""
    assert grown("adamw-foreach") == pytest.approx(4 * 6.2e6, rel=0.1)


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'no such peer'"):
        grown("no such peer")
