"""The self-check that "auto" rests on: it runs here in full, with its verdicts, for the kinds that users have."""

import torch

from adopt_hf.backends import selfcheck
from adopt_hf.backends.problem import Kind
from adopt_hf.state.formats import Format
from experiments.gpu.check import Check
from experiments.harness.fresh import one_line

FULL = Format(32, 256, False)
KINDS = [
    *(Kind(p, p, False, False, FULL) for p in (torch.float32, torch.bfloat16, torch.float16, torch.float64)),
    Kind(torch.float32, torch.float32, True, False, FULL),
    Kind(torch.float32, torch.float32, False, True, FULL),
    Kind(torch.float32, torch.float32, False, True, FULL, clipped=False),
    Kind(torch.float32, torch.float32, False, False, Format(8, 256, False)),
    Kind(torch.bfloat16, torch.bfloat16, False, False, Format(8, 256, True)),
    Kind(torch.bfloat16, torch.bfloat16, False, False, Format(32, 256, True)),
]


def self_check(check: Check) -> None:
    """Each kind is checked now, whatever verdict has been kept; the new one is kept on a GPU."""
    for kind in KINDS[:1] if check.dry else KINDS:
        if check.skipped_for_time(str(kind)):
            return
        if not check.dry:
            wrong = selfcheck.check(check.device, kind).wrong
            check.say(wrong is None, str(kind), wrong or "")
            continue
        try:
            with torch.no_grad():
                selfcheck.run(check.device, kind)
        except selfcheck.Wrong as error:
            check.say(False, str(kind), one_line(error)[:300])
        else:
            check.say(True, str(kind))
