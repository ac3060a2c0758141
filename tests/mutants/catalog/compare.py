"""Faults of `adopt-hf compare` that would make it claim too much, or lose what was there."""

from tests.mutants.mutant import Mutant

FOLDER = "adopt_hf/commands/compare"
TESTS = "tests/commands/compare"

MUTANTS = (
    Mutant(
        "verdict-without-the-choice",
        f"{FOLDER}/results.py",
        "confidence = 1 - (1 - CONFIDENCE) / chosen_from",
        "confidence = CONFIDENCE",
        (f"{TESTS}/test_results.py",),
        "the luck of the best of several learning rates would be taken for a better optimizer",
    ),
    Mutant(
        "times-of-shared-machines",
        f"{FOLDER}/results.py",
        'compared = name != "step_ms" or not is_shared',
        "compared = True",
        (f"{TESTS}/test_results.py",),
        "runs that slowed each other down would be said to be slower by their optimizer",
    ),
    Mutant(
        "failed-runs-are-best",
        f"{FOLDER}/results.py",
        ' and one["finished"] == one["planned"]]',
        "]",
        (f"{TESTS}/test_results.py",),
        "a learning rate at which all but one run failed would be called the best",
    ),
    Mutant(
        "verdict-of-a-mean",
        f"{FOLDER}/verdict.py",
        'return "lower" if mean + half < 0 else "higher" if mean - half > 0 else "open"',
        'return "lower" if mean < 0 else "higher"',
        (f"{TESTS}/test_verdict.py",),
        "every difference would be called real",
    ),
    Mutant(
        "another-comparison",
        f"{FOLDER}/folder.py",
        "        if reason is not None:\n",
        "        if False:\n",
        (f"{TESTS}/test_folder.py",),
        "a second comparison would overwrite the results of the first",
    ),
    Mutant(
        "own-optimizer-not-noticed",
        "adopt_hf/integrations/transformers/observer.py",
        "        if wanted not in self.stepped and",
        "        if False and",
        ("tests/integrations/transformers/test_observer.py",),
        "a script with an optimizer of its own would be compared with itself",
    ),
    Mutant(
        "steps-with-evaluations",
        "adopt_hf/integrations/transformers/observer.py",
        "            self.times.append(now - self.last)\n",
        "            self.times.append(now)\n",
        ("tests/integrations/transformers/test_observer.py",),
        "the time of a step would be that since the machine was started",
    ),
)
