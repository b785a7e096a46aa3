"""DINOv2 and CLIP as detectors, for FD-DINOv2 and CMMD, by way of the library `transformers`.

A model is a local file `model.safetensors` with its `config.json` beside it. Nothing else in the folder is read,
nothing is downloaded, and no code comes from the folder. The digest of such a detector is over the sha256 of the
weights and over the settings in `config.json` that its features depend on, because not all of them show in the weights'
shapes: the number of attention heads does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn
from torch.nn import functional

from mscd.checkpoints.metadata import METADATA_KEY, open_safetensors
from mscd.errors import UserError
from mscd.evaluation.inception import as_rgb, check_sha256
from mscd.files.atomic import sha256_of

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# The models behind published scores, ViT-L/14 both. These settings are all that features depend on besides the weights.
PUBLISHED: dict[str, dict[str, int | float | str | bool]] = {
    "dinov2": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": 518,
        "patch_size": 14,
        "num_channels": 3,
        "qkv_bias": True,
        "use_swiglu_ffn": False,
        "use_mask_token": True,
    },
    "clip": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "image_size": 336,
        "patch_size": 14,
        "num_channels": 3,
    },
}
KINDS = {"dinov2": "dinov2", "clip": "clip", "clip_vision_model": "clip"}  # by model_type in config.json
TITLES = {"dinov2": "DINOv2", "clip": "CLIP"}
MEANS = {"dinov2": (0.485, 0.456, 0.406), "clip": (0.48145466, 0.4578275, 0.40821073)}
STDS = {"dinov2": (0.229, 0.224, 0.225), "clip": (0.26862954, 0.26130258, 0.27577711)}
DINOV2_GRID = 16  # patches per side at 224 pixels, whatever width the model was trained at
OTHER_HALF = ("text_model.", "text_projection.", "logit_scale")  # weights of CLIP that images do not need
ACTIVATIONS = 2**28  # floats of activations per pass: a gigabyte
MOST_AT_ONCE = 100


class VisionModel(nn.Module):
    """A vision transformer that returns float32 features for uint8 images [N, 1 or 3, H, W] of any size.

    DINOv2's features are the class token after the last layer norm, as EDM2 takes them for FD-DINOv2 (Karras et al.
    2024); CLIP's are the projected image embeddings of CMMD (Jayasumana et al. 2024), not normalised.
    dim: the number of features; size: pixels per side that images are resized to.
    """

    resolution = channels = None  # any
    gives = frozenset({"features"})

    def __init__(self, model: nn.Module, kind: str, settings: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.kind = model, kind
        self.dim: int = settings["hidden_size" if kind == "dinov2" else "projection_dim"]
        self.size: int = DINOV2_GRID * settings["patch_size"] if kind == "dinov2" else settings["image_size"]
        tokens = (self.size // settings["patch_size"]) ** 2 + 1
        floats = 3 * tokens * (settings["num_attention_heads"] * tokens + 4 * settings["hidden_size"])
        self.batch_size = max(1, min(MOST_AT_ONCE, ACTIVATIONS // floats))
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(MEANS[kind])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STDS[kind])[:, None, None], persistent=False)

    def outputs(self, images: torch.Tensor, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Return {"features": [N, dim]}, the only output there is."""
        return {"features": self.features(images)}

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 features [N, dim] of images uint8 [N, 1 or 3, H, W]; a grey channel is repeated.

        Raises UserError for other channel counts.
        """
        rgb = as_rgb(images, TITLES[self.kind])
        with _full_precision():
            made = self.model(pixel_values=self.prepare(rgb))
        features: torch.Tensor = made.last_hidden_state[:, 0] if self.kind == "dinov2" else made.image_embeds
        return features

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Return the model's input, float32 [N, 3, size, size], for images uint8 [N, 3, H, W].

        They are resized with an antialiased bicubic kernel, neither rounded nor clipped, as in EDM2's code for DINOv2
        and in CMMD's for CLIP. (JAX's bicubic kernel, which CMMD uses, is PyTorch's only with antialias=True.)
        """
        wide = functional.interpolate(images.float(), (self.size, self.size), mode="bicubic", antialias=True)
        normalised: torch.Tensor = (wide / 255 - self.mean) / self.std
        return normalised


