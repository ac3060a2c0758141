"""Faults of what stands between ADOPT and other packages."""

from tests.mutants.mutant import Mutant

INTEGRATIONS = "adopt_hf/integrations/"
OF_TRAINER = ("tests/integrations/transformers/test_arguments.py", "-k", "groups or info_line or by_hand or parse")
OF_STORAGE = ("tests/integrations/transformers/test_storage.py", "-k", "8_bits or refuses")
OF_OPTIM_ARGS = ("tests/integrations/transformers/test_optim_args.py",)
OF_DEEPSPEED = ("tests/integrations/deepspeed/test_ds_config.py",)
OF_GUARD = ("tests/integrations/test_guard.py",)
OF_CHECKPOINTS = ("tests/integrations/test_checkpoints.py", "-k", "missed or held or complete or rotation")
OF_GROUPS = ("tests/core/test_param_groups.py",)
OF_ORDERS = ("tests/integrations/test_import_orders.py",)

MUTANTS = (
    Mutant(
        "optim-args-twice",
        f"{INTEGRATIONS}transformers/optim_args.py",
        "            if name in values:\n",
        "            if name in ():\n",
        OF_OPTIM_ARGS,
        "the second of two values would win in silence",
    ),
    Mutant(
        "optim-args-false-is-true",
        f"{INTEGRATIONS}transformers/optim_args.py",
        "return True if raw.lower() in TRUE else False if raw.lower() in FALSE else raw",
        "return bool(raw)",
        OF_OPTIM_ARGS,
        "decouple=false would be True",
    ),
    Mutant(
        "trainer-coupled-decay",
        "adopt_hf/hyperparameters.py",
        '"decoupled weight decay as in AdamW; else L2", of_adoptw=True',
        '"decoupled weight decay as in AdamW; else L2", of_adoptw=False',
        OF_TRAINER,
        "weight_decay would be L2 under the Trainer",
    ),
    Mutant(
        "trainer-16-for-8-bits",
        f"{INTEGRATIONS}transformers/arguments.py",
        'values["state_bits"] = 8',
        'values["state_bits"] = 16',
        OF_STORAGE,
        "adopt_8bit would take twice the memory",
    ),
    Mutant(
        "trainer-layerwise-on-several-processes",
        f"{INTEGRATIONS}transformers/arguments.py",
        'processes: start one": args.world_size > 1,',
        'processes: start one": args.world_size > 2,',
        OF_STORAGE,
        "two processes would train apart",
    ),
    Mutant(
        "trainer-embeddings-in-8-bits",
        f"{INTEGRATIONS}transformers/arguments.py",
        "        formats.keep_float32(embeddings(model))\n",
        "        embeddings(model)\n",
        OF_STORAGE,
        "embeddings would have 8-bit moments",
    ),
    Mutant(
        "param-groups-embeddings-in-8-bits",
        "adopt_hf/param_groups.py",
        "    keep_float32(embeddings(model))\n",
        "    embeddings(model)\n",
        ("tests/state/test_formats.py", "-k", "embeddings or groups_of_its_own"),
        "in an own loop embeddings would have 8-bit moments",
    ),
    Mutant(
        "param-groups-norms-decayed",
        "adopt_hf/param_groups.py",
        r"|_norm(?:$|\.)",
        "",
        OF_GROUPS,
        "q_norm and k_norm would be decayed",
    ),
    Mutant(
        "accelerate-offload-guard-removed",
        f"{INTEGRATIONS}accelerate.py",
        "            keep_adopt(config)\n",
        "            pass\n",
        ("tests/integrations/test_accelerate.py",),
        "Accelerate would train with DeepSpeedCPUAdam when the optimizer is offloaded",
    ),
    Mutant(
        "deepspeed-unknown-key-taken",
        f"{INTEGRATIONS}deepspeed/ds_config.py",
        "        if key not in OPTIONS:\n",
        "        if not key:\n",
        OF_DEEPSPEED,
        "a misspelt key of the block would be lost, or an error of Python",
    ),
    Mutant(
        "guard-adopts-state-in-adam",
        f"{INTEGRATIONS}guard.py",
        "    if not saved or not saved_groups.is_adopt(saved):",
        "    if not saved or saved_groups.is_adopt(saved):",
        OF_GUARD,
        "AdamW would go on with ADOPT's moments, and move weights by 10,000 times the learning rate",
    ),
    Mutant(
        "checkpoints-sizes-not-compared",
        f"{INTEGRATIONS}checkpoints/folders.py",
        "        if found != size:\n",
        "        if found > size:\n",
        OF_CHECKPOINTS,
        "a file that was cut off would pass as complete",
    ),
    Mutant(
        "checkpoints-mark-of-another-step",
        f"{INTEGRATIONS}checkpoints/folders.py",
        "    if step_of(checkpoint) not in (None, step):",
        "    if step_of(checkpoint) is ...:",
        ("tests/integrations/test_checkpoints.py", "-k", "older_step or complete"),
        "the mark of an older checkpoint in the same place would pass",
    ),
    Mutant(
        "import-of-checkpoints",
        f"{INTEGRATIONS}guard.py",
        "import torch\n\nfrom adopt_hf.identity",
        "import torch\nimport torch.distributed.checkpoint\n\nfrom adopt_hf.identity",
        (*OF_ORDERS, "-k", "own_loop"),
        "an own loop would wait for imports that it does not use",
    ),
    Mutant(
        "import-half-is-whole",
        f"{INTEGRATIONS}after_import.py",
        "    if is_executing(module):\n        _watch",
        "    if False:\n        _watch",
        (*OF_ORDERS, "-k", "test_orders"),
        "the name would be unknown if a module that transformers imports half-way imports adopt_hf",
    ),
    Mutant(
        "import-trainer-not-asked",
        f"{INTEGRATIONS}transformers/registration.py",
        "    reason = patches.mismatch()\n    if reason:\n        _refuse(reason)\n",
        "    reason = None\n    if reason:\n        _refuse(reason)\n",
        ("tests/integrations/test_compat.py", "-m", "slow", "-k", "imported_later"),
        "TrainingArguments would take a name that the Trainer then does not know",
    ),
    Mutant(
        "patch-of-a-changed-function",
        f"{INTEGRATIONS}patching.py",
        "        if fits and (_takes_anything",
        "        if True or (_takes_anything",
        ("tests/integrations/test_patching.py", "-k", "fits"),
        "a new version whose function takes other arguments would train with what they happen to mean",
    ),
    Mutant(
        "patch-that-is-not-needed",
        f"{INTEGRATIONS}patching.py",
        "patch.mismatch() is None and not patch.unneeded():",
        "patch.mismatch() is None:",
        ("tests/integrations/test_patching.py", "-k", "not_needed"),
        "a function of a version with a remedy of its own would be replaced, and do the same twice",
    ),
    Mutant(
        "name-of-another-adopt",
        f"{INTEGRATIONS}transformers/names.py",
        "        if builds_adopt_hf(handlers.get(name)):\n",
        "        if name in NAMES:\n",
        ("tests/integrations/test_compat.py", "-k", "of_transformers_stays"),
        "optim='adopt' of a transformers with another ADOPT would be taken over without a word",
    ),
    Mutant(
        "patch-not-taken-back",
        f"{INTEGRATIONS}patching.py",
        "        delattr(owner, name)  # inherited\n",
        "        setattr(owner, name, original)\n",
        ("tests/integrations/test_patching.py", "-k", "twice"),
        "after unregister() a class would keep a method of its own that hides its parent's",
    ),
    Mutant(
        "memory-padding-of-zero",
        "adopt_hf/memory.py",
        "FLAT_ALIGNMENT = 2",
        "FLAT_ALIGNMENT = 1",
        ("tests/commands/test_memory.py", "-k", "shapes"),
        "the command would promise fewer bytes than ZeRO 1 and 2 take",
    ),
)
