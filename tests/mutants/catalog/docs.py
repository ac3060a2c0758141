"""Faults of what the docs say: numbers, lists and sentences that no longer follow from code or results."""

from tests.mutants.mutant import Mutant

OF_DOCS = ("tests/test_docs.py",)

MUTANTS = (
    Mutant(
        "docs-parity-of-accelerate",
        "docs/integrations.md",
        "| ddp fp32 | 2, MULTI_CPU | 3e-07 | bit for bit | yes | 3e-07 |",
        "| ddp fp32 | 2, MULTI_CPU | 3e-07 | bit for bit | yes | 5e-01 |",
        OF_DOCS,
        "the page would show a mode that does not train the same weights",
    ),
    Mutant(
        "docs-parity-of-bf16",
        "docs/integrations.md",
        "| zero3 bf16 | 2, DEEPSPEED 3 | 3.6% of the way",
        "| zero3 bf16 | 2, DEEPSPEED 3 | 93.6% of the way",
        OF_DOCS,
        "the page would show a run that went another way",
    ),
    Mutant(
        "docs-bytes-of-fsdp2",
        "docs/integrations.md",
        "399,384 + 0 (rank 0)",
        "299,384 + 0 (rank 0)",
        OF_DOCS,
        "the page would promise fewer bytes than FSDP2 takes",
    ),
    Mutant(
        "docs-a-key-that-does-not-exist",
        "README.md",
        "`block_size`, `bf16_stochastic_round`, `seed`, `backend`",
        "`block_size`, `nesterov`, `bf16_stochastic_round`, `seed`, `backend`",
        OF_DOCS,
        "a reader would write a key that is an error",
    ),
    Mutant(
        "docs-another-default",
        "README.md",
        "| `eps` | 1e-06 |",
        "| `eps` | 1e-08 |",
        OF_DOCS,
        "a reader would rely on a default that is not there",
    ),
    Mutant(
        "docs-a-missing-argument",
        "pages/options.py",
        '    ("maximize",): "ascend",\n',
        "",
        OF_DOCS,
        "an argument would be documented nowhere",
    ),
    Mutant(
        "docs-formats",
        "docs/low_bits.md",
        "| decaying scale, 2 to 5 bits (`state_bits=8`) | 0.29;",
        "| decaying scale, 2 to 5 bits (`state_bits=8`) | 0.02;",
        OF_DOCS,
        "the page would promise a v that is fifteen times as exact",
    ),
    Mutant(
        "docs-conditions-of-the-sweep",
        "docs/fine_tuning.md",
        "300 steps of 8 records",
        "3000 steps of 80 records",
        OF_DOCS,
        "a reader would take a short sweep for a long one",
    ),
    Mutant(
        "docs-losses-of-the-sweep",
        "docs/fine_tuning.md",
        "AdamW 3.650, ADOPT without the warm-up 3.673, ADOPT with the warm-up 3.665",
        "AdamW 3.950, ADOPT without the warm-up 3.165, ADOPT with the warm-up 3.173",
        OF_DOCS,
        "the page would say that ADOPT wins where AdamW does",
    ),
    Mutant(
        "docs-steps-in-8-bits",
        "docs/benchmarks.md",
        "1.43 to 1.68 on GPT-2's tensors with one thread",
        "0.43 to 0.68 on GPT-2's tensors with one thread",
        OF_DOCS,
        "the page would say that 8-bit steps are the faster ones",
    ),
    Mutant(
        "docs-speed-in-the-readme",
        "README.md",
        "0.90 to 1.04",
        "0.60 to 0.94",
        OF_DOCS,
        "the first page would promise a speed that no run had",
    ),
    Mutant(
        "benchmarks-a-rerun-replaces",
        "benchmarks/results.py",
        'return sorted((result for result in found if result["scale"] == 1), key=lambda result: result["date"])',
        'found = sorted(found, key=lambda result: result["date"])\n'
        '    return [result for result in found if result["scale"] == 1][-1:]',
        ("tests/benchmarks/test_report.py",),
        "a rerun would replace the numbers that it does not like",
    ),
    Mutant(
        "benchmarks-made-in-one-order",
        "benchmarks/case.py",
        "for name in random.Random(seed).sample(names, len(names)):",
        "for name in names:",
        ("tests/benchmarks/test_step.py", "-k", "drawn_order"),
        "one optimizer would always have the better places in memory",
    ),
)
