"""DINOv2 and CLIP: their features, what identifies them, and which files are refused."""

import json
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_vision_models import CLIP, DINOV2, write_clip, write_clip_for_images, write_dinov2

from mscd.errors import UserError
from mscd.evaluation import vision_models
from mscd.evaluation.classifier import Classifier, save_classifier
from mscd.evaluation.detector import load_detector
from mscd.evaluation.vision_models import PUBLISHED, resize_positions
from mscd.files.atomic import sha256_of


def pictures(count, channels=3, resolution=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, resolution, resolution), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov2")
    write_dinov2(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    return folder


@pytest.fixture
def copied(dinov2, tmp_path):
    return Path(shutil.copytree(dinov2, tmp_path / "copied"))


def weights_in(folder):
    """Return the weights, in memory of their own: their file is about to change."""
    return {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def resized(images, size):
    return torch.nn.functional.interpolate(images.float(), (size, size), mode="bicubic", antialias=True)


def loaded_by_transformers(model_class, folder):
    return model_class.from_pretrained(folder, local_files_only=True, attn_implementation="eager").eval()


@pytest.mark.parametrize("resolution", [8, 32, 64])
def test_dinov2_features_are_its_class_token(dinov2, resolution):
    model = loaded_by_transformers(transformers.Dinov2Model, dinov2)
    embeddings = model.embeddings
    embeddings.position_embeddings = torch.nn.Parameter(resize_positions(embeddings.position_embeddings, 16))
    images = pictures(3, resolution=resolution)
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    with torch.no_grad():
        wanted = model((resized(images, 32) / 255 - mean) / std).last_hidden_state[:, 0]
    detector = load_detector(dinov2)
    found = detector(images)
    assert torch.equal(found, wanted) and found.dtype == torch.float32 and not found.requires_grad
    assert (detector.dim, detector.resolution, detector.channels) == (32, None, None)
    assert found.std(0).mean() > 0.02


@pytest.mark.parametrize("resolution", [8, 64])
def test_clip_features_are_its_image_embeddings(clip, resolution):
    model = loaded_by_transformers(transformers.CLIPVisionModelWithProjection, clip)
    images = pictures(3, resolution=resolution)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    with torch.no_grad():
        wanted = model((resized(images, 40) / 255 - mean) / std).image_embeds
    detector = load_detector(clip)
    assert torch.equal(detector(images), wanted) and wanted.dtype == torch.float32
    assert detector.dim == 24 and wanted.std(0).mean() > 0.02


@pytest.mark.parametrize("resolution", [8, 64])
def test_images_are_resized_as_pillow_does_but_not_rounded(clip, resolution):
    detector, images = load_detector(clip), (pictures(2, resolution=resolution) > 127) * torch.tensor(255).byte()
    planes = [Image.fromarray(plane.numpy().astype(np.float32)) for plane in images.flatten(0, 1)]
    wanted = np.stack([plane.resize((40, 40), Image.Resampling.BICUBIC) for plane in planes]).reshape(2, 3, 40, 40)
    assert wanted.min() < 0 and wanted.max() > 255  # not clipped either
    network = detector._network
    found = (network.prepare(images) * network.std + network.mean) * 255
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_positions_are_sampled_at_steps_of_37_over_16_point_1():
    positions = torch.randn(1, 1 + 37 * 37, 5, generator=torch.Generator().manual_seed(0))
    places = (np.arange(16)[:, None] + 0.5) * 37 / 16.1 - 0.5
    matrix = np.zeros((16, 37))
    for neighbour in range(-1, 3):
        below = np.floor(places[:, 0]).astype(int) + neighbour
        d = np.abs(places[:, 0] - below)
        near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
        np.add.at(matrix, (np.arange(16), below.clip(0, 36)), np.where(d <= 1, near, far))
    grid = positions[0, 1:].double().numpy().reshape(37, 37, 5)
    wanted = np.einsum("xi,yj,ijd->xyd", matrix, matrix, grid).reshape(256, 5)
    found = resize_positions(positions, 16)
    np.testing.assert_allclose(found[0, 1:], wanted, atol=1e-4)
    assert torch.equal(found[:, 0], positions[:, 0])
    as_transformers = torch.nn.functional.interpolate(
        positions[:, 1:].reshape(1, 37, 37, 5).permute(0, 3, 1, 2), size=(16, 16), mode="bicubic"
    )
    assert (as_transformers.flatten(2).mT[0].numpy() - wanted).std() > 0.1


def test_positions_of_as_many_patches_are_kept():
    positions = torch.randn(1, 257, 5)
    assert resize_positions(positions, 16) is positions


@pytest.mark.parametrize("model", ["dinov2", "clip"])
def test_features_of_an_image_do_not_depend_on_its_batch(model, request, monkeypatch):
    detector, images = load_detector(request.getfixturevalue(model)), pictures(9)
    together = detector(images)
    alone = torch.cat([detector(image[None]) for image in images])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(detector._network, "batch_size", 4)
    torch.testing.assert_close(detector(images), together, rtol=1e-5, atol=1e-5)
    assert torch.equal(detector.outputs(images, {"features"})["features"], detector(images))


@pytest.mark.parametrize(("model", "title"), [("dinov2", "DINOv2"), ("clip", "CLIP")])
def test_grey_counts_as_rgb_and_four_channels_are_refused(model, title, request):
    detector, grey = load_detector(request.getfixturevalue(model)), pictures(2, 1)
    assert torch.equal(detector(grey), detector(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(UserError, match=f"{title} takes images with 1 or 3 channels, not 4"):
        detector(pictures(2, 4))
    assert detector.gives == {"features"}
    with pytest.raises(UserError, match="gives features, but no logits"):
        detector.outputs(grey, {"logits"})


def test_a_folder_and_its_file_are_the_same_detector(dinov2, tmp_path):
    folder, file = load_detector(dinov2), load_detector(dinov2 / "model.safetensors")
    assert folder.identity == file.identity and torch.equal(folder(pictures(2)), file(pictures(2)))
    shutil.copy(dinov2 / "model.safetensors", tmp_path / "renamed.safetensors")
    shutil.copy(dinov2 / "config.json", tmp_path)
    assert load_detector(tmp_path / "renamed.safetensors").identity == folder.identity


def test_clip_needs_only_its_half_for_images(clip, tmp_path):
    write_clip_for_images(tmp_path)
    weights = load_file(clip / "model.safetensors")
    assert any(name.startswith("text_model.") for name in weights)
    images_only = {name: tensor for name, tensor in weights.items() if name.startswith("vi")}
    save_file(images_only, tmp_path / "model.safetensors")
    assert torch.equal(load_detector(tmp_path)(pictures(3)), load_detector(clip)(pictures(3)))


def test_clips_number_of_features_may_be_stated_for_both_halves_alone(clip, tmp_path):
    folder = Path(shutil.copytree(clip, tmp_path / "copied"))
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    change_config(folder, vision_config={name: vision[name] for name in vision if name != "projection_dim"})
    assert load_detector(folder).identity == load_detector(clip).identity


def test_the_digest_covers_weights_and_settings_that_features_depend_on(dinov2, copied):
    digests = [load_detector(dinov2).digest]
    change_config(copied, transformers_version="4.0", dtype="float16", layerscale_value=0.5, initializer_range=1.0)
    assert load_detector(copied).digest == digests[0]
    change_config(copied, num_attention_heads=2)  # which no shape of a weight shows
    digests.append(load_detector(copied).digest)
    assert not torch.equal(load_detector(copied)(pictures(2)), load_detector(dinov2)(pictures(2)))
    change_config(copied, layer_norm_eps=1e-5)
    digests.append(load_detector(copied).digest)
    write_dinov2(copied, seed=1)
    digests.append(load_detector(copied).digest)
    assert len(set(digests)) == 4 and all(len(digest) == 64 for digest in digests)


def test_settings_left_out_have_the_values_of_transformers(dinov2, copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({"model_type": "dinov2"} | {name: config[name] for name in DINOV2}))
    assert load_detector(copied).identity == load_detector(dinov2).identity


def test_a_sha256_is_that_of_the_weights_and_is_checked(dinov2):
    sha256 = sha256_of(dinov2 / "model.safetensors")
    assert load_detector(dinov2, sha256=sha256).identity == load_detector(dinov2).identity
    with pytest.raises(UserError, match=f"model.safetensors: its sha256 is {sha256}, expected 0000"):
        load_detector(dinov2, sha256="0" * 64)


@pytest.mark.parametrize(("model", "tiny"), [("dinov2", DINOV2), ("clip", CLIP)])
def test_only_the_published_architecture_has_the_name_of_scores(model, tiny, request, monkeypatch):
    folder = request.getfixturevalue(model)
    detector = load_detector(folder)
    assert detector.name == f"{model}-{detector.digest[:8]}"
    monkeypatch.setitem(PUBLISHED, model, PUBLISHED[model] | tiny)
    assert load_detector(folder).name == model
    assert load_detector(folder).digest == detector.digest


@pytest.mark.parametrize(
    ("kind", "config_class", "model_class", "weights", "size"),
    [
        ("dinov2", "Dinov2Config", "Dinov2Model", 304_368_640, 224),
        ("clip", "CLIPVisionConfig", "CLIPVisionModelWithProjection", 304_293_888, 336),
    ],
)
def test_published_models_have_the_known_sizes(kind, config_class, model_class, weights, size):
    config = getattr(transformers, config_class)(**PUBLISHED[kind])
    with torch.device("meta"):
        model = getattr(transformers, model_class)(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == weights
    network = vision_models.VisionModel(model, kind, PUBLISHED[kind])
    assert (network.size, network.dim) == (size, 1024 if kind == "dinov2" else 768)


def test_half_precision_weights_compute_in_float32(copied):
    weights = {name: tensor.half() for name, tensor in load_file(copied / "model.safetensors").items()}
    save_file(weights, copied / "model.safetensors")
    half = load_detector(copied)(pictures(2))
    save_file({name: tensor.float() for name, tensor in weights.items()}, copied / "model.safetensors")
    assert half.dtype == torch.float32 and torch.equal(half, load_detector(copied)(pictures(2)))


def test_a_gpu_may_not_use_tensorfloat_32_meanwhile(dinov2):
    detector, allowed, matrices = load_detector(dinov2), [], torch.backends.cuda.matmul
    detector._network.model.register_forward_hook(
        lambda *args: allowed.append((matrices.allow_tf32, torch.backends.cudnn.allow_tf32))
    )
    before = matrices.allow_tf32
    try:
        matrices.allow_tf32 = True
        detector(pictures(2))
        assert allowed == [(False, False)] and matrices.allow_tf32
    finally:
        matrices.allow_tf32 = before


def test_loading_draws_no_random_numbers_and_prints_nothing(clip, copied, capfd):
    drawn, verbosity = torch.get_rng_state(), transformers.logging.get_verbosity()
    load_detector(copied), load_detector(clip)
    change_config(copied, num_hidden_layers=3)
    with pytest.raises(UserError, match="lacks weights"):
        load_detector(copied)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.get_verbosity() == verbosity and transformers.logging.is_progress_bar_enabled()


def test_a_loaded_model_does_not_change_with_its_file(copied):
    detector, weights = load_detector(copied), copied / "model.safetensors"
    before, size = detector(pictures(2)), weights.stat().st_size
    with open(weights, "r+b") as file:
        file.write(bytes(size))
    assert torch.equal(detector(pictures(2)), before)


def test_nothing_else_in_the_folder_is_read_or_run(dinov2, copied):
    (copied / "modeling_other.py").write_text(f"open({str(copied / 'ran')!r}, 'w')\nclass Other: pass\n")
    for name in ("pytorch_model.bin", "adapter_config.json", "model.safetensors.index.json", "generation_config.json"):
        (copied / name).write_text("{damaged")
    change_config(
        copied,
        auto_map={"AutoModel": "modeling_other.Other", "AutoConfig": "modeling_other.Other"},
        quantization_config={"quant_method": "bitsandbytes"},
        transformers_weights="pytorch_model.bin",
        attn_implementation="someone/kernel",
        _attn_implementation="someone/kernel",
        fusion_config={"patch_embeddings": True},
        head_dim=4,
    )
    other = load_detector(copied)
    assert other.identity == load_detector(dinov2).identity
    assert torch.equal(other(pictures(2)), load_detector(dinov2)(pictures(2)))
    assert not (copied / "ran").exists()


def test_no_connection_is_tried_whatever_is_missing(copied, monkeypatch):
    tried = []

    def refuse(*args, **kwargs):
        tried.append(args)
        raise OSError("no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    load_detector(copied)
    (copied / "model.safetensors").unlink()
    with pytest.raises(UserError, match="copied/model.safetensors: no such file"):
        load_detector(copied)
    with pytest.raises(UserError, match="copied/model.safetensors: no such file"):
        load_detector(copied / "model.safetensors")
    with pytest.raises(UserError, match="facebook/dinov2-large: no such file"):
        load_detector("facebook/dinov2-large")
    assert tried == []


def test_mscds_files_are_never_taken_for_models_of_transformers(copied):
    save_classifier(copied / "classifier.safetensors", Classifier(8, 1, 10), {})
    assert load_detector(copied / "classifier.safetensors").name == "classifier"


def without_config(folder):
    (folder / "config.json").unlink()


def with_damaged_config(folder):
    content = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(content[:50])


def cut_short(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def pickled(folder):
    torch.save(weights_in(folder), folder / "model.safetensors", _use_new_zipfile_serialization=False)


def change_weights(folder, **changes):
    weights = weights_in(folder) | changes
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_config, "config.json: no such file or not readable .* download it"),
        (with_damaged_config, "config.json: not JSON, damaged or cut short"),
        (
            lambda folder: change_config(folder, model_type="bert"),
            "config.json: its model_type is 'bert'; .* dinov2, clip",
        ),
        (lambda folder: change_config(folder, model_type=["clip"]), "config.json: its model_type is \\['clip'\\]"),
        (lambda folder: change_config(folder, model_type="clip"), "config.json: has no vision_config"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "config.json: its model_type is None"),
        (
            lambda folder: change_config(folder, patch_size=[2, 2]),
            "config.json: patch_size is \\[2, 2\\], but must be a value",
        ),
        (
            lambda folder: change_config(folder, num_channels=1),
            "config.json: num_channels is 1, but must be a value like 3",
        ),
        (lambda folder: change_config(folder, num_attention_heads=0), "config.json: describes no DINOv2 model"),
        (
            lambda folder: change_config(folder, num_attention_heads=3),
            "describes no DINOv2 model|has misshapen weights",
        ),
        (lambda folder: change_config(folder, hidden_act="unheard"), "config.json: describes no DINOv2 model"),
        (
            lambda folder: change_config(folder, num_hidden_layers=3),
            "model.safetensors: lacks weights .*layer.2.* more",
        ),
        (lambda folder: change_config(folder, num_hidden_layers=1), "model.safetensors: has unknown weights .*layer.1"),
        (
            lambda folder: change_config(folder, image_size=64),
            "model.safetensors: has misshapen weights .*position_emb",
        ),
        (lambda folder: change_weights(folder, other=torch.zeros(2)), "has unknown weights .*\\(other\\)"),
        (lambda folder: change_weights(folder, **{"layernorm.bias": None}), "lacks weights .*\\(layernorm.bias\\)"),
        (cut_short, "model.safetensors: not a safetensors file, damaged or cut short"),
        (pickled, "model.safetensors: not a safetensors file, damaged or cut short"),
    ],
)
@pytest.mark.parametrize("given", ["", "model.safetensors"])
def test_a_faulty_model_is_refused_in_one_line(copied, damage, said, given):
    damage(copied)
    with pytest.raises(UserError, match=said) as refusal:
        load_detector(copied / given)
    assert str(refusal.value).startswith(str(copied)) and "\n" not in str(refusal.value)


def test_a_missing_library_is_named_with_its_remedy(dinov2, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"DINOv2 needs transformers: pip install 'mscd\[dino\]'"):
        load_detector(dinov2)
