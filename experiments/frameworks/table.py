"""The jobs and the environments by name."""

from typing import NamedTuple

from experiments.frameworks.environments import Environment
from experiments.frameworks.expected import Expected

TRANSFORMERS = ("torch", "transformers", "accelerate")

ENVIRONMENTS = {
    "transformers": Environment("transformers==5.23.0"),
    "trl": Environment("trl==1.16.0"),
    "sentence_transformers": Environment("sentence-transformers==6.2.0"),
    "setfit": Environment("setfit==1.2.0", needs=("sentence-transformers", "evaluate")),
    "llamafactory": Environment(
        "llamafactory==0.9.5",
        needs=(
            "transformers==5.6.0",
            "trl==0.24.0",
            "peft==0.18.1",
            "datasets==4.0.0",
            "omegaconf",
            "fire",
            "av==16.0.0",
            "tyro<0.9",
        ),
        without_dependencies=("torchdata==0.11.0",),
        empty=("torchaudio",),
    ),
    "ms_swift": Environment("ms-swift==4.6.0", needs=("ms-swift==4.6.0",)),
    "axolotl": Environment(
        "axolotl==0.19.0",
        needs=(
            "transformers==5.16.1",
            "trl==1.9.0",
            "peft==0.20.0",
            "accelerate==1.13.0",
            "datasets==4.8.4",
            "huggingface_hub==1.17.0",
            "tokenizers==0.23.1",
            "axolotl-contribs-lgpl==0.0.7",
            "axolotl-contribs-mit==0.0.6",
            "kernels<0.18",
            "pydantic==2.12.5",
            "typer==0.25.1",
            "schedulefree==1.4.1",
            "posthog==6.7.11",
            "mistral-common==1.11.5",
            "bitsandbytes==0.50.2",
            *("addict", "art", "backoff", "colorama", "distro", "evaluate", "fastcore", "fire", "langdetect"),
            *("numba", "python-dotenv", "soundfile"),
        ),
        without_dependencies=("optimum==1.16.2",),
    ),
    "lightning": Environment("lightning==2.6.6", needs=("lightning==2.6.6", "jsonargparse[signatures]==4.53.0")),
    "hydra": Environment("hydra-core==1.3.8", needs=("hydra-core==1.3.8",)),
    "torchtune": Environment(
        "torchtune==0.6.1", needs=("torchtune==0.6.1",), without_dependencies=("torchao==0.10.0",)
    ),
    "ray": Environment("ray==2.60.0", needs=("ray[train]==2.60.0",)),
}


class Job(NamedTuple):
    """A training in a framework. Its files are those of jobs/NAME/, and job.sh starts it.

    Attributes:
        title: What the page calls it.
        environment: The name of its environment. The version of the row is that of the environment's package.
        expected: What must have stepped.
        files_of: A job whose files are copied, too.
        packages: Other packages whose versions are kept.
        is_series: Whether the job itself goes through many trainings, and resumes each.
        read: The code that was read, if the job is not run: the repository, the commit, and what the code does.
    """

    title: str
    environment: str = ""
    expected: Expected = Expected()
    files_of: str = ""
    packages: tuple[str, ...] = TRANSFORMERS
    is_series: bool = False
    read: str = ""


JOBS = {
    "run_clm": Job("transformers, run_*.py", "transformers", Expected()),
    "no_trainer": Job("transformers, *_no_trainer.py", "transformers", Expected()),
    "trl_command": Job("TRL, the command", "trl", Expected()),
    "trl_script": Job("TRL, a script", "trl", Expected(), files_of="trl_command"),
    "trl_trainers": Job("TRL, every trainer", "trl", Expected(), is_series=True),
    "sentence_transformers": Job("sentence-transformers", "sentence_transformers", Expected()),
    "setfit": Job("SetFit", "setfit", Expected(decay=(0.01, 0.0), resumes="SetFit's train() takes no checkpoint")),
    "llamafactory": Job("LLaMA-Factory", "llamafactory", Expected()),
    "llamafactory_torchrun": Job(
        "LLaMA-Factory, two processes",
        "llamafactory",
        Expected(
            processes=2, resumes="torch.load has no device cpu:0, which Accelerate names here, with any optimizer"
        ),
        files_of="llamafactory",
    ),
    "ms_swift": Job("ms-swift", "ms_swift", Expected()),
    "axolotl": Job("axolotl", "axolotl", Expected()),
    "unsloth": Job(
        "unsloth",
        read="unslothai/unsloth, 015bdef of 2026-08-22, needs a GPU: TRL's trainers, and `UnslothTrainer` takes the "
        "class of `get_optimizer_cls_and_kwargs`",
    ),
    "lightning": Job("Lightning", "lightning", Expected(), packages=("torch",)),
    "lightning_cli": Job(
        "LightningCLI", "lightning", Expected(decay=(0.1,)), files_of="lightning", packages=("torch", "jsonargparse")
    ),
    "hydra": Job("hydra", "hydra", Expected(), packages=("torch", "omegaconf")),
    "ray": Job("Ray Train", "ray", Expected()),
    "torchtune": Job("torchtune", "torchtune", Expected(decay=(0.1,)), packages=("torch", "torchao")),
    "kohya": Job(
        "kohya's sd-scripts",
        read="kohya-ss/sd-scripts, 48d368f of 2026-02-16: `get_optimizer` imports a class by its path",
    ),
    "dreambooth": Job(
        "diffusers, dreambooth",
        read="huggingface/diffusers, 58eb52c of 2026-08-23: a name other than AdamW and prodigy is one warning, and "
        "AdamW trains",
    ),
    "llamafactory_muon": Job(
        "LLaMA-Factory, use_muon",
        "llamafactory",
        Expected(optimizer="llamafactory.third_party.muon.muon.Muon", resumes="it is not ADOPT"),
        files_of="llamafactory",
    ),
}
