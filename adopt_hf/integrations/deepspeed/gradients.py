"""Facts that ADOPT needs from inside a DeepSpeed engine: which tensors have a gradient, and their step counts.

DeepSpeed shows flat partitions to an optimizer. For a tensor without a gradient, it fills in zeros or leaves an old
gradient there. Hooks on the model's own parameters restore what is lost, so that every stage trains as one process
does.
"""

import functools
from typing import Any

import torch

from adopt_hf.distributed import peers
from adopt_hf.distributed.flat import Partition, Stretch
from adopt_hf.distributed.sharding import is_cut_without_mesh
from adopt_hf.integrations.deepspeed import ds_config, internals
from adopt_hf.integrations.deepspeed.arrivals import Arrivals, Shared


def follow(engine: Any) -> None:
    """Let the ADOPT of a DeepSpeed engine see which tensors have a gradient, and count their steps one by one.

    All processes of the engine must call this.

    Raises:
        ValueError: If the state is on NVMe and has fewer than 32 bits, or another rank has other options.
    """
    optimizer = engine.basic_optimizer
    bits = {group["state_bits"] for group in optimizer.param_groups} - {32}
    if bits and ds_config.is_on_nvme(engine):
        raise ValueError(
            f"state_bits={min(bits)} is not possible with the optimizer on NVMe, because DeepSpeed reads all moments "
            'back as float32: write state_bits=32, or "device": "cpu" in "offload_optimizer"'
        )
    internals.universal_checkpoint_info(engine.module)  # creates it
    flat_groups = internals.zero_flat_groups(engine.optimizer)
    whole = internals.zero_whole_tensors(engine)
    arrivals = Arrivals(
        engine,
        [Shared(group.tensors, group.process_group) for group in flat_groups]
        + [Shared([model for model, _ in pairs], process_group) for process_group, pairs in whole],
    )
    engine.adopt_arrivals = arrivals
    peers.compare_engine(optimizer, arrivals.ranks)
    names = {p: name for name, p in engine.module.named_parameters()}
    for number, group in enumerate(flat_groups):
        partition = Partition(
            tensors=len(group.tensors),
            stretches=[Stretch(*stretch) for stretch in group.stretches],
            arrived=functools.partial(arrivals.take, number),
            total=functools.partial(arrivals.total, number),
            number=number * torch.distributed.get_world_size() + torch.distributed.get_rank(),
            names=[names.get(tensor, "") for tensor in group.tensors],
            is_cut=any(map(is_cut_without_mesh, group.tensors)),
        )
        optimizer.set_partition(group.flat, partition)

    for _, pairs in whole:
        optimizer.names.update((stepped, names[model]) for model, stepped in pairs if model in names)
    if whole:

        def forget_made_up_gradients(*unused: Any) -> None:
            for index, (_, pairs) in enumerate(whole, start=len(flat_groups)):
                for (_, stepped), there in zip(pairs, arrivals.take(index), strict=True):
                    if there is False:
                        stepped.grad = None

        optimizer.register_step_pre_hook(forget_made_up_gradients)

    internals.clear_used_gradients(engine.optimizer)
