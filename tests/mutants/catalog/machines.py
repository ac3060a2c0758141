"""Faults of runs on several machines: ranks that differ, restarts, lost connections, and what a step sends."""

from tests.mutants.mutant import Mutant

PEERS, RESTARTS = "adopt_hf/distributed/peers.py", "examples/shared/restarts.py"
OF_PEERS, OF_RESTARTS = ("tests/distributed/test_peers.py",), ("tests/examples/test_restarts.py",)

MUTANTS = (
    Mutant(
        "machines-versions",
        PEERS,
        '    if first["version"] != ours["version"]:\n',
        "    if False:\n",
        (*OF_PEERS, "-k", "version"),
        "two machines with different versions would train one model",
    ),
    Mutant(
        "machines-options",
        PEERS,
        "        if names:\n",
        "        if False:\n",
        (*OF_PEERS, "-k", "options"),
        "two machines with different optim_args would drift apart",
    ),
    Mutant(
        "machines-sweep",
        PEERS,
        "    spread = [(ranks, shapes) for ranks in sorted(found)]\n",
        '    spread = [(ranks, "") for ranks in sorted(found)]\n',
        (*OF_PEERS, "-k", "agree or different_models"),
        "an actor and its critic could not have different learning rates",
    ),
    Mutant(
        "machines-ended",
        PEERS,
        'first["time"] < _begun - CLOCKS',
        'first["time"] < 0',
        (*OF_PEERS, "-k", "ended"),
        "a run that torchrun has restarted would be refused, because the schedule has changed the learning rate",
    ),
    Mutant(
        "restarts-unseen",
        RESTARTS,
        "    decision = [bool(present & _noted(output_dir))]\n",
        "    decision = [False]\n",
        (*OF_RESTARTS, "-k", "continues or begins"),
        "a run that torchrun has restarted would refuse its own folder",
    ),
    Mutant(
        "restarts-of-others",
        RESTARTS,
        "    decision = [bool(present & _noted(output_dir))]\n",
        "    decision = [bool(_noted(output_dir))]\n",
        (*OF_RESTARTS, "-k", "another_launch"),
        "a new run would go on with the folder of another one",
    ),
    Mutant(
        "network-of-cpus",
        "examples/shared/network.py",
        "timeout=timedelta(seconds=values.ddp_timeout)",
        "timeout=timedelta(seconds=1800)",
        ("tests/examples/test_network.py", "-k", "ddp_timeout"),
        "a run on CPUs would wait for half an hour after its network is gone",
    ),
    Mutant(
        "traffic-of-micro-batches",
        "adopt_hf/traffic.py",
        '    counted = micro_batches if offload is not None and mode in ("zero2", "zero3") else 1\n',
        "    counted = 1\n",
        ("tests/commands/test_memory.py", "-k", "micro_batches"),
        "the command would promise less traffic than there is",
    ),
)
