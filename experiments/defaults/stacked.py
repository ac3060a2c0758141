"""Small models of several seeds at once: the seeds are the first dimension of every weight, and the batch of a product.

A model is a function of a dictionary of weights, which have the names that transformers (or `torch.nn`) gives them, and
of the inputs; the seeds do not meet. A step of eight small models costs little more than one of one model, since it is
the number of operations that takes the time. tests/experiments/test_tasks.py compares each with the original.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  torch's own name for it

Weights = Mapping[str, Tensor]


def stack(models: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the weights of several models of one architecture, stacked along a new first dimension."""
    return {name: torch.stack([model[name] for model in models]) for name in models[0]}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` (seeds, ..., in) times `weight` (seeds or 1, in, out), plus `bias` (seeds, out)."""
    if len(weight) == 1 and len(x) > 1 and bias is None:  # one weight for all seeds
        return x @ weight[0]
    flat = x.flatten(1, -2)
    out = torch.bmm(flat, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), flat, weight)
    return out.unflatten(1, x.shape[1:-1])


def embed(table: Tensor, ids: Tensor) -> Tensor:
    """The rows `ids` (seeds, ...) of `table` (seeds, rows, width)."""
    seeds, rows, _ = table.shape
    first = torch.arange(seeds).view(-1, *[1] * (ids.dim() - 1)) * rows
    return F.embedding(ids + first, table.flatten(0, 1))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    normal = F.layer_norm(x, x.shape[-1:], eps=eps)
    over = (len(x), *[1] * (x.dim() - 2), x.shape[-1])
    return torch.addcmul(bias.view(over), normal, weight.view(over))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=eps) * weight.view(len(weight), *[1] * (x.dim() - 2), -1)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool) -> Tensor:
    """Softmax attention of (seeds, batch, tokens, width) each."""
    apart = (x.flatten(0, 1).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(*apart, is_causal=causal)
    return out.transpose(1, 2).flatten(2).unflatten(0, q.shape[:2])


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean for each seed, (seeds,), in nats; `labels` (seeds, ...) that are -100 do not count."""
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(len(labels), -1)
    return losses.sum(1) / (labels.flatten(1) != -100).sum(1)


def gpt2(w: Weights, ids: Tensor, heads: int) -> Tensor:
    """The hidden states (seeds, batch, tokens, width) of a GPT2LMHeadModel, before its head, which is its embedding."""
    x = embed(w["transformer.wte.weight"], ids)
    x = x + w["transformer.wpe.weight"][:, None, : ids.shape[-1]]
    layer = 0
    while (at := f"transformer.h.{layer}") + ".ln_1.weight" in w:
        y = layer_norm(x, w[f"{at}.ln_1.weight"], w[f"{at}.ln_1.bias"], 1e-5)
        q, k, v = linear(y, w[f"{at}.attn.c_attn.weight"], w[f"{at}.attn.c_attn.bias"]).chunk(3, -1)
        y = attend(q, k, v, heads, causal=True)
        x = x + linear(y, w[f"{at}.attn.c_proj.weight"], w[f"{at}.attn.c_proj.bias"])
        y = layer_norm(x, w[f"{at}.ln_2.weight"], w[f"{at}.ln_2.bias"], 1e-5)
        y = F.gelu(linear(y, w[f"{at}.mlp.c_fc.weight"], w[f"{at}.mlp.c_fc.bias"]), approximate="tanh")
        x = x + linear(y, w[f"{at}.mlp.c_proj.weight"], w[f"{at}.mlp.c_proj.bias"])
        layer += 1
    return layer_norm(x, w["transformer.ln_f.weight"], w["transformer.ln_f.bias"], 1e-5)


def gpt2_loss(w: Weights, ids: Tensor, heads: int) -> Tensor:
    """The mean loss of the next tokens, (seeds,). ids: (seeds, batch, tokens)."""
    hidden = gpt2(w, ids, heads)[:, :, :-1]
    return cross_entropy(linear(hidden, w["transformer.wte.weight"].transpose(1, 2)), ids[:, :, 1:])


def llama(w: Weights, ids: Tensor, heads: int, scale: float = 0.0) -> Tensor:
    """The hidden states of a LlamaForCausalLM, before its head. ids: (seeds, batch, tokens).

    Args:
        scale: The factor of the LoRA adapters, which are weights named like the layers, with `.lora_A` and `.lora_B`.
    """

    def project(x: Tensor, name: str) -> Tensor:
        out = linear(x, w[f"{name}.weight"].transpose(1, 2))
        if f"{name}.lora_A" in w:
            inner = linear(x, w[f"{name}.lora_A"].transpose(1, 2))
            out = out + linear(inner * scale, w[f"{name}.lora_B"].transpose(1, 2))
        return out

    x = embed(w["model.embed_tokens.weight"].expand(len(ids), -1, -1), ids)
    cos, sin = _rotation(ids.shape[-1], x.shape[-1] // heads, heads)
    layer = 0
    while (at := f"model.layers.{layer}") + ".input_layernorm.weight" in w:
        y = rms_norm(x, w[f"{at}.input_layernorm.weight"], 1e-6)
        q, k, v = (project(y, f"{at}.self_attn.{one}_proj") for one in "qkv")
        y = attend(_rotate(q, cos, sin, heads), _rotate(k, cos, sin, heads), v, heads, causal=True)
        x = x + project(y, f"{at}.self_attn.o_proj")
        y = rms_norm(x, w[f"{at}.post_attention_layernorm.weight"], 1e-6)
        y = F.silu(project(y, f"{at}.mlp.gate_proj")) * project(y, f"{at}.mlp.up_proj")
        x = x + project(y, f"{at}.mlp.down_proj")
        layer += 1
    return rms_norm(x, w["model.norm.weight"], 1e-6)


def llama_loss(w: Weights, ids: Tensor, labels: Tensor, heads: int, scale: float = 0.0) -> Tensor:
    """The mean loss of the next tokens, (seeds,), of those whose label is not -100."""
    hidden = llama(w, ids, heads, scale)[:, :, :-1]
    return cross_entropy(linear(hidden, w["lm_head.weight"].transpose(1, 2)), labels[:, :, 1:])


def _rotation(tokens: int, width: int, heads: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (tokens, heads * width) of LLaMA's rotary positions."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.outer(torch.arange(tokens, dtype=torch.float32), frequencies).repeat(1, 2).repeat(1, heads)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    first, second = x.unflatten(-1, (heads, -1)).chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1).flatten(-2) * sin


def vit(w: Weights, pixels: Tensor, heads: int) -> Tensor:
    """The logits (seeds, batch, classes) of a ViTForImageClassification. pixels: (seeds, batch, 1, size, size)."""
    kernel = w["vit.embeddings.patch_embeddings.projection.weight"]
    patches = F.unfold(pixels.flatten(0, 1), kernel.shape[-1], stride=kernel.shape[-1]).transpose(1, 2)
    patches = patches.unflatten(0, pixels.shape[:2])
    bias = w["vit.embeddings.patch_embeddings.projection.bias"]
    x = linear(patches, kernel.flatten(2).transpose(1, 2), bias)
    token = w["vit.embeddings.cls_token"].expand(-1, pixels.shape[1], -1, -1)
    x = torch.cat((token, x), 2) + w["vit.embeddings.position_embeddings"]
    layer = 0
    while (at := f"vit.layers.{layer}") + ".layernorm_before.weight" in w:
        y = layer_norm(x, w[f"{at}.layernorm_before.weight"], w[f"{at}.layernorm_before.bias"], 1e-12)
        q, k, v = (_dense(w, f"{at}.attention.{one}_proj", y) for one in "qkv")
        x = x + _dense(w, f"{at}.attention.o_proj", attend(q, k, v, heads, causal=False))
        y = layer_norm(x, w[f"{at}.layernorm_after.weight"], w[f"{at}.layernorm_after.bias"], 1e-12)
        x = x + _dense(w, f"{at}.mlp.fc2", F.gelu(_dense(w, f"{at}.mlp.fc1", y)))
        layer += 1
    x = layer_norm(x[:, :, 0], w["vit.layernorm.weight"], w["vit.layernorm.bias"], 1e-12)
    return _dense(w, "classifier", x)


def perceptron(w: Weights, pixels: Tensor) -> Tensor:
    """The logits (seeds, batch, classes) of experiments/paper/mlp.py. pixels: (seeds, batch, pixels)."""
    return _dense(w, "classifier", torch.relu(_dense(w, "hidden", pixels)))


def vae_bound(w: Weights, x: Tensor, noise: Tensor) -> Tensor:
    """The negative evidence lower bound (seeds, batch) of experiments/paper/vae.py, nats a picture, with one draw of z.

    x: (seeds, batch, pixels), 0 or 1; noise: (seeds, batch, latent), standard normal.
    """
    mean, log_std = _dense(w, "encoder.2", F.silu(_dense(w, "encoder.0", x))).chunk(2, -1)
    z = mean + log_std.exp() * noise
    logits = _dense(w, "decoder.2", F.silu(_dense(w, "decoder.0", z)))
    log_likelihood = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    log_prior = -0.5 * (z**2 + math.log(2 * math.pi)).sum(-1)
    log_posterior = -0.5 * (noise**2 + 2 * log_std + math.log(2 * math.pi)).sum(-1)
    return log_posterior - log_prior - log_likelihood


def window(w: Weights, ids: Tensor) -> Tensor:
    """The logits (seeds, batch, vocabulary) of the token after the few in `ids` (seeds, batch, tokens).

    A perceptron with one hidden layer on the embeddings of these tokens (Bengio et al., 2003).
    """
    return _dense(w, "head", torch.tanh(_dense(w, "hidden", embed(w["embedding.weight"], ids).flatten(2))))


def _dense(w: Weights, name: str, x: Tensor) -> Tensor:
    """A `torch.nn.Linear`."""
    return linear(x, w[f"{name}.weight"].transpose(1, 2), w[f"{name}.bias"])
