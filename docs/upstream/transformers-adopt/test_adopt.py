"""Tests for tests/trainer/test_trainer_optimizers.py of transformers, in the style of that file."""

import tempfile
import unittest
from unittest.mock import patch

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_optimizer import _get_adopt
from transformers.training_args import OptimizerNames
from transformers.utils import is_adopt_hf_available


class TrainerAdoptTest(unittest.TestCase):
    def arguments(self, **fields):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        return TrainingArguments(folder, optim="adopt", learning_rate=0.01, use_cpu=True, report_to="none", **fields)

    @unittest.skipUnless(is_adopt_hf_available(), "test requires adopt_hf")
    def test_adopt(self):
        from adopt_hf import ADOPT

        args = self.arguments(optim_args="clip_exp=0.3", weight_decay=0.1, adam_beta1=0.8)
        self.assertIs(args.optim, OptimizerNames.ADOPT)
        optimizer = Trainer(torch.nn.Linear(2, 1), args).create_optimizer()
        self.assertIsInstance(optimizer, ADOPT)
        self.assertEqual([group["weight_decay"] for group in optimizer.param_groups], [0.1, 0.0])
        for group in optimizer.param_groups:
            self.assertEqual((group["lr"], group["clip_exp"], group["betas"][0]), (0.01, 0.3, 0.8))

    @unittest.skipUnless(is_adopt_hf_available(), "test requires adopt_hf")
    def test_adopt_trains(self):
        torch.manual_seed(0)
        data = [{"x": torch.randn(2), "labels": torch.randn(1)} for _ in range(8)]

        class Model(torch.nn.Linear):
            def forward(self, x, labels):
                return {"loss": (super().forward(x) - labels).square().mean()}

        trainer = Trainer(Model(2, 1), self.arguments(max_steps=20, save_strategy="no"), train_dataset=data)
        before = trainer.evaluate(data)["eval_loss"]
        trainer.train()
        self.assertLess(trainer.evaluate(data)["eval_loss"], before)

    def test_adopt_without_the_package(self):
        self.enterContext(patch("transformers.trainer_optimizer.is_adopt_hf_available", return_value=False))
        with self.assertRaisesRegex(ImportError, "pip install adopt_hf"):
            _get_adopt(None)
