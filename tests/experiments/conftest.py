"""Results made up by hand."""

from collections.abc import Callable
from typing import Any

import pytest

Result = dict[str, Any]


def same(value: float) -> dict[str, float]:
    return {"q1": value, "median": value, "q3": value}


def measured(ms: float, to_adamw: float, to_ours: float, **more: Any) -> dict[str, Any]:
    times = {"ms": same(ms), "wall_ms": same(ms), "cpu_ms": same(ms), "to_adamw": same(to_adamw)}
    return {"why": "", "notes": [], "to_ours": same(to_ours), **times, **more}


@pytest.fixture
def cpu_result() -> Result:
    """One case in which ADOPT meets some goals, misses some, and has some that were not measured."""
    rows = {
        "adopt_hf": measured(50, 0.991, 1.0, to_floor=same(1.2), temporaries_bytes=0, host_to_adamw=same(0.51)),
        "adamw-fused": measured(50.5, 1.0, 1.009, temporaries_bytes=0),
        "deepspeed-cpu-adam": {"why": "not installed"},
        "torch-adopt-foreach": measured(550, 11.0, 11.0),
        "torch-adopt-single": measured(350, 7.0, 7.04),
        "timm": {"why": "RuntimeError: planted | with a bar"},
        "heavyball": measured(500, 10.0, 10.0),
        "adopt_hf-8bit-1-in-256-unobserved": measured(70, 1.4, 1.4, to_dense=same(1.12)),
        "adopt_hf-8bit-half-unobserved": measured(400, 8.0, 8.0, to_dense=same(6.7)),
    }
    case = {
        "device": "cpu",
        "shape": "gpt2-124m",
        "dtype": "fp32",
        "threads": 2,
        "tensors": 148,
        "elements": 124_439_808,
        "bytes": 28 * 124_439_808,
        "copy_rate": None,
        "stream": {"ms": same(41.7)},
        "rows": rows,
    }
    return {
        "schema": 1,
        "benchmark": "step",
        "device": "cpu",
        "date": "2026-01-02",
        "command": "python -m experiments step",
        "seed": 3,
        "rounds": 9,
        "scale": 1.0,
        "environment": {
            "hardware": "Planted CPU",
            "cpu": "Planted CPU",
            "cores": 2,
            "gpu_memory_gib": None,
            "cuda": None,
            "python": "3.11.7",
            "versions": {"torch": "2.13.0"},
            "load": 0.1,
            "omp_wait_policy": None,
            "commit": "abc",
        },
        "cases": [case],
    }


@pytest.fixture
def cuda_result(cpu_result: Result) -> Result:
    """One large case and one small one on a GPU."""
    large = cpu_result["cases"][0] | {
        "device": "cuda",
        "copy_rate": 4e12,
        "stream": None,
        "tensors": 1,
        "elements": 10**9,
    }
    large["rows"] = {"adopt_hf": measured(8, 0.9, 1.0, copy_share=0.874, launches=2.0, temporaries_bytes=2**20)}
    small = large | {"shape": "lora-40m", "tensors": 448, "elements": 39_976_960}
    small["rows"] = {
        "adopt_hf": measured(0.5, 0.7, 1.0, copy_share=0.5, launches=4.0, temporaries_bytes=0, host_ms=same(0.4))
    }
    environment = cpu_result["environment"] | {"hardware": "Planted GPU", "gpu_memory_gib": 80, "cuda": "13.0"}
    return cpu_result | {"device": "cuda", "environment": environment, "cases": [large, small]}


@pytest.fixture
def rows_of() -> Callable[[str], list[list[str]]]:
    """The cells of a Markdown table."""
    return lambda table: [
        [cell.strip() for cell in line.strip("|").split(" |")] for line in table.splitlines() if line.startswith("|")
    ]
