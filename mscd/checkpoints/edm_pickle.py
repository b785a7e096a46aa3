"""Pickled checkpoints of EDM's form, read without running them: teachers, students and their averages.

Such a file is a pickle of {"ema": network, ...}. Each module in it is a call of one function with a dict of class name,
source code and state; the code is never looked at. Of the network's state we take constructor arguments, build an
EDMPrecond from them, and fill it name by name with the file's tensors; what doesn't fit exactly is refused.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mscd.checkpoints.metadata import NetworkFacts, StudentFacts
from mscd.checkpoints.pickled_tensors import (
    Tensor,
    load_storage,
    numpy_dtype,
    numpy_scalar,
    rebuild_parameter,
    rebuild_tensor,
)
from mscd.errors import UserError
from mscd.files.safe_pickle import SCALARS, PickledObject, SafeUnpickler, UnsafePickle
from mscd.networks import EDMPrecond
from mscd.networks.group_norm import GroupNorm
from mscd.networks.layers import Conv2d, PositionalEmbedding, UNetBlock

NETWORK_CLASSES = {
    "EDMPrecond",
    "SongUNet",
    "DhariwalUNet",
    "UNetBlock",
    "Conv2d",
    "Linear",
    "GroupNorm",
    "PositionalEmbedding",
    "FourierEmbedding",
}
STUDENT_LOSS = "EDMConsistencyDistillLoss"
KNOWN_CLASSES = NETWORK_CLASSES | {STUDENT_LOSS, "EDMLoss", "AugmentPipe"}
PERSISTENCE_VERSION = 6
REMEDY = "fetch it again, or use a checkpoint of EDM's form"

# The reference constructor's arguments in their order; all but the last are attributes, too.
PRECOND_ARGUMENTS = (
    "img_resolution",
    "img_channels",
    "label_dim",
    "use_fp16",
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "model_type",
)
# Each integer option's bounds: far above any network, so low that building one without memory is quick.
INTEGERS = {
    "img_resolution": (1, 4096),
    "img_channels": (1, 64),
    "label_dim": (0, 10**6),
    "augment_dim": (0, 1024),
    "model_channels": (1, 4096),
    "num_blocks": (0, 64),
    "channel_mult_emb": (1, 64),
    "channel_mult_noise": (1, 64),
}
WORDS = {"model_type", "embedding_type", "encoder_type", "decoder_type"}
RATES = {"sigma_min", "sigma_max", "sigma_data", "dropout", "label_dropout"}
LISTS = {"channel_mult", "attn_resolutions", "resample_filter", "dout_resolutions"}
LONGEST_LIST, LARGEST_ENTRY = 16, 4096
LONGEST_WORD, LONGEST_FACT, MOST_SEGMENTS = 50, 1000, 1000


@dataclass(frozen=True)
class EDMCheckpoint:
    """What a pickled checkpoint holds.

    network: on the CPU, in eval mode, without gradients, float32 weights. average: which entry of the file it is, "ema"
    or "net". nimg: images it was trained on, or None. student: None, or the segments, sigma_min, sigma_max and rho that
    it was distilled for. dataset: plain facts of its training data as the file states them (path, resolution, xflip,
    ...); empty when it states none.
    """

    network: EDMPrecond
    average: str
    nimg: int | None
    student: StudentFacts | None
    dataset: dict[str | float | None, object]

    def facts(self, model: str) -> NetworkFacts:
        """What the checkpoint says of its network, called `model`, as the metadata of a network file have it."""
        net, nimg = self.network, self.nimg
        facts: NetworkFacts = {
            "model": model,
            "snapshot_kimg": None if nimg is None else round(nimg / 1000),
            "ema": self.average,
            "data": {
                "digest": None,
                "resolution": net.img_resolution,
                "channels": net.img_channels,
                "label_dim": net.label_dim,
            },
            "student": self.student,
        }
        if nimg is not None:
            facts["nimg"] = nimg
        return facts


def is_pickle(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a pickle, whatever its name; False where there is no file. UserError if unreadable."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except (FileNotFoundError, IsADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    # A safetensors file may have that first byte, too, in the length of its header; after the length it has a brace.
    return start[:1] == b"\x80" and start[8:] != b"{"


def read_edm_pickle(path: str | os.PathLike[str]) -> EDMCheckpoint:
    """Read a pickled checkpoint; nothing that it names is imported and nothing that it carries is run.

    Holds one copy of the chosen network's weights; the file itself is mapped, not read into memory.
    Raises UserError naming the file for whatever is not such a checkpoint or not a network that mscd can build.
    """
    data = _mapped(path)
    try:
        reader = SafeUnpickler(data, CALLS)
        root = reader.load()
        if reader.at != len(data):
            raise UnsafePickle(f"it goes on after its end (at byte {reader.at})")
        return _checkpoint(root, len(data))
    except UnsafePickle as refused:
        raise UserError(f"{path}: refused: {refused}; {REMEDY}") from refused


def _mapped(path: str | os.PathLike[str]) -> memoryview:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; check the path")
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise UserError(f"{path}: refused: it is empty; {REMEDY}")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); check its permissions") from error


def _persistent_object(args: tuple[object, ...]) -> PickledObject:
    """A call of torch_utils.persistence._reconstruct_persistent_obj, its source code left aside."""
    match args:
        case ({"type": "class", "version": int() as version, "class_name": str() as name, "state": dict() as state},):
            pass
        case _:
            raise UnsafePickle("it has an object in another form")
    if version != PERSISTENCE_VERSION:
        raise UnsafePickle(f"it has an object of version {version}, and only version {PERSISTENCE_VERSION} is read")
    if name.endswith("Precond") and name != "EDMPrecond":
        raise UnsafePickle(
            f"it holds a {name[:50]!a}, and only networks with EDM's preconditioning (EDMPrecond) are read"
        )
    if name not in KNOWN_CLASSES:
        raise UnsafePickle(f"it holds a {name[:50]!a}, a class that is not known here")
    return PickledObject(name, state=state)


# Calls of containers' constructors. One with content would copy it at each call, and no network has one.


def _empty_dict(args: tuple[object, ...]) -> dict[object, object]:
    if args == ():
        return {}
    raise UnsafePickle("it has a dict in another form")


def _empty_set(args: tuple[object, ...]) -> set[object]:
    if args == () or args == ([],):
        return set()
    raise UnsafePickle("it has a set in another form")


def _module_dict(args: tuple[object, ...]) -> PickledObject:
    return PickledObject("ModuleDict", args)


CALLS = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    "torch.nn.modules.container.ModuleDict": _module_dict,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch.storage._load_from_bytes": load_storage,
    "collections.OrderedDict": _empty_dict,
    "dnnlib.util.EasyDict": _empty_dict,
    "builtins.set": _empty_set,
    "numpy.dtype": numpy_dtype,
    "numpy.core.multiarray.scalar": numpy_scalar,
    "numpy._core.multiarray.scalar": numpy_scalar,
}


def _checkpoint(root: object, size: int) -> EDMCheckpoint:
    """What the value of a file of `size` bytes says."""
    entries: dict[object, object] = root if isinstance(root, dict) else {}
    average = next((name for name in ("ema", "net") if entries.get(name) is not None), None)
    if average is None:
        raise UnsafePickle("it has no network (neither 'ema' nor 'net')")
    nimg, dataset = entries.get("nimg"), entries.get("dataset_kwargs")
    if nimg is not None and not (isinstance(nimg, int) and nimg >= 0):
        raise UnsafePickle("its 'nimg' is not a number of images")
    facts = dataset.items() if isinstance(dataset, dict) else ()
    return EDMCheckpoint(
        network=_network(entries[average], size),
        average=average,
        nimg=nimg,
        student=_student(entries.get("loss_fn")),
        dataset={key: value for key, value in facts if _is_plain(key) and _is_plain(value)},
    )


def _is_plain(value: object) -> bool:
    """Whether a fact can be shown as it is: a number, or text that does nothing to a terminal."""
    if isinstance(value, str):
        return value.isprintable() and len(value) <= LONGEST_FACT
    return isinstance(value, SCALARS)


def _student(loss: object) -> StudentFacts | None:
    """Segments and grid of a student, from its loss."""
    if not (isinstance(loss, PickledObject) and loss.kind == STUDENT_LOSS):
        return None
    match loss.state:
        case {
            "S": int() as segments,
            "sigma_min": float() | int() as sigma_min,
            "sigma_max": float() | int() as sigma_max,
            "rho": float() | int() as rho,
        } if 1 <= segments <= MOST_SEGMENTS and 0 < sigma_min < sigma_max < math.inf and 0 < rho < math.inf:
            return {"segments": segments, "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
    raise UnsafePickle(f"its {STUDENT_LOSS} does not say its segments (S) and grid (sigma_min, sigma_max, rho)")


def _network(pickled: object, size: int) -> EDMPrecond:
    if not (isinstance(pickled, PickledObject) and pickled.kind == "EDMPrecond"):
        raise UnsafePickle(f"its network is a {_kind(pickled)}")
    with torch.device("meta"):  # takes no memory: the file may say any size
        try:
            net = EDMPrecond(**_options(pickled))
        except UserError as error:
            raise UnsafePickle(f"its network cannot be built: {error}") from error
    weights: dict[str, Tensor] = {}
    _gather(pickled, net, "", weights)
    if sum(tensor.nbytes for tensor in weights.values()) > size:
        raise UnsafePickle("its weights are told larger than the file")
    net.load_state_dict({name: tensor.read() for name, tensor in weights.items()}, assign=True)
    _check_filters(net)
    return net.eval().requires_grad_(False)


def _kind(pickled: object) -> str:
    return pickled.kind if isinstance(pickled, PickledObject) else type(pickled).__name__


def _state(pickled: PickledObject) -> Mapping[object, object]:
    """The attributes of an object, by name; none where its state is something else."""
    return pickled.state if isinstance(pickled.state, dict) else {}


def _options(pickled: PickledObject) -> dict[str, Any]:
    """EDMPrecond's keyword arguments: the constructor's as stored, which the attributes must agree with."""
    state = _state(pickled)
    args, kwargs = state.get("_init_args"), state.get("_init_kwargs")
    if type(args) is not tuple or type(kwargs) is not dict or len(args) > len(PRECOND_ARGUMENTS):
        raise UnsafePickle("its network does not say how it was constructed")
    options = {**dict(zip(PRECOND_ARGUMENTS, args, strict=False)), **kwargs}
    attributes = {name: state.get(name) for name in PRECOND_ARGUMENTS[:-1]}
    for name, value in [*options.items(), *attributes.items()]:
        if not _is_sound(name, value):
            raise UnsafePickle(f"its network has an impossible {str(name)[:50]!a}, or none")
    for name, value in attributes.items():
        # The precision may have been switched after construction; the attribute is what counted.
        if name != "use_fp16" and options.get(name, value) != value:
            raise UnsafePickle(f"its network was not constructed with the {name!r} that it has now")
    return options | attributes


def _is_sound(name: object, value: object) -> bool:
    """Whether a constructor's argument is of its type and within bounds; EDMPrecond knows the names it takes."""
    if name in INTEGERS:
        lowest, highest = INTEGERS[name]
        return type(value) is int and lowest <= value <= highest
    if name in RATES:
        return (type(value) is int or type(value) is float) and value >= 0
    if name in LISTS:
        if value is None:
            return name == "dout_resolutions"
        if not isinstance(value, (list, tuple)) or len(value) > LONGEST_LIST:
            return False
        kinds = (int, float) if name == "resample_filter" else (int,)
        return all(type(n) in kinds and 0 <= n <= LARGEST_ENTRY for n in value)
    if name == "use_fp16":
        return type(value) is bool
    if name in WORDS:
        return _is_word(value)
    return _is_word(name) and (_is_word(value) if isinstance(value, str) else isinstance(value, SCALARS))


