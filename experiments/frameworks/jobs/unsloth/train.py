"""The lines for unsloth, which trains with TRL's trainers and needs a GPU."""

import unsloth  # noqa: F401
from trl import SFTConfig

# page:
import adopt_hf  # noqa: F401

args = SFTConfig("out", optim="adopt", optim_args="beta2=0.99")
# end of page
