"""The definition itself, tensor by tensor: slow, and right by inspection. `torch.compile` fuses it."""

from collections.abc import Sequence

import torch

from adopt_hf import quantization
from adopt_hf.algorithm import capturable_scalars, update
from adopt_hf.backends.bucket import Bucket, CapturableBucket, RoundedBucket
from adopt_hf.quantization import Quantized
from adopt_hf.rounding import random_bits, to_bfloat16


def step(buckets: Sequence[Bucket]) -> None:
    """Update parameters and moments in place (equations (1) to (7)); gradients are only read."""
    for params, grads, exp_avgs, exp_avg_sqs, scalars, _ in buckets:
        for param, grad, exp_avg, exp_avg_sq in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
            theta, m, v = update(param, grad, exp_avg, exp_avg_sq, scalars)
            param.copy_(theta)
            exp_avg.copy_(m)
            exp_avg_sq.copy_(v)


def step_capturable(buckets: Sequence[CapturableBucket]) -> None:
    """The same with (8), decided tensor by tensor on the device; `steps` are counted in place."""
    for params, grads, exp_avgs, exp_avg_sqs, steps, group, grad_scale, found_inf, agree, _ in buckets:
        observed = torch.stack([g.ne(0).any() for g in grads]).int()
        if agree is not None:
            agree(observed)
        for i, t in enumerate(steps):
            go = (observed[i] > 0) | (t > 0)  # (8)
            if found_inf is not None:
                go &= found_inf.reshape(()) == 0
            updated = update(params[i], grads[i], exp_avgs[i], exp_avg_sqs[i], capturable_scalars(group, t, grad_scale))
            for old, new in zip((params[i], exp_avgs[i], exp_avg_sqs[i]), updated, strict=True):
                old.copy_(torch.where(go, new, old))
            t += go


def step_rounded(buckets: Sequence[RoundedBucket]) -> None:
    """The same with results that are rounded as the bucket's storage says."""
    for params, grads, exp_avgs, exp_avg_sqs, scales, keys, storage, scalars, _ in buckets:
        for i, (param, grad, exp_avg, exp_avg_sq) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
            if param.numel() == 0:
                continue
            random, more = (bits.view(param.shape) for bits in random_bits(keys[i], param.numel(), param.device))
            if storage.bits == 8:
                old = quantization.dequantize(Quantized(exp_avg, exp_avg_sq, scales[i]), storage.block_size)
            else:
                old = (exp_avg.float(), exp_avg_sq.float())
            theta, m, v = update(param, grad, *old, scalars)
            param.copy_(to_bfloat16(theta, more) if storage.round_param else theta)
            if storage.bits == 8:
                codes = quantization.encode(m, v, scales[i], scalars.beta2, storage.block_size, random)
                for there, new in zip((exp_avg, exp_avg_sq, scales[i]), codes, strict=True):
                    there.copy_(new)
            elif storage.bits == 16:
                exp_avg.copy_(to_bfloat16(m, random))
                exp_avg_sq.copy_(to_bfloat16(v, random >> 16, above_zero=True))
            else:
                exp_avg.copy_(m)
                exp_avg_sq.copy_(v)
