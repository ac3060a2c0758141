"""Convert AdamW's state into ADOPT's, and back: the equations, the param groups, and the state of one parameter.

Letters as in `adopt_hf.algorithm`. AdamW keeps m_A = EMA of g and v_A = EMA of g*g, both from 0, and divides them at
use by 1 - beta1**t and 1 - beta2**t. ADOPT keeps m = EMA of u, the normalised gradient, and v, which starts at the
first g*g and needs no correction. With beta2 and t of AdamW, and eps of ADOPT:

    (a) v   = v_A / (1 - beta2**t)                   AdamW's bias correction, taken out once and for all
    (b) m   = m_A / max(sqrt(v), eps)                0 where v = 0: never observed
    (c) m_A = m * max(sqrt(v), eps)                  the inverse of (b)
    (d) v_A = v * (1 - beta2**t)                     the inverse of (a); at least `least` where v > 0

t, the learning rate, the weight decay and `maximize` are the same in both. As in (4) of the definition, sqrt(v) counts
as 0 where v = least and eps > 0. The m of (b) starts at 0 as ADOPT's own does. It is not clipped: AdamW's own next step
would be as long, and what is clipped cannot be converted back.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from adopt_hf.algorithm import least_of
from adopt_hf.hyperparameters import DEFAULTS, HYPERPARAMETERS, OF_ADOPTW, OPTIONS, check_betas, check_group
from adopt_hf.state import bitsandbytes, conversion, rounding, saved_groups, saved_parameter

ADAM: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8}  # the defaults of TrainingArguments and of torch
ADAMS_KEYS = {"lr", "betas", "eps", "weight_decay"}
MARKS = {"amsgrad", "bias_correction", *bitsandbytes.OPTIONS}  # one of them: torch's, apex' or DeepSpeed's, and 8-bit
OTHERS = {  # optimizer -> options that only its param groups have, for an error message that names it
    "Adadelta": {"rho"},
    "Adafactor of torch": {"beta2_decay"},
    "Adafactor": {"clip_threshold"},
    "Adagrad": {"lr_decay"},
    "ASGD": {"lambd"},
    "LAMB or NovoGrad": {"grad_averaging"},
    "LAMB": {"max_coeff"},
    "LBFGS": {"history_size"},
    "Lion": {"lr", "betas", "weight_decay"},
    "Muon": {"ns_steps"},
    "Muon with an auxiliary Adam": {"use_muon"},
    "NAdam": {"momentum_decay"},
    "Prodigy or D-Adaptation": {"d0"},
    "RMSprop": {"centered"},
    "Rprop": {"etas"},
    "Schedule-Free": {"weight_lr_power"},
    "SGD": {"momentum", "dampening"},
    "Adamax, RAdam or another relative of Adam": ADAMS_KEYS | {"differentiable"},
}
NEVER_ADAMS = {"momentum_decay", "grad_averaging", "max_coeff", "use_muon"}  # of groups that have all of AdamW's, too
VARIANTS = {"amsgrad": False, "bias_correction": True, "caution": False, "corrected_weight_decay": False}
ONLY_ADAMS = {"amsgrad", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
ONLY_ADAMS |= {"bias_correction", *bitsandbytes.OPTIONS}
ONLY_ADOPTS = {*OPTIONS, "float32_state", rounding.TENSOR_KEY}
NUMBERS = ("betas", "eps")  # the hyperparameters that differ in name only
ADAMS_STATE = {"step", *conversion.FLOATS}


# -- the equations -----------------------------------------------------------------------------------------------------


def moments_of_adopt(m: Tensor, v: Tensor, t: float, beta2: float, eps: float) -> tuple[Tensor, Tensor]:
    """Return ADOPT's (m, v) for AdamW's, by (a) and (b), in the dtype of `m`, float32 at least.

    Args:
        m: AdamW's m_A, real and finite.
        v: AdamW's v_A.
        t: The steps that both count.
        beta2: AdamW's.
        eps: ADOPT's.
    """
    dtype = torch.promote_types(m.dtype, torch.float32)
    wide = v.double() / (1.0 - beta2**t) if t > 0 else v.double()
    new_v = torch.where(v > 0, wide.to(dtype).clamp(min=least_of(dtype)), 0.0)  # an observed v does not become 0
    root = _root(new_v, eps)
    return torch.where(new_v > 0, m.double() / root, 0.0).to(dtype), new_v


def moments_of_adamw(m: Tensor, v: Tensor, t: float, beta2: float, eps: float) -> tuple[Tensor, Tensor]:
    """Return AdamW's (m_A, v_A) for ADOPT's, by (c) and (d). Args as of `moments_of_adopt`."""
    dtype = torch.promote_types(m.dtype, torch.float32)
    wide = v.double() * (1.0 - beta2**t)
    new_v = torch.where(v > 0, wide.to(dtype).clamp(min=least_of(dtype)), 0.0)
    return (m.double() * _root(v, eps)).to(dtype), new_v


def _root(v: Tensor, eps: float) -> Tensor:
    """Return max(sqrt(v), eps) in float64, which may be 0 where v = 0 and eps = 0."""
    least = least_of(v.dtype)
    root = v.double().sqrt()
    return torch.where(v == least, 0.0, root).clamp(min=eps) if eps >= least else root


# -- the param groups --------------------------------------------------------------------------------------------------


def adopts_group(group: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the param group of ADOPT for one of AdamW.

    It is that of `optim="adopt"` in the script that has trained with AdamW: betas and eps that equal Adam's defaults
    become ADOPT's, and others are kept. The seed of stochastic rounding is left out, so that a load keeps its own.

    Args:
        group: As AdamW's `state_dict()` has it, checked.
        given: Options of ADOPT that win.
    """
    (beta1, beta2), eps = numbers_of(group)
    options = DEFAULTS | OF_ADOPTW | {"decouple": group.get("decoupled_weight_decay", True)}
    options["betas"] = (beta1, options["betas"][1] if beta2 == ADAM["betas"][1] else beta2)
    options["eps"] = options["eps"] if eps == ADAM["eps"] else eps
    kept = {name: value for name, value in group.items() if name not in ONLY_ADAMS | {"step"}}
    options |= {name: kept[name] for name in ("lr", "weight_decay", "maximize") if name in kept} | dict(given)
    del options["seed"]
    return kept | check_group(options)


