"""Train with every trainer of the installed TRL, from the start and from a checkpoint.

STEPPED/cases.json says for each trainer why it did not train; "" if it did. Its records are in
STEPPED/TRAINER/whole and STEPPED/TRAINER/resumed.
"""

import importlib
import json
import os
import re
import shutil
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import transformers
import trl
from datasets import load_dataset

# page:
import adopt_hf  # noqa: F401

# end of page


class Case(NamedTuple):
    """The records that a trainer takes, the fields of its config, and which arguments it has beyond the usual ones."""

    form: str
    fields: Mapping[str, Any] = MappingProxyType({})
    teacher: bool = False
    rewards: bool = False
    scores: bool = False  # whether the model gives a score and no text


SAMPLES = {"num_generations": 2, "max_completion_length": 8}
CASES = {
    "trainer.sft.SFTTrainer": Case("sft"),
    "trainer.dpo.DPOTrainer": Case("preference"),
    "trainer.kto.KTOTrainer": Case("unpaired"),
    "trainer.reward.RewardTrainer": Case("reward", scores=True),
    "trainer.grpo.GRPOTrainer": Case("prompt", SAMPLES, rewards=True),
    "trainer.rloo.RLOOTrainer": Case("prompt", SAMPLES, rewards=True),
    "trainer.distillation.DistillationTrainer": Case("prompt", {"max_completion_length": 8}, teacher=True),
    "experimental.a2po.A2POTrainer": Case("prompt", {"max_completion_length": 8}, rewards=True),
    "experimental.cpo.CPOTrainer": Case("preference"),
    "experimental.gkd.GKDTrainer": Case("messages", {"max_new_tokens": 8}, teacher=True),
    "experimental.gmpo.GMPOTrainer": Case("prompt", SAMPLES, rewards=True),
    "experimental.gold.GOLDTrainer": Case("messages", {"max_completion_length": 8}, teacher=True),
    "experimental.iw_opd.IWOPDTrainer": Case(
        "messages", {"max_completion_length": 8, "max_length": 64, "max_prompt_length": 48}, teacher=True
    ),
    "experimental.online_dpo.OnlineDPOTrainer": Case("prompt", {"max_new_tokens": 8, "max_length": 64}, rewards=True),
    "experimental.orpo.ORPOTrainer": Case("preference"),
    "experimental.sdft.SDFTTrainer": Case("context", SAMPLES),
    # A checkpoint does not hold the averaged teacher, which is the default.
    "experimental.sdpo.SDPOTrainer": Case("prompt", {**SAMPLES, "teacher_model_kind": "live"}, rewards=True),
    "experimental.tpo.TPOTrainer": Case("triple"),
}
SERVER = "it generates with a vLLM server, which needs a GPU"
NOT_RUN = {
    "experimental.async_distillation.AsyncDistillationTrainer": SERVER,
    "experimental.async_grpo.AsyncGRPOTrainer": SERVER,
    "experimental.server_distillation.ServerDistillationTrainer": SERVER,
}
# Other names of a trainer that has a case, or a base that is not to be used.
ALIASES = {
    "experimental.bema_for_ref_model.DPOTrainer",
    "experimental.distillation.DistillationTrainer",
    "experimental.kto.KTOTrainer",
    "trainer.base._BaseTrainer",
}
TINY = {
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "max_steps": 4,
    "save_steps": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
}


def trainers() -> Iterator[str]:
    """Yield the folder and the name of every trainer in TRL's source."""
    root = Path(trl.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for name in re.findall(r"^class (\w*Trainer)\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            parts = path.relative_to(root).parts
            yield ".".join([parts[0], parts[1].removesuffix(".py").removesuffix("_trainer"), name])


def train(name: str, case: Case, folder: Path, checkpoint: str | None) -> None:
    part, module, class_ = name.split(".")
    home = importlib.import_module("trl" if part == "trainer" else f"trl.experimental.{module}")
    kind = getattr(home, class_.replace("Trainer", "Config"))
    # page:
    config = kind("out", optim="adopt", optim_args="beta2=0.99", **TINY, **case.fields)
    # end of page
    config.output_dir = str(folder)
    transformers.set_seed(0)
    causal = transformers.AutoModelForCausalLM
    scores = transformers.AutoModelForSequenceClassification
    model = scores.from_pretrained("model", num_labels=1) if case.scores else causal.from_pretrained("model")
    more: dict[str, Any] = {}
    if case.teacher:
        transformers.set_seed(1)  # a teacher with other weights, because the gradient would be zero with the same
        more["teacher_model"] = causal.from_config(transformers.AutoConfig.from_pretrained("model"))
        transformers.set_seed(0)
    if case.rewards:
        more["reward_funcs"] = by_length
    trainer = getattr(home, class_)(
        model=model,
        args=config,
        train_dataset=load_dataset("json", data_files=f"data/{case.form}/train.jsonl", split="train"),
        processing_class=transformers.AutoTokenizer.from_pretrained("model"),
        **more,
    )
    trainer.train(resume_from_checkpoint=checkpoint)


def by_length(completions: list[Any], **_: Any) -> list[float]:
    """Return 1 for every other completion, whatever the model says, so that rewards differ."""
    return [float(i % 2) for i in range(len(completions))]


def main() -> None:
    root = Path(os.environ["STEPPED"])
    wanted = [name for name in CASES if re.search(os.environ.get("ONLY", ""), name)]
    cases = dict.fromkeys({*trainers()} - CASES.keys() - NOT_RUN.keys() - ALIASES, "no case in trainers.py")
    for name in wanted:
        short = name.rpartition(".")[2]
        folder = Path("out") / short
        try:
            os.environ["STEPPED"] = str(root / name / "whole")
            train(name, CASES[name], folder, None)
            os.environ["STEPPED"] = str(root / name / "resumed")
            train(name, CASES[name], folder, str(folder / "checkpoint-2"))
            cases[name] = ""
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            cases[name] = f"{type(error).__name__}: {error}"
        shutil.rmtree(folder, ignore_errors=True)
    root.mkdir(exist_ok=True)
    (root / "cases.json").write_text(json.dumps({"cases": cases, "not run": NOT_RUN}), encoding="utf-8")


if __name__ == "__main__":
    main()
