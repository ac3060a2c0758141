"""Train in a loop of torch, whose optimizer hydra makes from the config."""

from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig
from torch import nn

# page:
import adopt_hf

# end of page


@hydra.main(version_base=None, config_path=".", config_name="config")
def main(config: DictConfig) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(16, 4)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))
    # page:
    optimizer = hydra.utils.instantiate(config.optimizer, adopt_hf.param_groups(model, weight_decay=0.1))
    # end of page
    done = 0
    if "resume" in config:
        saved = torch.load(f"{config.resume}.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["steps"]
    for step in range(done + 1, 5):
        batch = inputs[4 * step - 4 : 4 * step]
        optimizer.zero_grad()
        nn.functional.mse_loss(model(batch), batch.sum(1, keepdim=True)).backward()
        optimizer.step()
        if step == 2:
            Path("out").mkdir(exist_ok=True)
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "steps": step}
            torch.save(saved, "out/checkpoint-2.pt")


if __name__ == "__main__":
    main()
