"""The tasks of protocol.py: models, data, schedules and losses, all small and offline."""

from experiments.defaults import digits, instructions, language
from experiments.defaults.training import Task

TASKS = {
    task.name: task
    for task in (
        language.gpt2_task(
            "gpt2_500",
            "GPT-2, 500 steps",
            "GPT-2 of 170,000 weights on the source of the standard library, 500 steps of 8 x 64 tokens",
            width=64, tokens=64, seeds=8, steps=500, warmup=25, rates=(3e-3, 1e-3, 1e-2), together=4,
        ),
        instructions.task(
            "lora",
            "LoRA",
            "a pretrained LLaMA of 232,000 weights with LoRA of rank 4 on all linear layers and no dropout, 300 "
            "steps of 8 records of up to 80 tokens",
            rates=(1e-2, 3e-3, 3e-2),
        ),
        instructions.task(
            "llama",
            "LLaMA, all weights",
            "the same LLaMA, all of its weights tuned on what the library's functions do, 300 steps of 8 records",
            rates=(3e-3, 1e-3, 1e-2), weights=lambda seed: dict(instructions.instructed()[0]),
        ),
        instructions.task(
            "loraplus",
            "LoRA+",
            "the same with the learning rate of B 16 times that of A",
            rates=(3e-3, 1e-3, 1e-2), ratio=lambda name: 16.0 if name.endswith("lora_B") else 1.0,
        ),
        Task(
            name="mlp", title="Perceptron", about="a perceptron with 256 hidden units on the digits, 500 steps of 64",
            seeds=8, steps=500, rates=(3e-2, 1e-2, 1e-1), floor=None, weights=digits.perceptron_weights,
            batches=digits.plain_batches, loss=digits.perceptron_loss, evaluate=digits.perceptron_evaluate,
        ),
        Task(
            name="vit", title="Vision transformer",
            about="a ViT of 27,000 weights on the digits, moved by a pixel, 600 steps of 32",
            seeds=8, steps=600, rates=(3e-3, 1e-3, 1e-2), warmup=30, decay=0.1, clip=1.0, weights=digits.vit_weights,
            batches=digits.shifted_batches, loss=digits.vit_loss, evaluate=digits.vit_evaluate,
        ),
        Task(
            name="vae", title="VAE", about="the VAE of experiments/paper/vae.py on the digits, 1,500 steps of 64",
            seeds=8, steps=1500, rates=(1e-2, 3e-3, 3e-2), weights=digits.vae_weights, batches=digits.vae_batches,
            loss=digits.vae_loss, evaluate=digits.vae_evaluate,
        ),
        language.gpt2_task(
            "demo",
            "Demo",
            "the demo of this repository: GPT-2 of 544,000 weights, 2,400 steps of 8 x 128 tokens",
            width=128, tokens=128, seeds=5, steps=2400, warmup=100, rates=(4e-3, 1.3e-3, 1.2e-2), together=1,
        ),
        language.window_task(
            "long_99", "Long, beta2 0.99",
            "the next token after six with a perceptron of 53,000 weights, 5,000 steps of 32: 50 memories of 0.99",
            steps=5000, rates=(1e-2, 3e-3, 3e-2), beta2=0.99,
        ),
        language.window_task(
            "long_999", "Long, beta2 0.999", "the same, 10,000 steps: 10 memories of 0.999",
            steps=10000, rates=(1e-2, 3e-3, 3e-2), beta2=0.999,
        ),
        language.gpt2_task(
            "gpt2_2000",
            "GPT-2, 2,000 steps",
            "the same GPT-2, 2,000 steps",
            width=64, tokens=64, seeds=8, steps=2000, warmup=100, rates=(3e-3, 1e-3, 1e-2), together=4,
        ),
    )
}  # fmt: skip
