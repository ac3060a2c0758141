"""The functions of DeepSpeed that are replaced, a row each, and the check of its version."""

from adopt_hf.integrations import patching
from adopt_hf.integrations.after_import import when_imported, when_imported_no_more
from adopt_hf.integrations.deepspeed import adam, checkpoints, initialize, internals
from adopt_hf.integrations.deepspeed.ds_config import CLASSES
from adopt_hf.integrations.patching import Package, Patch
from adopt_hf.optimizer import is_adopt_optimizer

ENGINE = "Every engine is made, saved and loaded by these methods, however `initialize` was imported."
PATCHES = (
    Patch(
        target="deepspeed:initialize",
        around=initialize.initialize,
        takes="*, model, optimizer, model_parameters, config, config_params",
        called="deepspeed.initialize",
        issue="An \"optimizer\" block can only name classes of torch.optim and DeepSpeed's own. A client's optimizer "
        "is refused under offload unless a flag is set.",
        why="It is public, and everything passes through it, Accelerate and the Trainer included.",
        remove_when="DeepSpeed can be told of an optimizer class.",
        asks=initialize.asks_for_adopt,
    ),
    Patch(
        target="deepspeed:DeepSpeedEngine.__init__",
        around=initialize.make_engine,
        takes="self",
        issue="An engine's optimizer is not told of the model's tensors: the partitions that it is given are flat.",
        why=ENGINE,
        remove_when="DeepSpeed tells an optimizer what its partitions hold.",
    ),
    Patch(
        target="deepspeed:DeepSpeedEngine.save_checkpoint",
        around=checkpoints.save_checkpoint,
        takes="self, *, save_dir",
        issue="A universal checkpoint does not keep what belongs to single tensors, such as their step counts.",
        why=ENGINE,
        remove_when="DeepSpeed asks the optimizer what belongs to a tensor, and converts it.",
    ),
    Patch(
        target="deepspeed:DeepSpeedEngine.load_checkpoint",
        around=checkpoints.load_checkpoint,
        takes="self, *, load_dir, tag",
        issue="Of a universal checkpoint stage 3 gives every param group the hyperparameters of the first, so that "
        "biases and norms are decayed from then on. No stage asks whether a universal checkpoint has the state of this "
        "optimizer, and of other checkpoints the weights are loaded before the optimizer can say that it has not. The "
        "error about another world size does not say what to do about it.",
        why=ENGINE,
        remove_when="DeepSpeed asks the optimizer first, and loads universal checkpoints by its load_state_dict.",
    ),
    Patch(
        target="deepspeed.runtime.lr_schedules:OneCycle.__init__",
        around=adam.one_cycle,
        takes="self, *, cycle_momentum",
        issue="Unless it is told not to, it writes beta2 = 0.99 into every group that has betas, and lets beta1 grow "
        "above 1.",
        why='A "scheduler" block, a scheduler that is handed over and one in a loop of your own are all made here.',
        remove_when="DeepSpeed cycles only the first of the betas.",
        optional=True,
    ),
    Patch(
        target="deepspeed:DeepSpeedEngine.offload_states",
        around=adam.offload_states,
        takes="self, *, include",
        issue="Stage 3 asserts that the optimizer is FusedAdam, which `python -O` does not do.",
        why="It is the public method.",
        remove_when="Stage 3 moves the state of any optimizer, as stages 1 and 2 do.",
        optional=True,
    ),
)


def _changed() -> str | None:
    return None if internals.has_list_of_supported() else "ZERO_SUPPORTED_OPTIMIZERS"


PACKAGE = Package("deepspeed", "0.17", "ADOPT under DeepSpeed", PATCHES, _changed)


def register() -> None:
    """Patch DeepSpeed when it has been imported, now or later. A second call does nothing."""
    when_imported("deepspeed", _install)


def unregister() -> None:
    """Undo `register()`."""
    when_imported_no_more("deepspeed", _uninstall)


def _install() -> None:
    reason = PACKAGE.mismatch()
    if reason is None:
        for optimizer_class in CLASSES.values():
            internals.support_in_zero(optimizer_class)
    patching.install(PATCHES, reason)


def _uninstall() -> None:
    internals.support_in_zero_no_more(is_adopt_optimizer)
    patching.uninstall(PATCHES)
