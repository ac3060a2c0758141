"""One process of a run that measures optimizer state: `memory_job.py FOLDER` behind torchrun writes FOLDER/rankN.json.

In each mode a small model of odd shapes does two steps of ADOPT; then the bytes are counted from the storages of what
the optimizer keeps.
"""

import adopt_hf  # first, so that DeepSpeed knows ADOPT

# ruff: isort: split
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from adopt_hf.integrations.deepspeed import config
from experiments.launches.memory_model import Model
from tests.support.processes import end, without_extensions

without_extensions()


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """The two param groups, decayed and not, that every mode starts from."""
    return adopt_hf.param_groups(model, weight_decay=0.1)


def loss_of(model: nn.Module) -> Tensor:
    tokens = torch.arange(12).reshape(2, 6)
    return nn.functional.cross_entropy(model(tokens).float().flatten(0, 1), tokens.flatten())


# -- what is counted ---------------------------------------------------------------------------------------------------


def nbytes(tensors: list[Tensor]) -> int:
    """Bytes of the storages that these tensors use on this process, each storage once."""
    return sum({s.data_ptr(): s.nbytes() for s in map(storage, tensors) if s.nbytes()}.values())


def storage(tensor: Tensor) -> torch.UntypedStorage:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()


def measured(optimizer: adopt_hf.ADOPT, model: nn.Module) -> dict[str, Any]:
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    of_model = {storage(tensor).data_ptr() for p in model.parameters() for tensor in (p, getattr(p, "ds_tensor", p))}
    copies = [p for p in optimizer.state if storage(p).data_ptr() not in of_model]
    return {
        "moments": nbytes(moments),
        "master": nbytes(copies),
        "dtypes": sorted({str(tensor.dtype) for tensor in [*moments, *copies]}),
    }


# -- the modes ---------------------------------------------------------------------------------------------------------


def with_torch(mode: str, precision: str) -> dict[str, Any]:
    model = Model()
    wrapped: nn.Module = model
    if mode == "fsdp":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if precision == "bf16" else None)
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        fully_shard(model.layers, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
    elif mode == "fsdp1":
        model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
        wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    else:
        model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
        wrapped = DistributedDataParallel(model)
    optimizer = adopt_hf.ADOPT(groups_of(model))
    for _ in range(2):
        loss_of(wrapped).backward()
        optimizer.step()
        optimizer.zero_grad()
    return measured(optimizer, model)


def with_deepspeed(stage: int, precision: str, offload: str | None) -> dict[str, Any]:
    numbers = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0}
    settings = config(stage, offload=offload, precision=precision, **numbers)
    for name in ("offload_optimizer", "offload_param"):
        if name in settings["zero_optimization"]:
            settings["zero_optimization"][name]["pin_memory"] = False  # there is no GPU to pin it for
    model = Model()
    optimizer = adopt_hf.ADOPT(groups_of(model))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    for _ in range(2):
        engine.backward(loss_of(engine))
        engine.step()
    result = measured(optimizer, model)
    engine.destroy()
    return result


def main(folder: Path) -> None:
    deepspeed.init_distributed("gloo", verbose=False)
    results = []
    for precision in ("fp32", "bf16"):
        for mode in ("ddp", "fsdp", "fsdp1"):
            results.append({"mode": mode, "precision": precision, "offload": None} | with_torch(mode, precision))
        for stage, offload in [
            *((stage, None) for stage in (0, 1, 2, 3)),
            *((stage, "optimizer") for stage in (1, 2, 3)),
            (3, "parameters"),
        ]:
            case = {"mode": f"zero{stage}", "precision": precision, "offload": offload}
            results.append(case | with_deepspeed(stage, precision, offload))
            gc.collect()
    shapes = [[list(p.shape) for p in group["params"]] for group in groups_of(Model())]
    report = {"world_size": torch.distributed.get_world_size(), "shapes": shapes, "results": results}
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end()
