"""What the jobs of the meshes share: the model, its data, and how Accelerate is told of a mesh."""

import argparse
import contextlib
import os
from collections.abc import Iterator

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.distributed import DistributedConfig

from experiments.launches.meshes import Mesh
from tests.processes.job import CpuAccelerator

STEPS, SAVED, OBSERVED = 12, 6, 4
GLOBAL_BATCH = 8
RATE, DECAY, NORM = 1e-2, 0.1, 1.0


class MeshAccelerator(CpuAccelerator):
    """Accelerate 1.15 accepts a ParallelismConfig for processes with GPUs only; these say that they have some."""

    @property
    def multi_device(self) -> bool:
        return self.use_distributed


def config() -> Qwen3MoeConfig:
    """Matrices of all ways to be cut: rows, columns, and strided rows and columns."""
    return Qwen3MoeConfig(
        vocab_size=61,
        hidden_size=32,
        moe_intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def make_data() -> list[dict[str, Tensor]]:
    """The rows of the vocabulary's upper half come late: their embeddings have exactly zero gradients until then."""
    generator = torch.Generator().manual_seed(1)
    early = torch.randint(30, (GLOBAL_BATCH * 3, 12), generator=generator)
    late = torch.randint(61, (GLOBAL_BATCH * STEPS, 12), generator=generator)
    return [{"input_ids": row, "labels": row} for row in torch.cat([early, late])]


def make_model(options: argparse.Namespace, mesh: Mesh | None, sharded: bool = True) -> nn.Module:
    """Return the model, sharded as it is loaded if there is a mesh."""
    more = {"distributed_config": DistributedConfig(**mesh.distributed)} if mesh is not None and sharded else {}
    model: nn.Module = Qwen3MoeForCausalLM.from_pretrained(options.model, **more)
    return model


def per_process(mesh: Mesh | None) -> int:
    """Return how many rows of a batch a process has; those of a tensor parallel group have the same rows."""
    sizes = {} if mesh is None else mesh.distributed
    return GLOBAL_BATCH // (sizes.get("fsdp_size", 1) * sizes.get("dp_replicate_size", 1))


@contextlib.contextmanager
def sharding(is_on: bool) -> Iterator[None]:
    """Tell Accelerate, in the block, to shard the model by FSDP2."""
    variables = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    }
    if is_on:
        os.environ |= variables
    try:
        yield
    finally:
        if is_on:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
            for name in variables:
                del os.environ[name]


def forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=False)
    GradientState._reset_state()
