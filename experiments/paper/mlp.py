"""A multilayer perceptron with one hidden layer, as a transformers model: AutoModelForImageClassification makes it."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


class MLPConfig(PretrainedConfig):
    """Images of (num_channels, image_size, image_size), `hidden_size` rectified linear units, `num_labels` classes."""

    model_type = "paper_mlp"

    num_channels: int = 1
    image_size: int = 28
    hidden_size: int = 784


class MLPForImageClassification(PreTrainedModel):
    """Logits (batch, num_labels) of pixel_values (batch, num_channels, image_size, image_size)."""

    config_class = MLPConfig
    main_input_name = "pixel_values"

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        self.hidden = nn.Linear(config.num_channels * config.image_size**2, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.reset_parameters()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None
    ) -> ImageClassifierOutputWithNoAttention:
        """`labels` (batch,) are class numbers; without them there is no loss."""
        logits = self.classifier(torch.relu(self.hidden(pixel_values.flatten(1))))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


AutoConfig.register(MLPConfig.model_type, MLPConfig)
AutoModelForImageClassification.register(MLPConfig, MLPForImageClassification)