def adamws_group(group: Mapping[str, Any], given: Mapping[str, Any], fused: bool | None) -> dict[str, Any]:
    """Return the param group of torch's AdamW for one of ADOPT, also for torch-adopt's and timm's.

    Args:
        group: As ADOPT's `state_dict()` has it.
        given: `betas` and `eps` of AdamW, where others than those that `adopts_group` has come from.
        fused: The option of AdamW.

    Raises:
        ValueError: If the group is not ADOPT's, or decays in a way that AdamW does not know.
    """
    known = saved_groups.translated_group(group, DEFAULTS)
    if known["weight_decay"] and not known["decouple"]:
        raise ValueError(
            f"its weight decay of {known['weight_decay']:g} is coupled (decouple=False), and AdamW's is not: only a "
            "checkpoint with decouple=True or without weight decay can become one of AdamW"
        )
    own = torch.optim.AdamW([torch.zeros(1, dtype=torch.float32)]).param_groups[0]
    (beta1, beta2), eps = known["betas"], known["eps"]
    own["betas"] = (beta1, ADAM["betas"][1] if beta2 == DEFAULTS["betas"][1] else beta2)
    own["eps"] = ADAM["eps"] if eps == DEFAULTS["eps"] else eps
    own |= {name: known[name] for name in ("lr", "weight_decay", "maximize")} | {"fused": fused}
    kept = {name: value for name, value in known.items() if name not in ONLY_ADOPTS}
    new = own | kept | dict(given)
    betas, eps = numbers_of(new)
    return new | {"betas": betas, "eps": eps}


