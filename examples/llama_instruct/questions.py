"""Make multiple-choice questions in MMLU's format of the functions that are held out.

The question is the second one of `functions`: which part of the library is this function from? There are four choices
of the five parts, and the answer is the number of the right one. As with MMLU, each subject has a file.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.llama_instruct import functions

CHOICES = 4


def make(held_out: Sequence[functions.Function]) -> list[dict[str, Any]]:
    """Return a question for each function. Every call returns the same ones."""
    made = []
    subjects = [*functions.SUBJECTS, functions.OTHER]
    for function in held_out:
        rng = random.Random(hashlib.sha256(repr(function).encode()).digest())
        question, right = function.instructions[1]
        choices = [right, *rng.sample([subject for subject in subjects if subject != right], CHOICES - 1)]
        rng.shuffle(choices)
        made.append(
            {"question": question, "choices": choices, "answer": choices.index(right), "subject": function.subject}
        )
    return made


def write(folder: Path, limit: int = 0) -> list[str]:
    """Write a file <subject>.jsonl into `folder` for every subject. Return the subjects.

    Args:
        folder: The folder, which exists.
        limit: The number of questions, evenly spaced. 0: all.
    """
    questions = make(functions.documented(held_out=True))
    if 0 < limit < len(questions):
        questions = [questions[i * len(questions) // limit] for i in range(limit)]
    subjects = sorted({question["subject"] for question in questions})
    for subject in subjects:
        rows = [json.dumps(question) + "\n" for question in questions if question["subject"] == subject]
        (folder / f"{subject}.jsonl").write_text("".join(rows), encoding="utf-8")
    return subjects


def task(subject: str, folder: Path) -> dict[str, Any]:
    """Return lm-eval's configuration for the questions on `subject`, like that of mmlu_continuation.

    The choices are scored as texts, because a model of a million parameters cannot handle letters.
    """
    return {
        "task": f"stdlib_{subject}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{subject}.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
