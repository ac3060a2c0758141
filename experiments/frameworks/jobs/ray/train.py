"""Train with the Trainer in a worker of Ray Train, which is another process than this one."""

import os

import ray
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

SETTINGS = {
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "max_steps": 4,
    "save_steps": 2,
    "per_device_train_batch_size": 4,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
}


# page:
def train(config: dict) -> None:
    from transformers import Trainer, TrainingArguments

    import adopt_hf  # noqa: F401

    args = TrainingArguments(config["output_dir"], optim="adopt", optim_args="beta2=0.99", **config["settings"])
    # end of page
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

    os.chdir(config["folder"])
    tokenizer = AutoTokenizer.from_pretrained("model")
    data = load_dataset("json", data_files="data/text.json", split="train")
    data = data.map(lambda row: tokenizer(row["text"]), remove_columns="text")
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    model = AutoModelForCausalLM.from_pretrained("model")
    Trainer(model, args, train_dataset=data, data_collator=collator).train(config["checkpoint"])


def main() -> None:
    folder, checkpoint = os.getcwd(), os.environ["RESUME"]
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir="/tmp/ray-of-adopt")
    given = {"folder": folder, "output_dir": f"{folder}/out", "settings": SETTINGS}
    given["checkpoint"] = f"{folder}/{checkpoint}" if checkpoint else None
    TorchTrainer(train, train_loop_config=given, scaling_config=ScalingConfig(num_workers=1)).fit()


if __name__ == "__main__":
    main()
