"""The definition itself, tensor by tensor: slow, and right by inspection. `torch.compile` fuses it."""

from torch import Tensor

from adopt_hf.algorithm import StepScalars, update


def step(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], s: StepScalars
) -> None:
    """Update `params`, `exp_avgs` and `exp_avg_sqs` in place (equations (1) to (7)); `grads` are only read."""
    for param, grad, exp_avg, exp_avg_sq in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        theta, m, v = update(param, grad, exp_avg, exp_avg_sq, s)
        param.copy_(theta)
        exp_avg.copy_(m)
        exp_avg_sq.copy_(v)