def _is_word(text: object) -> bool:
    return isinstance(text, str) and text.isidentifier() and len(text) <= LONGEST_WORD


def _gather(pickled: object, module: torch.nn.Module, prefix: str, weights: dict[str, Tensor]) -> None:
    """Put the tensors of `pickled`, by full name, into `weights`, having checked that `module` is what it describes."""
    if not isinstance(pickled, PickledObject) or pickled.kind != type(module).__name__:
        raise UnsafePickle(f"{prefix.removesuffix('.')!a} is a {_kind(pickled)}, wanted a {type(module).__name__}")
    for name, value in _attributes(module).items():
        if _state(pickled).get(name) != value:
            raise UnsafePickle(
                f"{prefix.removesuffix('.')!a} has another {name!r} than the network it says to be ({value})"
            )
    wanted = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    tensors = _members(pickled, "_parameters") | _members(pickled, "_buffers")
    _check_names(prefix, tensors, wanted)
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.storage.dtype.is_floating_point:
            raise UnsafePickle(f"{prefix + name!a} is not a tensor of floating-point numbers")
        if tensor.shape != tuple(wanted[name].shape):
            raise UnsafePickle(f"{prefix + name!a} has shape {list(tensor.shape)}, wanted {list(wanted[name].shape)}")
        weights[prefix + name] = tensor
    children, modules = dict(module.named_children()), _members(pickled, "_modules")
    _check_names(prefix, modules, children)
    for name, child in children.items():
        _gather(modules[name], child, f"{prefix}{name}.", weights)


