"""Pickled checkpoints in EDM's format (teachers, students and their averages), read without executing anything.

Such a file is a pickle of {"ema": network, ...}. Each module in it is a call of one function with a dict of class name,
source code and state; the code is never looked at. We take the constructor arguments from the network's state, build an
EDMPrecond from them, and fill it name by name with the file's tensors. Anything that does not fit exactly is refused.
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
REMEDY = "fetch it again, or use a checkpoint in EDM's format"

# The arguments of the reference constructor, in order; all but the last are also attributes.
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
# Bounds of the integer options: far above any real network, but low enough to build one on meta quickly.
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
    """The content of a pickled checkpoint.

    network: on the CPU, in eval mode, without gradients, with float32 weights. average: the entry of the file that it
    comes from, "ema" or "net". nimg: number of training images seen, or None. student: the segments, sigma_min,
    sigma_max and rho that it was distilled for, or None. dataset: plain facts that the file states about its training
    data (path, resolution, xflip, ...); empty if it states none.
    """

    network: EDMPrecond
    average: str
    nimg: int | None
    student: StudentFacts | None
    dataset: dict[str | float | None, object]

    def facts(self, model: str) -> NetworkFacts:
        """Return what the checkpoint states about its network, called `model`, as a network file's metadata."""
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
    """Return whether a file starts like a pickle, whatever its name; False if there is no file.

    Raises UserError if the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except (FileNotFoundError, IsADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    # A safetensors file may also start with that byte, in the length of its header, but a brace follows the length.
    return start[:1] == b"\x80" and start[8:] != b"{"


def read_edm_pickle(path: str | os.PathLike[str]) -> EDMCheckpoint:
    """Read a pickled checkpoint without importing anything that it names or running anything that it contains.

    Holds one copy of the chosen network's weights in memory; the file itself is mapped, not read into memory. Raises
    UserError naming the file if it is not such a checkpoint or if mscd cannot build its network.
    """
    data = _mapped(path)
    try:
        reader = SafeUnpickler(data, CALLS)
        root = reader.load()
        if reader.at != len(data):
            raise UnsafePickle(f"it has data after its end (at byte {reader.at})")
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
    """Handle a call of torch_utils.persistence._reconstruct_persistent_obj, ignoring its source code."""
    match args:
        case ({"type": "class", "version": int() as version, "class_name": str() as name, "state": dict() as state},):
            pass
        case _:
            raise UnsafePickle("it has an object in an unexpected form")
    if version != PERSISTENCE_VERSION:
        raise UnsafePickle(f"it has an object of version {version}; only version {PERSISTENCE_VERSION} is supported")
    if name.endswith("Precond") and name != "EDMPrecond":
        raise UnsafePickle(
            f"it holds a {name[:50]!a}; only networks with EDM's preconditioning (EDMPrecond) are supported"
        )
    if name not in KNOWN_CLASSES:
        raise UnsafePickle(f"it holds a {name[:50]!a}, which is not a supported class")
    return PickledObject(name, state=state)


# Calls of container constructors. They must be empty: content would be copied at every call, and no network has any.


def _empty_dict(args: tuple[object, ...]) -> dict[object, object]:
    if args == ():
        return {}
    raise UnsafePickle("it has a dict in an unexpected form")


def _empty_set(args: tuple[object, ...]) -> set[object]:
    if args == () or args == ([],):
        return set()
    raise UnsafePickle("it has a set in an unexpected form")


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
    """Return the checkpoint that `root`, the value of a file of `size` bytes, describes."""
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
    """Return whether a fact can be shown as it is: a number, or text that is safe for a terminal."""
    if isinstance(value, str):
        return value.isprintable() and len(value) <= LONGEST_FACT
    return isinstance(value, SCALARS)


def _student(loss: object) -> StudentFacts | None:
    """Return the segments and grid of a student, from its loss."""
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
    raise UnsafePickle(f"its {STUDENT_LOSS} has no valid segments (S) and grid (sigma_min, sigma_max, rho)")


def _network(pickled: object, size: int) -> EDMPrecond:
    if not (isinstance(pickled, PickledObject) and pickled.kind == "EDMPrecond"):
        raise UnsafePickle(f"its network is a {_kind(pickled)}")
    with torch.device("meta"):  # allocates nothing: the file may declare any size
        try:
            net = EDMPrecond(**_options(pickled))
        except UserError as error:
            raise UnsafePickle(f"its network cannot be built: {error}") from error
    weights: dict[str, Tensor] = {}
    _gather(pickled, net, "", weights)
    if sum(tensor.nbytes for tensor in weights.values()) > size:
        raise UnsafePickle("its weights are declared larger than the file")
    net.load_state_dict({name: tensor.read() for name, tensor in weights.items()}, assign=True)
    _check_filters(net)
    return net.eval().requires_grad_(False)


def _kind(pickled: object) -> str:
    return pickled.kind if isinstance(pickled, PickledObject) else type(pickled).__name__


def _state(pickled: PickledObject) -> Mapping[object, object]:
    """Return the attributes of an object by name; empty if its state is not a dict."""
    return pickled.state if isinstance(pickled.state, dict) else {}


def _options(pickled: PickledObject) -> dict[str, Any]:
    """Return EDMPrecond's keyword arguments: those stored for the constructor, with which the attributes must agree."""
    state = _state(pickled)
    args, kwargs = state.get("_init_args"), state.get("_init_kwargs")
    if type(args) is not tuple or type(kwargs) is not dict or len(args) > len(PRECOND_ARGUMENTS):
        raise UnsafePickle("its network does not state its constructor arguments")
    options = {**dict(zip(PRECOND_ARGUMENTS, args, strict=False)), **kwargs}
    attributes = {name: state.get(name) for name in PRECOND_ARGUMENTS[:-1]}
    for name, value in [*options.items(), *attributes.items()]:
        if not _is_sound(name, value):
            raise UnsafePickle(f"its network has an invalid or missing {str(name)[:50]!a}")
    for name, value in attributes.items():
        # The precision may have been changed after construction; the attribute is what was used.
        if name != "use_fp16" and options.get(name, value) != value:
            raise UnsafePickle(f"its network was constructed with a different {name!r} from the one it has now")
    return options | attributes


