"""Apply `optim_args` to the param groups of a Trainer, or of a subclass that makes groups of its own.

`Trainer.create_optimizer` and such subclasses write `args.weight_decay` into the groups that they decay, and 0 into the
others. They make the groups before or after they ask for the optimizer's arguments, with the model or without. One of
these arguments is a `Regroup`, which the optimizer calls with the groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from adopt_hf.state import formats, quantization


@dataclass(frozen=True)
class Regroup:
    """A function that returns the param groups to use instead of given ones: the argument `regroup` of ADOPT."""

    weight_decay: tuple[float, float] | None = None  # of TrainingArguments and of `optim_args`, if they differ
    lr: tuple[float, float] | None = None  # of both, if they differ
    loraplus: list[dict[str, Any]] | None = None  # groups with the learning rates of LoRA+
    unseen_embeddings: bool = False  # 8-bit moments, and no model to find the embeddings in

    def __bool__(self) -> bool:
        return self != Regroup()

    def __call__(self, params: list[Any]) -> list[Any]:
        """Return new groups (or parameters) that have the numbers of `optim_args`.

        Raises:
            ValueError: If they cannot have them. The message names the line to change.
        """
        params = [_listed(group) for group in params]
        if self.unseen_embeddings:
            _refuse_unseen_embeddings(params)
        if self.loraplus is not None:
            _check_plain(params, self.loraplus)
            return self.loraplus
        groups = [group for group in params if isinstance(group, Mapping)]
        if self.lr is not None:
            _check_lr(groups, *self.lr)
        if self.weight_decay is None or not groups:  # parameters without groups have the optimizer's numbers
            return params
        return _decayed(groups, *self.weight_decay)


def _decayed(groups: list[Mapping[str, Any]], field: float, asked: float) -> list[dict[str, Any]]:
    """Return `groups` with the weight decay `asked` in those that hold the number of the field `weight_decay`.

    A field of 0 equals the 0 of the groups that are not decayed. Only the object tells them apart then: a decayed group
    holds the very object that TrainingArguments hold. If all groups hold it, they cannot be told apart.
    """
    numbers = [group.get("weight_decay", asked) for group in groups]
    from_field = [number == field and (field != 0 or number is field) for number in numbers]
    told_apart = field != 0 or len(groups) == 1 or not all(from_field)
    holds = any(number == asked != 0 for number in numbers) or all(number == asked for number in numbers)
    if not (told_apart and (any(from_field) or holds)):
        raise ValueError(
            f"optim_args: weight_decay={asked} cannot be given to param groups with weight_decay "
            f"{' and '.join(map(str, numbers))}: it cannot be seen which of them are the {field} of TrainingArguments. "
            f"Write weight_decay={asked} in TrainingArguments (--weight_decay {asked}) instead of in optim_args"
        )
    return [
        {**group, "weight_decay": asked} if replaced else dict(group)
        for group, replaced in zip(groups, from_field, strict=True)
    ]


def _check_lr(groups: list[Mapping[str, Any]], field: float, asked: float) -> None:
    if any(group.get("lr") == field for group in groups):
        raise ValueError(
            f"optim_args: lr={asked} does not reach a param group that was made with the learning rate of "
            f"TrainingArguments, {field}: write learning_rate={asked} in TrainingArguments (--learning_rate {asked}) "
            "instead of in optim_args"
        )


def _check_plain(params: list[Any], loraplus: list[dict[str, Any]]) -> None:
    """Raise ValueError if the groups that LoRA+'s replace hold options that would be lost."""
    options = {key for group in params if isinstance(group, Mapping) for key in group} - {"params", "weight_decay"}
    if options - {"param_names"}:
        raise ValueError(
            "optim_args: loraplus_lr_ratio makes the param groups, and those of this Trainer have their own "
            f"{', '.join(sorted(options))}: remove loraplus_lr_ratio from optim_args, or the setting that these groups "
            "are made for"
        )
    if {id(p) for p in _parameters(params)} != {id(p) for group in loraplus for p in group["params"]}:
        raise ValueError(
            "optim_args: loraplus_lr_ratio makes the param groups of all trainable parameters of the model, and the "
            "optimizer was given others: set requires_grad=False on those that are not to be trained, and give "
            "trainer_kwargs the model that is trained"
        )


def _refuse_unseen_embeddings(params: list[Any]) -> None:
    """Raise ValueError if a parameter may be an embedding and no parameter is marked as one."""
    parameters = _parameters(params)
    if any(getattr(p, formats.MARK, False) for p in parameters):
        return
    shapes = [tuple(getattr(p, "ds_shape", p.shape)) for p in parameters]  # ZeRO 3 leaves an empty tensor
    matrices = [s for s in shapes if len(s) == 2 and s[0] * s[1] >= quantization.SMALLEST_TENSOR]
    if matrices:
        raise ValueError(
            "the moments of embeddings stay in float32 where others have 8 bits, and without the model an embedding "
            f"cannot be told from another tensor of shape {matrices[0]}: write "
            "Trainer.get_optimizer_cls_and_kwargs(self.args, self.model), or trainer_kwargs(args, model), or mark the "
            "embeddings beforehand by adopt_hf.keep_float32([...])"
        )


def _parameters(params: list[Any]) -> list[Tensor]:
    members = [p for group in params for p in (group["params"] if isinstance(group, Mapping) else [group])]
    return [p[1] if isinstance(p, tuple) else p for p in members]  # (name, parameter)


def _listed(group: Any) -> Any:
    """Return `group` with a list of parameters, if it is a group. An iterator can be read only once."""
    if not isinstance(group, Mapping):
        return group
    params = group["params"]
    return {**group, "params": [params] if isinstance(params, Tensor) else list(params)}
