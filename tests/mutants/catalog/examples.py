"""Faults of the recipes and the quick starts: settings, launches and folders."""

from tests.mutants.mutant import Mutant

CLI, LAUNCH = "examples/shared/cli.py", "examples/shared/launch.py"

MUTANTS = (
    Mutant(
        "quickstart-with-adamw",
        "examples/quickstart_trainer.py",
        'optim="adopt",',
        'optim="adamw_torch",',
        ("tests/examples/test_quickstart.py",),
        "the first thing that a user copies would not train with ADOPT",
    ),
    Mutant(
        "quickstart-without-a-step",
        "examples/quickstart_loop.py",
        "    optimizer.step()\n",
        "",
        ("tests/examples/test_quickstart.py",),
        "the loop that a user copies would train nothing",
    ),
    Mutant(
        "the-config-wins",
        CLI,
        "self.parse_args_into_dataclasses(argv,",
        "self.parse_args_into_dataclasses([],",
        ("tests/examples/test_cli.py",),
        "an argument on the command line would be ignored in silence",
    ),
    Mutant(
        "null-is-a-value",
        CLI,
        'if "None" not in kind and self.fields[name].default is not None:',
        "if False:",
        ("tests/examples/test_cli.py",),
        "a setting without a value would fail later, with a traceback",
    ),
    Mutant(
        "abbreviated-arguments",
        CLI,
        "allow_abbrev=False",
        "allow_abbrev=True",
        ("tests/examples/test_cli.py",),
        "a mistyped argument could set another one",
    ),
    Mutant(
        "two-runs-in-a-folder",
        LAUNCH,
        'with open(file, "x" if new else "w", encoding="utf-8")',
        'with open(file, "w", encoding="utf-8")',
        ("tests/examples/test_launch.py",),
        "two runs that start at once would write into one folder",
    ),
    Mutant(
        "the-launchers-numbers",
        LAUNCH,
        'if theirs not in ("auto", ours):',
        'if theirs in ("auto", ours):',
        ("tests/examples/test_launch.py",),
        "DeepSpeed would clip at another norm than the config says",
    ),
    Mutant(
        "loraplus-without-lora",
        LAUNCH,
        "if loraplus and not lora:",
        "if loraplus and lora:",
        ("tests/examples/test_launch.py",),
        "the data would be prepared for a run that cannot start",
    ),
    Mutant(
        "the-earlier-evaluation",
        "examples/shared/plots.py",
        "for entry in log_history if key in entry}",
        "for entry in reversed(log_history) if key in entry}",
        ("tests/examples/test_plots.py",),
        "the last loss of a resumed run would be that of the run before",
    ),
)