def _is_sound(name: object, value: object) -> bool:
    """Return whether a constructor argument has the right type and is within bounds; EDMPrecond checks its name."""
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
    """Put the tensors of `pickled` into `weights` by full name, after checking that it describes `module`."""
    if not isinstance(pickled, PickledObject) or pickled.kind != type(module).__name__:
        raise UnsafePickle(f"{prefix.removesuffix('.')!a} is a {_kind(pickled)}, wanted a {type(module).__name__}")
    for name, value in _attributes(module).items():
        if _state(pickled).get(name) != value:
            raise UnsafePickle(f"{prefix.removesuffix('.')!a} has the wrong {name!r} for its network (wanted {value})")
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
    """Return the tensors or modules of an object by name, without empty entries."""
    members = _state(pickled).get(part)
    if type(members) is not dict or not all(isinstance(name, str) for name in members):
        raise UnsafePickle(f"it has a {pickled.kind} without {part!r}")
    return {name: value for name, value in members.items() if value is not None}


def _check_names(prefix: str, found: Collection[str], wanted: Collection[str]) -> None:
    for name in sorted(set(found) ^ set(wanted)):
        how = "missing" if name in wanted else "extra"
        raise UnsafePickle(f"its weights do not fit its network ({(prefix + name)[:100]!a} is {how})")


def _attributes(module: torch.nn.Module) -> dict[str, float]:
    """Return the settings of a layer other than its weights, under the names they have in a file."""
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
    """Check that each buffer of a [1, 1] resampling is that filter: the resampling does not read the buffer."""
    for name, module in net.named_modules():
        if isinstance(module, Conv2d) and module.resample and module.is_box:
            if not torch.equal(module.get_buffer("resample_filter"), torch.full((1, 1, 2, 2), 0.25)):
                raise UnsafePickle(
                    f"{name + '.resample_filter'!a} is not the filter [1, 1] that it was constructed with"
                )
