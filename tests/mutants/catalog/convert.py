"""Faults of the conversion between AdamW's checkpoints and ADOPT's."""

from tests.mutants.mutant import Mutant

ADAMW, FOLDER = "adopt_hf/state/adamw.py", "adopt_hf/commands/convert/folder.py"
CHANGE, CONVERSION = "adopt_hf/commands/convert/change.py", "adopt_hf/commands/convert/conversion.py"
OF_ADAMW = ("tests/state/test_adamw.py",)
OF_CONVERSION = ("tests/commands/convert/test_conversion.py",)

MUTANTS = (
    Mutant(
        "convert-bias-left-in",
        ADAMW,
        "    wide = v.double() / (1.0 - beta2**t) if t > 0 else v.double()",
        "    wide = v.double()",
        OF_ADAMW,
        "ADOPT's first steps would be too long by the root of 1 / (1 - beta2^t)",
    ),
    Mutant(
        "convert-momentum-of-raw-gradients",
        ADAMW,
        "    return torch.where(new_v > 0, m.double() / root, 0.0).to(dtype), new_v",
        "    return torch.where(new_v > 0, m.double(), 0.0).to(dtype), new_v",
        OF_ADAMW,
        "the momentum would stand still for ten steps, or explode",
    ),
    Mutant(
        "convert-eps-of-adamw",
        ADAMW,
        'new = moments_of_adopt(_real(m), _real(v), t, numbers_of(theirs)[0][1], ours["eps"])',
        'new = moments_of_adopt(_real(m), _real(v), t, numbers_of(theirs)[0][1], theirs["eps"])',
        OF_ADAMW,
        "small gradients would get a momentum a hundred times too large",
    ),
    Mutant(
        "convert-warm-up-forgotten",
        ADAMW,
        "options = DEFAULTS | OF_ADOPTW | {",
        "options = DEFAULTS | {",
        OF_ADAMW,
        "the run would go on with another update than optim='adopt'",
    ),
    Mutant(
        "convert-diverged-taken",
        ADAMW,
        "        if not tensor.isfinite().all():",
        "        if tensor is None:",
        OF_CONVERSION,
        "a diverged state would be converted, and be NaN two steps later",
    ),
    Mutant(
        "convert-orphans-lost",
        CHANGE,
        "            if key not in pairs:",
        "            if key is None:",
        OF_CONVERSION,
        "a state of no param group would be a traceback",
    ),
    Mutant(
        "convert-adamws-betas-forgotten",
        CONVERSION,
        '        return groups if record["from"] == TITLES[to] else []',
        "        return []",
        OF_CONVERSION,
        "AdamW would come back with other options than it had",
    ),
    Mutant(
        "convert-unfinished-stays",
        FOLDER,
        "            shutil.rmtree(unfinished, ignore_errors=True)",
        "            pass",
        OF_CONVERSION,
        "half a checkpoint would be left behind by each error",
    ),
)