def check_groups(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError if the param groups of a saved state are not AdamW's, or have an option that ADOPT has not."""
    for group in groups:
        _check_group(group)


def _check_group(group: Mapping[str, Any]) -> None:
    if not group.keys() >= ADAMS_KEYS or not MARKS & group.keys() or NEVER_ADAMS & group.keys():
        keys = ", ".join(sorted(str(key) for key in group if key != "params")) or "no options"
        name = _name_of_other(group)
        raise ValueError(
            f"it is {f'the state of {name}, not of AdamW' if name else 'not the state of AdamW'}: its param groups "
            f"have {keys}. Those that can be converted are AdamW's and Adam's of torch, also fused, bitsandbytes' in "
            "8 bits, and ADOPT's"
        )
    for name, expected in VARIANTS.items():
        value = _scalar(group.get(name, expected))
        if not isinstance(value, bool | int | None):
            raise ValueError(f"it has {name}={value!r:.100}, which must be True or False")
        if bool(value) != expected:
            raise ValueError(f"it was trained with {name}={value!r}, which ADOPT does not have")
    betas = group["betas"]
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        raise ValueError(f"it has betas={betas!r:.100}, and AdamW has two: it is the state of another optimizer")
    numbers_of(group)


def _name_of_other(group: Mapping[str, Any]) -> str | None:
    """Return the name of the optimizer that has such a param group, where it is known."""
    for name, keys in OTHERS.items():
        if group.keys() >= keys and not (name == "Lion" and "eps" in group):
            return name
    return None


def numbers_of(group: Mapping[str, Any]) -> tuple[tuple[float, float], float]:
    """Return the betas and the eps of a param group of AdamW, of which torch also takes tensors, as plain numbers.

    Raises:
        ValueError: If they are not numbers of their ranges.
    """
    betas = group["betas"]
    if isinstance(betas, list | tuple):
        betas = [_scalar(beta) for beta in betas]
    return check_betas(betas), float(HYPERPARAMETERS["eps"].check("eps", _scalar(group["eps"])))


def _scalar(value: Any) -> Any:
    """Return a tensor of one element as a number, and another value in Python's own types."""
    if type(value) is Tensor and value.numel() == 1 and not value.is_meta and value.layout == torch.strided:
        number = value.item()
        return float(f"{number:.7g}") if value.dtype == torch.float32 else number  # 0.999, not 0.99900001
    return saved_groups.plain(value)


# -- the state of a parameter ------------------------------------------------------------------------------------------


def adopts_state(
    state: Mapping[str, Any], theirs: Mapping[str, Any], ours: Mapping[str, Any], what: str
) -> dict[str, Any]:
    """Return the state of one parameter as ADOPT keeps it, with moments in float32 or more.

    Args:
        state: AdamW's.
        theirs: The param group of AdamW.
        ours: That of ADOPT.
        what: The parameter, for error messages.

    Raises:
        ValueError: If the state is not AdamW's, or holds numbers that no state can have.
    """
    floats = bitsandbytes.as_floats(state, what)
    extra = floats.keys() - ADAMS_STATE
    if extra or not floats.keys() >= {*conversion.FLOATS}:
        has = ", ".join(sorted(map(str, state)))
        raise ValueError(f"{what} has {has}: AdamW's has step, exp_avg and exp_avg_sq, and nothing else")
    t = saved_parameter.step_count(f"{what} has step", floats.get("step", theirs.get("step")))
    m, v = _checked(floats, t, what)
    new = moments_of_adopt(_real(m), _real(v), t, numbers_of(theirs)[0][1], ours["eps"])
    return _state(t, new, m.is_complex())


def adamws_state(
    state: Mapping[str, Any], theirs: Mapping[str, Any], ours: Mapping[str, Any], what: str
) -> dict[str, Any]:
    """Return the state of one parameter as AdamW keeps it. Args as of `adopts_state`, with the roles exchanged.

    Raises:
        ValueError: If the state is not ADOPT's, or holds numbers that no state can have.
    """
    coded = bool(state.keys() & set(conversion.CODES))
    wanted = {"step", *(conversion.CODES if coded else conversion.FLOATS)}
    if state.keys() != wanted:
        has = ", ".join(sorted(map(str, state)))
        raise ValueError(f"{what} has {has}: ADOPT's has {', '.join(sorted(wanted))}, and nothing else")
    t = saved_parameter.step_count(f"{what} has step", state["step"])
    floats: Mapping[str, Any] = state
    if coded:
        block_size = theirs.get("block_size", DEFAULTS["block_size"])
        conversion.check_scales(state["exp_avg_codes"], dict(state), None, block_size, what)
        floats = dict(zip(conversion.FLOATS, conversion.as_floats(dict(state), None, block_size), strict=True))
    m, v = _checked(floats, t, what)
    eps = theirs.get("eps", DEFAULTS["eps"])
    new = moments_of_adamw(_real(m), _real(v), t, ours["betas"][1], eps)
    return _state(t, new, m.is_complex())


def _checked(state: Mapping[str, Any], t: float, what: str) -> tuple[Tensor, Tensor]:
    """Return both moments of a state, or raise ValueError if they cannot be those of an optimizer."""
    for name in conversion.FLOATS:
        tensor = state[name]
        if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(f"{what} has {name} of type {type(tensor).__name__}, which must be a plain tensor")
        if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.element_size() == 1:
            raise ValueError(
                f"{what} has {name} of {tensor.dtype}, which must be a floating-point tensor of 16 bits or more"
            )
        if not tensor.isfinite().all():
            raise ValueError(
                f"{what} has {name} with numbers that are not finite: the run has diverged, so convert an earlier "
                "checkpoint"
            )
    m, v = (state[name].detach() for name in conversion.FLOATS)  # differentiable=True leaves a graph
    if m.shape != v.shape or m.is_complex() != v.is_complex():
        raise ValueError(f"{what} has moments of {tuple(m.shape)} and {tuple(v.shape)} elements: they must be alike")
    if (_real(v) < 0).any():
        raise ValueError(f"{what} has exp_avg_sq with numbers below 0, which a mean of squares cannot have")
    if t == 0 and v.any():
        raise ValueError(f"{what} has step 0 and exp_avg_sq that is not 0: one of the two is wrong")
    return m, v


def _real(t: Tensor) -> Tensor:
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def _state(t: float, moments: tuple[Tensor, Tensor], is_complex: bool) -> dict[str, Any]:
    tensors = [torch.view_as_complex(part) if is_complex else part for part in moments]
    step = torch.tensor(t, dtype=torch.float32, device="cpu")
    return {"step": step, **dict(zip(conversion.FLOATS, tensors, strict=True))}
