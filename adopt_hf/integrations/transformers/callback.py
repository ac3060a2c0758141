"""The callback AdoptMonitor of the Trainer."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from adopt_hf.identity import innermost, is_adopt_optimizer
from adopt_hf.monitor import Monitor

PER_EPOCH = 50  # steps


class AdoptMonitor(TrainerCallback):
    """Add figures on ADOPT's steps to the logs of a Trainer, and with them to everything that `report_to` names.

    The step before each log is observed; with `logging_strategy="epoch"` every 50th step is, and the log has the
    figures of the last of them. The names are those of `adopt_hf.monitor.Monitor.figures`.

    Raises:
        ValueError: If the Trainer trains with another optimizer, when the training begins.
    """

    is_of_optim_args = False  # whether it was added because `optim_args` of a training asked for it

    def __init__(self) -> None:
        self.monitor: Monitor | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        optimizer = innermost(kwargs["optimizer"])
        if not is_adopt_optimizer(optimizer):
            raise ValueError(
                f"AdoptMonitor observes ADOPT, and the Trainer trains with {type(optimizer).__name__}: write "
                'optim="adopt", or remove the callback'
            )
        self.monitor = Monitor(optimizer, kwargs["model"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.monitor is not None
        step = state.global_step + 1
        interval = PER_EPOCH if args.logging_strategy == IntervalStrategy.EPOCH else state.logging_steps
        self.monitor.is_due = args.logging_strategy != IntervalStrategy.NO and (
            step % max(1, interval) == 0 or (step == 1 and args.logging_first_step)
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.monitor is None or logs is None or "loss" not in logs:  # the logs of an evaluation
            return
        figures = self.monitor.figures()
        logs.update(figures)
        state.log_history[-1].update(figures)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.monitor is not None:
            self.monitor.detach()
            self.monitor = None  # which would keep the model and the state in memory
