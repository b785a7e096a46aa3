"""DINOv2 and CLIP with few weights, which are random, written as the published ones are."""

from pathlib import Path

import torch
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from mscd.files.atomic import sha256_of

# As published, DINOv2 was trained with 37 by 37 patches, and detects with 16 by 16: here of 32 by 32 pixels.
DINOV2 = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 74, "patch_size": 2}
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "projection_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 40,
    "patch_size": 8,
}
CLIP_TEXT = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 16,
    "projection_dim": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def write_dinov2(folder: Path, seed: int = 0) -> str:
    """Write DINOv2 with 32 features to `folder`; return the sha256 of its model.safetensors."""
    return _write(Dinov2Model, Dinov2Config(**DINOV2), folder, seed)


def write_clip(folder: Path, seed: int = 0) -> str:
    """Write CLIP, which has 24 features for images, and its half for texts; return the sha256 of model.safetensors."""
    vision, text = CLIPVisionConfig(**CLIP).to_dict(), CLIPTextConfig(**CLIP_TEXT).to_dict()
    return _write(CLIPModel, CLIPConfig(vision_config=vision, text_config=text, projection_dim=24), folder, seed)


def write_clip_for_images(folder: Path, seed: int = 0) -> str:
    """Write CLIP without the half for texts; return the sha256 of model.safetensors."""
    return _write(CLIPVisionModelWithProjection, CLIPVisionConfig(**CLIP), folder, seed)


def _write(model_class: type[nn.Module], config: object, folder: Path, seed: int) -> str:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = model_class(config)
        for parameter in model.parameters():  # initial weights are so small that features would hardly differ
            parameter.add_(torch.randn(parameter.shape), alpha=0.15)
    model.save_pretrained(folder)
    return sha256_of(Path(folder, "model.safetensors"))