def resize_positions(positions: torch.Tensor, grid: int) -> torch.Tensor:
    """Resize DINOv2's position embeddings [1, 1 + M², dim] to a grid of `grid` by `grid` patches, as published.

    The published code samples at steps of M/(grid + 0.1), not M/grid as transformers does. Embeddings of that many
    patches are returned unchanged.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if side == grid:
        return positions
    planes = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (grid + 0.1) / side
    resized = functional.interpolate(planes, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


def is_vision_model(path: str | os.PathLike[str]) -> bool:
    """Return whether a detector is a model for transformers: a folder, or a safetensors file that is not one of mscd's.

    Such a file says that it was written for PyTorch, or has a config.json beside it.
    """
    if Path(path).is_dir():
        return True
    described = Path(path).with_name(CONFIG).is_file()
    try:
        with open_safetensors(path, framework="np") as (_, header):
            return METADATA_KEY not in header and (described or header.get("format") == "pt")
    except UserError:  # reported when the whole file is read
        return described


def load_vision_model(path: str | os.PathLike[str], sha256: str | None) -> tuple[VisionModel, str, str]:
    """Load DINOv2 or CLIP from the safetensors file or the folder `path`; return (model, digest, name in scores).

    sha256: the one that the safetensors file must have, None for any. The name is "dinov2" or "clip" for the
    architectures in PUBLISHED, otherwise the kind of model and the beginning of the digest. Raises UserError naming the
    file if one is missing, damaged or describes another kind of model, if weights are missing or do not fit, and if
    transformers is not installed.
    """
    weights = Path(path, WEIGHTS) if Path(path).is_dir() else Path(path)
    kind, given = _read_config(weights.with_name(CONFIG))
    tensors = _read_weights(weights, OTHER_HALF if kind == "clip" else ())
    found = sha256_of(weights)
    if sha256 is not None:
        check_sha256(weights, found, sha256)
    model, settings = _build(kind, given, tensors, weights)
    content = json.dumps({"weights": found, "kind": kind, **settings}, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    name = kind if settings == PUBLISHED[kind] else f"{kind}-{digest[:8]}"
    return VisionModel(model, kind, settings), digest, name


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    """Return (kind of model, those settings of PUBLISHED that config.json states)."""
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        reason = f"no such file or not readable ({error.strerror})"
        raise UserError(f"{path}: {reason}; download it from where the weights are from") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON, damaged or cut short; download it again") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    kind = KINDS.get(str(model_type))
    if kind is None:
        raise UserError(f"{path}: its model_type is {model_type!r}; a detector needs one of {', '.join(KINDS)}")
    stated = config.get("vision_config") if model_type == "clip" else config
    if not isinstance(stated, dict):
        raise UserError(f"{path}: has no vision_config; download it again")
    if model_type == "clip" and "projection_dim" in config:  # of both halves
        stated = {**stated, "projection_dim": config["projection_dim"]}
    given = {name: stated[name] for name in PUBLISHED[kind] if name in stated}
    for name, value in given.items():
        usual = PUBLISHED[kind][name]
        if type(value) is not type(usual) or (name == "num_channels" and value != usual):
            raise UserError(f"{path}: {name} is {value!r}, but must be a value like {usual!r}; use another model")
    return kind, given


def _read_weights(path: Path, unused: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name, without those whose names begin with one of `unused`."""
    with open_safetensors(path, framework="pt", backend="pread") as (file, _):
        try:
            return {name: file.get_tensor(name) for name in file.keys() if not name.startswith(unused)}
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path}: damaged or cut short ({error}); download it again") from error


def _build(
    kind: str, given: dict[str, Any], tensors: dict[str, torch.Tensor], path: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """Return (transformers' model with these weights in float32, all its settings of PUBLISHED).

    Attention is "eager": plain matrix products, the same on every device, where "sdpa" would choose a kernel by device
    and version of PyTorch.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"{path}: {TITLES[kind]} needs transformers: pip install 'mscd[dino]'") from error
    names = {"dinov2": ("Dinov2Config", "Dinov2Model"), "clip": ("CLIPVisionConfig", "CLIPVisionModelWithProjection")}
    config_class, model_class = (getattr(transformers, name) for name in names[kind])
    try:
        # Without a path, transformers looks for no file. It draws initial weights for what is missing, refused below.
        with _quiet(transformers.logging), torch.random.fork_rng(devices=[]):
            config = config_class(**given)
            options = {"dtype": torch.float32, "attn_implementation": "eager", "ignore_mismatched_sizes": True}
            model, report = model_class.from_pretrained(
                None, config=config, state_dict=tensors, output_loading_info=True, **options
            )
    except Exception as error:  # whatever transformers raises for settings that no model can have
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path.with_name(CONFIG)}: describes no {TITLES[kind]} model ({reason})") from error
    mismatched = [name for name, *_ in report["mismatched_keys"]]
    faults = {"lacks": report["missing_keys"], "has unknown": report["unexpected_keys"], "has misshapen": mismatched}
    for fault, weights in faults.items():
        if weights:
            some = f"{min(weights)} and {len(weights) - 1} more" if len(weights) > 1 else min(weights)
            raise UserError(f"{path}: {fault} weights for what {CONFIG} describes ({some}); download both again")
    if kind == "dinov2":
        positions = resize_positions(model.embeddings.position_embeddings.detach(), DINOV2_GRID)
        model.embeddings.position_embeddings = nn.Parameter(positions)
    return model, {name: getattr(config, name) for name in PUBLISHED[kind]}


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Keep transformers from showing its progress and warnings: what matters is raised."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Keep a GPU from multiplying in TensorFloat-32, which training may have allowed for the whole process."""
    matrices = torch.backends.cuda.matmul
    allowed, matrices.allow_tf32 = matrices.allow_tf32, False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        matrices.allow_tf32 = allowed
