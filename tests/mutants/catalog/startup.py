"""Faults of `adopt-hf run` and of what the Pythons below it do at their start."""

from tests.mutants.mutant import Mutant

HOOK = "adopt_hf/startup/sitecustomize.py"
RUN = "adopt_hf/commands/run.py"
OF_HOOK = (
    "tests/startup/test_sitecustomize.py",
    "-k",
    "only_the_names or version or says_why or another_sitecustomize",
)
OF_RUN = ("tests/commands/test_run_command.py", "-k", "becomes or front or how")

MUTANTS = (
    Mutant(
        "startup-hooks-are-passed-over",
        HOOK,
        "        new = [finder for finder in sys.meta_path if finder not in before]\n",
        "        new = []\n",
        OF_HOOK,
        "the names would be unknown in the first process that imports transformers",
    ),
    Mutant(
        "startup-imports-adopt-for-a-probe",
        HOOK,
        '"deepspeed.runtime.engine")',
        '"deepspeed")',
        OF_HOOK,
        "every process that imports accelerate would import adopt_hf",
    ),
    Mutant(
        "startup-any-version",
        HOOK,
        "    if theirs not in (ours, None):",
        "    if False:",
        OF_HOOK,
        "processes with different versions would train together",
    ),
    Mutant(
        "startup-is-silent-about-a-broken-adopt",
        HOOK,
        "            _warn(error)\n",
        "            pass\n",
        OF_HOOK,
        "an unknown name would be all that a user sees of a torch that cannot be loaded",
    ),
    Mutant(
        "startup-hides-another-sitecustomize",
        HOOK,
        "_import_the_next()\nif ",
        "if ",
        OF_HOOK,
        "what another sitecustomize sets up would be missing",
    ),
    Mutant(
        "run-keeps-ignored-signals",
        RUN,
        'for ignored in ("SIGPIPE", "SIGXFSZ"):',
        "for ignored in ():",
        OF_RUN,
        "a command behind a pipe that is closed would go on",
    ),
    Mutant(
        "run-forgets-the-path",
        RUN,
        "    return [STARTUP, *(entry for entry in entries if entry != STARTUP)]",
        "    return [STARTUP]",
        OF_RUN,
        "children would lack what the user has on PYTHONPATH",
    ),
    Mutant(
        "run-a-folder-beside-a-command",
        RUN,
        "    return has_name and os.path.isfile(what)",
        "    return os.path.exists(what)",
        OF_RUN,
        "a command could not be run beside a folder of its name",
    ),
)