def _members(pickled: PickledObject, part: str) -> dict[str, object]:
    """Tensors or modules of one, without the places that are empty."""
    members = _state(pickled).get(part)
    if type(members) is not dict or not all(isinstance(name, str) for name in members):
        raise UnsafePickle(f"it has a {pickled.kind} without {part!r}")
    return {name: value for name, value in members.items() if value is not None}


def _check_names(prefix: str, found: Collection[str], wanted: Collection[str]) -> None:
    for name in sorted(set(found) ^ set(wanted)):
        how = "missing" if name in wanted else "extra"
        raise UnsafePickle(f"weights of another network ({(prefix + name)[:100]!a} is {how})")


def _attributes(module: torch.nn.Module) -> dict[str, float]:
    """What a layer computes with besides weights, under the names it has in a file."""
    match module:
        case UNetBlock():
            return {"num_heads": module.heads, "skip_scale": module.skip_scale, "adaptive_scale": module.adaptive}
        case GroupNorm():
            return {"num_groups": module.groups, "eps": module.eps}
        case Conv2d():
            resampling = {"up": module.resample == "up", "down": module.resample == "down"}
            return {**resampling, "fused_resample": module.filter_last}
        case PositionalEmbedding():
            return {"num_channels": 2 * module.frequencies, "max_positions": 10000, "endpoint": module.offset == 1}
    return {}


def _check_filters(net: EDMPrecond) -> None:
    """A resampling by [1, 1] is computed without looking at the buffer, which must be that filter, then."""
    for name, module in net.named_modules():
        if isinstance(module, Conv2d) and module.resample and module.is_box:
            if not torch.equal(module.get_buffer("resample_filter"), torch.full((1, 1, 2, 2), 0.25)):
                raise UnsafePickle(
                    f"{name + '.resample_filter'!a} is not the filter [1, 1] that it was constructed with"
                )
