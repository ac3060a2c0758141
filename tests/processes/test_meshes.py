"""Device meshes (experts, tensors, 2-D, HSDP), by transformers' DistributedConfig and Accelerate's ParallelismConfig.

- Parity: the weights, the norms that are clipped and the monitor's figures are those of one process.
- Resume: the Accelerate loop goes on bit for bit, moments in 8 bits among them, and on another mesh to rounding. The
  Trainer cannot: transformers refuses to save the optimizer of a model that it has sharded, AdamW's too.
- Really ADOPT: the optimizer, its decay groups and rates, and moments that are sharded as their parameters are.

One launch trains on all meshes of its number of processes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3MoeForCausalLM

from experiments.launches.matrix import LOOPS
from experiments.launches.meshes import (
    ASYNC,
    AUTO_TP,
    HPZ,
    MESHES,
    NOT_HERE,
    NOT_PREPARED,
    PARITY,
    SHARE_OF_8_BITS,
    Mesh,
    Smoke,
    wanted,
)
from tests.processes import deepspeed_mesh_job, mesh_job
from tests.processes.conftest import torchrun
from tests.support.tensors import largest_difference

pytestmark = pytest.mark.distributed

RUNS = [pytest.param(mesh, run, id=f"{mesh}-{run}") for mesh in MESHES for run in mesh_job.runs_of(mesh, resumes=False)]
CELLS = [pytest.param(mesh, loop, id=f"{mesh}-{loop}") for mesh in MESHES for loop in mesh.loops]
RESUMED = [
    pytest.param(mesh, run, id=f"{mesh}-{run}") for mesh in MESHES for run in mesh_job.runs_of(mesh, resumes=True)
]
OTHER = next(mesh for mesh in MESHES if mesh.name == "fsdp, tp")
ROWS: list[dict[str, Any]] = []  # of the table


class Launches:
    """The folders of launches, each launched once. A launch that failed is not tried again."""

    def __init__(self, root: Path):
        self.root = root
        self.done: dict[str, Path | AssertionError] = {}

    def once(self, name: str, processes: int, *args: object) -> Path:
        if name not in self.done:
            try:
                torchrun(processes, "mesh_job.py", self.root / name, *args, timeout=600)
                self.done[name] = self.root / name
            except AssertionError as error:
                self.done[name] = error
        done = self.done[name]
        if isinstance(done, AssertionError):
            raise done
        return done

    def one(self) -> Path:
        return self.once("one", 1) / "one"

    def of(self, mesh: Mesh) -> Path:
        names = [other.name for other in MESHES if other.world_size == mesh.world_size]
        self.one()
        more = ("--failures",) if mesh.world_size == 2 else ()
        return self.once(str(mesh.world_size), mesh.world_size, *names, "--model", self.root / "one" / "model", *more)

    def resumed(self, mesh: Mesh) -> Path:
        names = [m.name for m in MESHES if m.world_size == mesh.world_size and mesh_job.runs_of(m, resumes=True)]
        model, resume = ("--model", self.root / "one" / "model"), ("--resume", self.of(mesh))
        if mesh.world_size == 2:
            resume += ("--other", self.of(OTHER) / OTHER.name / "accelerate" / "checkpoint")
        return self.once(f"{mesh.world_size} again", mesh.world_size, *names, *model, *resume)

    def failures(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = json.loads((self.of(MESHES[0]) / "failures.json").read_text())
        return found

    def start(self) -> dict[str, Tensor]:
        self.one()
        model = Qwen3MoeForCausalLM.from_pretrained(self.root / "one" / "model")
        return {name: p.detach() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> Launches:
    return Launches(tmp_path_factory.mktemp("meshes"))


@pytest.fixture(scope="module", autouse=True)
def kept(keep: Callable[[str, list[dict[str, Any]]], None]) -> Any:
    """Keep the rows of the table when all tests have run."""
    yield
    keep("mesh_modes", ROWS)


def note(mesh: Mesh | Smoke, loop: str, column: str, cell: object) -> None:
    ROWS.append({"mesh": mesh.name, "loop": loop, "column": column, "cell": cell})


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(folder / "weights.pt")
    return found


def ranks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return sum(((a[name] - b[name]) ** 2).sum().item() for name in a) ** 0.5


@pytest.mark.parametrize(("mesh", "run"), RUNS)
def test_the_weights_and_the_norms_are_those_of_one_process(mesh: Mesh, run: str, launches: Launches) -> None:
    here, one = launches.of(mesh) / mesh.name / run, launches.one() / run
    got, single = weights(here), weights(one)
    if run.startswith("8 bits"):  # other blocks and other random bits
        assert 0 < distance(got, single) < SHARE_OF_8_BITS * distance(launches.start(), single)
        return
    difference = largest_difference(got, single)
    assert difference < PARITY
    for rank in ranks(here):
        for name in ("losses", "norms"):
            if name == "losses" and "fsdp_size" in mesh.distributed and run == "accelerate":
                continue  # of a process's own rows
            assert rank[name] == pytest.approx(ranks(one)[0][name], rel=1e-5), name
    clipped = [norm > mesh_job.NORM for norm in ranks(one)[0]["norms"]]
    assert any(clipped) != (run == "lora plus")
    if run in LOOPS:
        note(mesh, run, "parity", difference)


def test_the_bound_tells_another_optimizer(launches: Launches) -> None:
    adopt, adamw = (weights(launches.one() / run) for run in ("trainer", "adamw"))
    assert largest_difference(adopt, adamw) > 1000 * PARITY


@pytest.mark.parametrize(("mesh", "run"), RUNS)
def test_really_adopt(mesh: Mesh, run: str, launches: Launches) -> None:
    seen, (one,) = ranks(launches.of(mesh) / mesh.name / run), ranks(launches.one() / run)
    assert len(seen) == mesh.world_size
    cut = set()
    for rank in seen:
        assert rank["world_size"] == mesh.world_size
        assert rank["optimizer"] == "adopt_hf.optimizer.ADOPTW"
        assert rank["steps"] == one["steps"]
        assert rank["decays"] == one["decays"]  # by the names of the parameters, however they are divided
        assert rank["rates"] == one["rates"]
        assert rank["decays"].keys() == rank["placements"].keys() == rank["of_moments"].keys()
        for name, placements in rank["placements"].items():
            assert rank["of_moments"][name] == [placements], name
            if rank["bits"][name] == 32:
                assert rank["local_moments"][name] == [rank["local"][name]] * 2, name
            if "Shard" in placements:
                cut.add(name)
                assert rank["local"][name] <= one["local"][name], name
    assert set(one["decays"].values()) == ({mesh_job.DECAY} if run == "lora plus" else {0.0, mesh_job.DECAY})
    assert len(set(one["rates"].values())) == (2 if run == "lora plus" else 1)
    assert any("experts" in name for name in cut) or run == "lora plus"
    if run in LOOPS:
        note(mesh, run, "really ADOPT", "yes")


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_the_trainer_divides_its_groups_by_mesh(mesh: Mesh, launches: Launches) -> None:
    """Several meshes are several param groups; the numbers of `optim_args` reach each of them, to the bit."""
    folder = launches.of(mesh) / mesh.name
    (rank, *_) = ranks(folder / "trainer")
    assert rank["groups"] == {"tp": 3, "ep, tp": 4, "hsdp": 2}.get(mesh.name, 3 if mesh.name != "ep, fsdp, tp" else 4)
    if mesh.world_size == 2:
        by_field, by_optim_args = (weights(folder / run) for run in ("trainer", "decay by optim_args"))
        assert all(torch.equal(by_field[name], by_optim_args[name]) for name in by_field)


@pytest.mark.parametrize(("mesh", "run"), RUNS)
def test_the_monitor_sees_whole_tensors(mesh: Mesh, run: str, launches: Launches) -> None:
    (one,) = ranks(launches.one() / run)
    steps = [str(step) for step in range(mesh_job.OBSERVED, mesh_job.STEPS + 1, mesh_job.OBSERVED)]
    rel = 0.02 if run.startswith("8 bits") else 1e-4
    for rank in ranks(launches.of(mesh) / mesh.name / run):
        assert list(rank["figures"]) == steps
        for step in steps:
            found, single = rank["figures"][step], one["figures"][step]
            for name in ("clipped", "update_to_weight", "rms_sqrt_v", "unobserved", "nonfinite_v"):
                # An element whose ratio is next to its bound may fall on either side.
                near = 1e-3 if name == "clipped" else 0.0
                assert found[f"adopt/{name}"] == pytest.approx(single[f"adopt/{name}"], rel=rel, abs=near), name
            if not run.startswith("8 bits"):
                assert found.keys() == single.keys()  # the layers that are clipped most


def test_shards_of_rows_have_8_bits(launches: Launches) -> None:
    """Also the strided ones, which FSDP2 makes of experts; shards of columns keep float32."""
    for mesh in MESHES:
        run = "8 bits by trainer" if "accelerate" not in mesh.loops else "8 bits"
        if run not in mesh_job.runs_of(mesh, resumes=False):
            continue
        (rank, *_) = ranks(launches.of(mesh) / mesh.name / run)
        has = {name for name, bits in rank["bits"].items() if bits == 8}
        experts = {name for name in rank["bits"] if "experts" in name}
        by_columns = "ep_size" not in mesh.distributed and "tp_size" in mesh.distributed
        assert has.isdisjoint(experts) if by_columns else experts <= has


@pytest.mark.parametrize(("mesh", "run"), RESUMED)
def test_resume(mesh: Mesh, run: str, launches: Launches) -> None:
    before, after = (ranks(folder / mesh.name / run) for folder in (launches.of(mesh), launches.resumed(mesh)))
    assert len(before) == len(after) == mesh.world_size
    for a, b in zip(before, after, strict=True):
        assert (a["started_at"], b["started_at"]) == (0, mesh_job.SAVED)
        for same in ("digest", "steps", "decays", "rates", "placements", "bits"):
            assert a[same] == b[same], same
    if run in LOOPS:
        note(mesh, run, "resume", "bit for bit")


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_transformers_refuses_to_save_the_optimizer(mesh: Mesh, launches: Launches) -> None:
    for rank in ranks(launches.of(mesh) / mesh.name / "trainer"):
        (refusal,) = rank["refusals"]
        assert "Resuming is not supported for models sharded at load time" in refusal
    note(mesh, "trainer", "resume", wanted(mesh, "trainer", "resume"))
    for loop in set(LOOPS) - set(mesh.loops):
        for column in ("parity", "resume", "really ADOPT"):
            note(mesh, loop, column, wanted(mesh, loop, column))


def test_a_checkpoint_goes_on_on_another_mesh(launches: Launches) -> None:
    """Saved by four processes on a 2-D mesh, and loaded by two with tensor parallelism."""
    mesh = MESHES[0]
    folder = launches.resumed(mesh) / mesh.name / "from another mesh"
    single = weights(launches.one() / "accelerate")
    assert largest_difference(weights(folder), single) < PARITY
    for rank in ranks(folder):
        assert (rank["started_at"], rank["steps"]) == (mesh_job.SAVED, [mesh_job.STEPS])


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("fsdp, tp by Accelerate", "ImportError: cannot import name 'ReplicateParallel'"),
        (NOT_PREPARED, "ValueError: Your model contains `DTensor` parameters, which is incompatible with DDP"),
        ("cp", "NotImplementedError: Operator aten._scaled_dot_product_flash_attention_for_cpu"),
        ("tp, LoRA of o_proj", "RuntimeError: shape '[32, 32]' is invalid for input of size"),
    ],
)
def test_what_is_skipped_fails_with_adamw_too(name: str, error: str, launches: Launches) -> None:
    found = launches.failures()
    assert set(NOT_HERE) | {NOT_PREPARED} == found.keys()
    assert found[name].keys() == {"AdamW", "ADOPTW"}
    assert all(text.startswith(error) for text in found[name].values()), found[name]


# -- smoke tests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_deepspeed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepspeed")
    torchrun(2, "deepspeed_mesh_job.py", folder)
    return folder


@pytest.mark.parametrize("mesh", [HPZ, AUTO_TP], ids=lambda mesh: mesh.name)
def test_deepspeeds_own_meshes(mesh: Smoke, by_deepspeed: Path) -> None:
    seen = [json.loads((by_deepspeed / f"{mesh.name}-rank{rank}.json").read_text()) for rank in range(2)]
    parameters = seen[0]["whole"]["parameters"]
    for rank in seen:
        whole, resumed = rank["whole"], rank["resumed"]
        assert whole["optimizer"] == "adopt_hf.optimizer.ADOPTW"
        assert whole["steps"] == [deepspeed_mesh_job.STEPS]
        assert whole["decays"] == [deepspeed_mesh_job.DECAY, 0.0]
        assert whole["moments"] < 0.6 * parameters  # the norms of AutoTP are whole
        assert whole["digest"] == resumed["digest"]
    assert seen[0]["whole"]["digest"] != seen[1]["whole"]["digest"]
    losses, single = seen[0]["whole"]["losses"], seen[0]["one"]
    difference = max(abs(a - b) for a, b in zip(losses, single, strict=True))
    assert difference < PARITY
    assert max(single) - min(single) > 1000 * PARITY
    note(mesh, "trainer", "parity", difference)
    note(mesh, "trainer", "resume", "bit for bit")
    note(mesh, "trainer", "really ADOPT", "yes")


def test_the_monitor_on_deepspeeds_own_meshes(by_deepspeed: Path) -> None:
    """Figures of whole tensors with hpZ, and a refusal by name with AutoTP."""
    for rank in range(2):
        of_hpz, of_auto_tp = (
            json.loads((by_deepspeed / f"{mesh.name}-rank{rank}.json").read_text()) for mesh in (HPZ, AUTO_TP)
        )
        single = of_hpz["figures_of_one"]
        assert single["adopt/clipped"] > 0
        assert of_hpz["whole"]["figures"] == pytest.approx(single, rel=1e-4)
        assert (
            "a Monitor cannot observe parameters that the tensor parallelism of DeepSpeed (AutoTP)"
            in (of_auto_tp["refusal"])
        )


def test_a_checkpoint_that_is_written_while_the_training_goes_on(tmp_path: Path) -> None:
    """`dcp.async_save` copies the state first: later steps do not change what is written."""
    found = []
    for name, args in (("whole", (0, 20, "--save", "--at", 10)), ("resumed", (10, 20, "--load"))):
        first, last, option, *more = args
        torchrun(2, "dcp_job.py", tmp_path / name, first, last, option, tmp_path / "checkpoint", *more)
        found.append(weights(tmp_path / name))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    note(ASYNC, "accelerate", "resume", "bit for bit")
