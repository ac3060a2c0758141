"""Tests for tests/trainer/test_trainer_optimizers.py of transformers, in the style of that file."""

import tempfile
import unittest
from unittest.mock import patch

import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.training_args import REGISTERED_OPTIMIZERS, OptimizerNames, register_optimizer


class MyOptimizer(torch.optim.SGD):
    pass


class RegisterOptimizerTest(unittest.TestCase):
    def setUp(self):
        self.enterContext(patch.dict(REGISTERED_OPTIMIZERS))
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        register_optimizer("my_optimizer", lambda context: (MyOptimizer, {"lr": float(context.args.optim_args)}))

    def test_it_is_built(self):
        args = TrainingArguments(self.folder, optim="my_optimizer", optim_args="0.5", use_cpu=True)
        optimizer = Trainer(torch.nn.Linear(2, 1), args).create_optimizer()
        self.assertIsInstance(optimizer, MyOptimizer)
        self.assertEqual(optimizer.param_groups[0]["lr"], 0.5)

    def test_it_is_parsed(self):
        line = ["--output_dir", self.folder, "--optim", "my_optimizer"]
        self.assertEqual(HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(line)[0].optim, "my_optimizer")

    def test_it_can_be_set(self):
        args = TrainingArguments(self.folder, use_cpu=True)
        self.assertEqual(args.set_optimizer("my_optimizer").optim, "my_optimizer")
        self.assertIs(args.set_optimizer("sgd").optim, OptimizerNames.SGD)

    def test_other_names_are_as_before(self):
        with self.assertRaisesRegex(ValueError, "my_optimiser is not a valid OptimizerNames"):
            TrainingArguments(self.folder, optim="my_optimiser")
        with self.assertRaisesRegex(ValueError, "cannot be registered"):
            register_optimizer("sgd", lambda context: None)
        args = TrainingArguments(self.folder, optim="sgd", use_cpu=True)
        self.assertIs(type(Trainer(torch.nn.Linear(2, 1), args).create_optimizer()), torch.optim.SGD)
