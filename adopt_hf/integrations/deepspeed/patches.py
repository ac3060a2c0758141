"""The functions of DeepSpeed that are replaced, a row each, and the check of its version."""

from adopt_hf.identity import is_adopt_optimizer
from adopt_hf.integrations import patching
from adopt_hf.integrations.after_import import when_imported, when_imported_no_more
from adopt_hf.integrations.deepspeed import adam, checkpoints, initialize, internals
from adopt_hf.integrations.deepspeed.ds_config import CLASSES
from adopt_hf.integrations.patching import Package, Patch

ENGINE = "Every engine is made, saved and loaded by these methods, however `initialize` was imported."
PATCHES = (
    Patch(
        target="deepspeed:initialize",
        around=initialize.initialize,
        takes="*, model, optimizer, model_parameters, config, config_params",
        issue='An "optimizer" block can only name classes of torch.optim and of DeepSpeed. With offload, DeepSpeed '
        "refuses an optimizer that a script passes, unless a flag is set.",
        why="This public function makes every engine, also those of Accelerate and of the Trainer.",
        remove_when="DeepSpeed lets a package register an optimizer class.",
        asks=initialize.asks_for_adopt,
    ),
    Patch(
        target="deepspeed:DeepSpeedEngine.__init__",
        around=initialize.make_engine,
        takes="self",
        issue="DeepSpeed gives an optimizer flat partitions, and does not say which tensors of the model are in them.",
        why=ENGINE,
        remove_when="DeepSpeed tells an optimizer what its partitions hold.",
    ),
    Patch(
        target="deepspeed:DeepSpeedEngine.save_checkpoint",
        around=checkpoints.save_checkpoint,
        takes="self, *, save_dir",
        issue="A universal checkpoint does not keep numbers of single tensors, such as their step counts.",
        why=ENGINE,
        remove_when="DeepSpeed asks the optimizer for the numbers of a tensor, and converts them.",
    ),
    Patch(
        target="deepspeed:DeepSpeedEngine.load_checkpoint",
        around=checkpoints.load_checkpoint,
        takes="self, *, load_dir, tag",
        issue="When stage 3 loads a universal checkpoint, every param group gets the hyperparameters of the first, "
        "so that biases and norms are decayed from then on. No stage checks whether a universal checkpoint has the "
        "state of this optimizer. With other checkpoints, the weights are loaded before the optimizer can refuse the "
        "state. The error about another world size does not say what to do.",
        why=ENGINE,
        remove_when="DeepSpeed asks the optimizer before it loads anything, and loads universal checkpoints by its "
        "load_state_dict.",
    ),
    Patch(
        target="deepspeed.runtime.lr_schedules:OneCycle.__init__",
        around=adam.one_cycle,
        takes="self, *, cycle_momentum",
        issue="By default this scheduler writes beta2 = 0.99 into every param group that has betas, and lets beta1 "
        "grow above 1.",
        why='This constructor makes every such scheduler: of a "scheduler" block, given to DeepSpeed, or in a loop '
        "of your own.",
        remove_when="DeepSpeed only cycles the first beta.",
        optional=True,
    ),
    Patch(
        target="deepspeed:DeepSpeedEngine.offload_states",
        around=adam.offload_states,
        takes="self, *, include",
        issue="Stage 3 asserts that the optimizer is FusedAdam, and `python -O` skips this assertion.",
        why="This is the public method that moves states.",
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
