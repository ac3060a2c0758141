"""Convert a saved state to the other optimizer: its param groups, and the state of each parameter."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from adopt_hf.hyperparameters import of_group
from adopt_hf.integrations.transformers import optim_args
from adopt_hf.state import adamw, loading, saved_groups

NAMES = {"adopt": "ADOPTW", "adamw": "AdamW"}  # the class that a mark names
# What a conversion back takes from the record of the first one.
REMEMBERED = {"adamw": ("betas", "eps"), "adopt": ("betas", "eps", "clip_exp", "beta2_warmup")}
OF_CHECKPOINT = ("lr", "weight_decay", "maximize")  # kept as they are
Group = Mapping[str, Any]


class Change(NamedTuple):
    """A conversion of groups and states.

    Args:
        to: A key of `NAMES`.
        given: Options that the user has written, which win.
        before: The param groups before an earlier conversion, of the optimizer that this one goes back to, if any.
        fused: AdamW's option, unless `before` has it. Under the Trainer's GradScaler a fused AdamW needs True.
    """

    to: str
    given: Mapping[str, Any]
    before: Sequence[Group]
    fused: bool | None = True

    def groups(self, saved: Sequence[Group]) -> list[dict[str, Any]]:
        """Return the new param groups for saved ones.

        Raises:
            ValueError: If they are not those of the other optimizer.
        """
        if not saved_groups.is_adopt(saved):
            adamw.check_groups(saved)
        if saved_groups.is_adopt(saved) == (self.to == "adopt"):
            raise ValueError(f"it is the state of {'ADOPT' if self.to == 'adopt' else 'AdamW'} already")
        before = self.before if len(self.before) == len(saved) else [{}] * len(saved)
        return [self._group(group, old) for group, old in zip(saved, before, strict=True)]

    def _group(self, group: Group, before: Group) -> dict[str, Any]:
        given = {name: before[name] for name in REMEMBERED[self.to] if name in before} | dict(self.given)
        if "beta1" in given or "beta2" in given:
            beta1, beta2 = given.get("betas", self._without_given(group)["betas"])
            given["betas"] = (given.pop("beta1", beta1), given.pop("beta2", beta2))
        if self.to == "adopt":
            return adamw.adopts_group(group, given)
        return adamw.adamws_group(group, given, fused=before.get("fused", self.fused))

    def _without_given(self, group: Group) -> dict[str, Any]:
        return self._replace(given={})._group(group, {})

    def state(self, entry: Mapping[str, Any], old: Group, new: Group, what: str) -> dict[str, Any]:
        """Return the new state of one parameter.

        Raises:
            ValueError: If it is not a state of the other optimizer.
        """
        convert = adamw.adopts_state if self.to == "adopt" else adamw.adamws_state
        return convert(entry, old, new, what)

    def state_dict(self, saved: Any, advance: Callable[[int], object]) -> dict[str, Any]:
        """Return what the other optimizer's `state_dict()` would return. The states in `saved` are used up.

        Args:
            saved: Of an optimizer, with positions or names in its param groups.
            advance: Told of the bytes of each state that is finished.
        """
        loading.check_structure(saved)
        groups = self.groups(saved["param_groups"])
        pairs = {key: pair for pair in zip(saved["param_groups"], groups, strict=True) for key in pair[0]["params"]}
        state: dict[Any, Any] = {}
        for key in list(saved["state"]):
            entry = saved["state"].pop(key)
            what = f"the state of parameter {key!r}"
            if key not in pairs:
                raise ValueError(f"{what} is there, and no param group has this parameter")
            if not isinstance(entry, Mapping):
                raise ValueError(f"{what} is of type {type(entry).__name__}, which must be a dict")
            state[key] = self.state(entry, *pairs[key], what) if entry else {}
            advance(size(entry))
        return {**saved, "state": state, "param_groups": groups}


def size(entry: Any) -> int:
    """Return the bytes of the tensors in a state."""
    if isinstance(entry, Tensor):
        return entry.numel() * entry.element_size()
    return sum(map(size, entry.values())) if isinstance(entry, Mapping) else 0


def given_options(to: str, text: str | None) -> dict[str, Any]:
    """Return the options that `--optim_args` sets.

    Raises:
        ValueError: If an option cannot be set.
    """
    update = {"beta1", "beta2", *of_group("update")} - {"betas", *OF_CHECKPOINT}
    allowed = sorted({"beta1", "beta2", "eps"} if to == "adamw" else update)
    given = optim_args.parse(text)
    for name in given:
        if name not in allowed:
            why = "is that of the checkpoint" if name in OF_CHECKPOINT else "is no matter of the saved state"
            raise ValueError(f"--optim_args sets {name}, which {why}: it can set {', '.join(allowed)}")
    return given
