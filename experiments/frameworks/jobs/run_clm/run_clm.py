"""A script of the kind of transformers' run_clm.py: a parser of TrainingArguments, and the Trainer."""

from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)


def main() -> None:
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained("model")
    data = load_dataset("json", data_files="data/text.json", split="train")
    data = data.map(lambda row: tokenizer(row["text"]), remove_columns="text")
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    model = AutoModelForCausalLM.from_pretrained("model")
    Trainer(model, args, train_dataset=data, data_collator=collator).train(args.resume_from_checkpoint)


if __name__ == "__main__":
    main()
