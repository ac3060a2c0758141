"""Read the 8-bit moments of bitsandbytes' Adam and AdamW from a saved state. The package itself is not needed.

A moment is `state1` or `state2`: codes into the 256 numbers of `qmap1` or `qmap2`, multiplied by the `absmax1` or
`absmax2` of each block of consecutive elements. A small tensor has its moments in floating point, under the same names.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adopt_hf.state import conversion

OPTIONS = ("alpha", "t_alpha", "t_beta3")  # of bitsandbytes' param groups, without a meaning for Adam
WRAPPED = "__bnb_optimizer_quant_state__"  # the key that hides the codes from FSDP
BLOCK_SIZES = (256, 2048)  # since version 0.44, and before


def as_floats(state: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return a state with `exp_avg` and `exp_avg_sq` in floating point; one of another kind as it is.

    Raises:
        ValueError: If the codes do not belong together.
    """
    wrapped = state.get(WRAPPED, {})
    if not isinstance(wrapped, Mapping):
        raise ValueError(f"{what} has {WRAPPED} of type {type(wrapped).__name__}, which must be a dict")
    flat = {name: value for name, value in state.items() if name != WRAPPED} | dict(wrapped)
    if "state1" not in flat:
        return flat
    for number, name in enumerate(conversion.FLOATS, 1):
        codes, names = flat.pop(f"state{number}", None), (f"qmap{number}", f"absmax{number}")
        if codes is None:
            raise ValueError(f"{what} has no state{number}: it is not the state of bitsandbytes' Adam or AdamW")
        qmap, absmax = (flat.pop(key, None) for key in names)
        is_coded = isinstance(codes, Tensor) and not codes.is_floating_point()
        flat[name] = _decoded(codes, qmap, absmax, what) if is_coded else codes
    return flat


def _decoded(codes: Tensor, qmap: Any, absmax: Any, what: str) -> Tensor:
    are_plain = all(
        isinstance(t, Tensor) and t.layout == torch.strided and not t.is_meta for t in (codes, qmap, absmax)
    )
    blocks = absmax.numel() if are_plain else 0
    block_size = next((size for size in BLOCK_SIZES if -(-codes.numel() // size) == blocks), None)
    if not are_plain or codes.dtype != torch.uint8 or qmap.numel() != 256 or block_size is None:
        raise ValueError(
            f"{what} has 8-bit moments of bitsandbytes that are not a code for each element, 256 numbers, and a scale "
            f"for every {' or '.join(map(str, BLOCK_SIZES))} elements"
        )
    scale = absmax.reshape(-1).repeat_interleave(block_size)[: codes.numel()].view(codes.shape)
    found: Tensor = qmap.float()[codes.long()] * scale
    return found
