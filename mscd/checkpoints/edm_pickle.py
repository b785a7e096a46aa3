"""Pickled checkpoints of EDM's form, read without running them: teachers, students and their averages.

Such a file is a pickle of {"ema": network, ...}. Each module in it is a call of one function with a dict of class name,
source code and state; the code is never looked at. Of the network's state we take constructor arguments, build a
network of ours from them, and fill it name by name with the file's tensors; what doesn't fit exactly is refused.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import torch

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
from mscd.networks.layers import Conv2d, GroupNorm, PositionalEmbedding, UNetBlock

NETWORK_CLASSES = {"EDMPrecond", "SongUNet", "DhariwalUNet", "UNetBlock", "Conv2d", "Linear", "GroupNorm"}
NETWORK_CLASSES |= {"PositionalEmbedding", "FourierEmbedding"}
STUDENT_LOSS = "EDMConsistencyDistillLoss"
KNOWN_CLASSES = NETWORK_CLASSES | {STUDENT_LOSS, "EDMLoss", "AugmentPipe"}
PERSISTENCE_VERSION = 6
REMEDY = "fetch it again, or use a checkpoint of EDM's form"

# The reference constructor's arguments in their order; all but the last are attributes, too.
PRECOND_ARGUMENTS = ("img_resolution", "img_channels", "label_dim", "use_fp16")
PRECOND_ARGUMENTS += ("sigma_min", "sigma_max", "sigma_data", "model_type")
# Each integer option's bounds: far above any network, so low that building one without memory is quick.
INTEGERS = {"img_resolution": (1, 4096), "img_channels": (1, 64), "label_dim": (0, 10**6), "augment_dim": (0, 1024)}
INTEGERS |= {"model_channels": (1, 4096), "num_blocks": (0, 64)}
INTEGERS |= {"channel_mult_emb": (1, 64), "channel_mult_noise": (1, 64)}
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
    student: dict | None
    dataset: dict


def read_edm_pickle(path: str | os.PathLike) -> EDMCheckpoint:
    """Read a pickled checkpoint; nothing that it names is imported and nothing that it carries is run.

    Holds one copy of the chosen network's weights; the file itself is mapped, not read into memory.
    Raises UserError naming the file for whatever is not such a checkpoint or not a network that we can build.
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


def _mapped(path: str | os.PathLike) -> memoryview:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; check the path")
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise UserError(f"{path}: refused: it is empty; {REMEDY}")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); check its permissions") from error


def _persistent_object(args: tuple) -> PickledObject:
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


def _empty(kind: type, args: tuple) -> dict | set:
    """A call of a container's constructor. One with content would copy it at each call, and no network has one."""
    if args == () or kind is set and args == ([],):
        return kind()
    raise UnsafePickle(f"it has a {kind.__name__} in another form")


def _module_dict(args: tuple) -> PickledObject:
    return PickledObject("ModuleDict", args)


CALLS = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    "torch.nn.modules.container.ModuleDict": _module_dict,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch.storage._load_from_bytes": load_storage,
    "collections.OrderedDict": lambda args: _empty(dict, args),
    "dnnlib.util.EasyDict": lambda args: _empty(dict, args),
    "builtins.set": lambda args: _empty(set, args),
    "numpy.dtype": numpy_dtype,
    "numpy.core.multiarray.scalar": numpy_scalar,
    "numpy._core.multiarray.scalar": numpy_scalar,
}


def _checkpoint(root: object, size: int) -> EDMCheckpoint:
    """What the value of a file of `size` bytes says."""
    average = next((name for name in ("ema", "net") if isinstance(root, dict) and root.get(name) is not None), None)
    if average is None:
        raise UnsafePickle("it has no network (neither 'ema' nor 'net')")
    nimg, dataset = root.get("nimg"), root.get("dataset_kwargs")
    if nimg is not None and not (isinstance(nimg, int) and nimg >= 0):
        raise UnsafePickle("its 'nimg' is not a number of images")
    facts = dataset.items() if isinstance(dataset, dict) else ()
    return EDMCheckpoint(
        network=_network(root[average], size),
        average=average,
        nimg=nimg,
        student=_student(root.get("loss_fn")),
        dataset={key: value for key, value in facts if _is_plain(key) and _is_plain(value)},
    )


def _is_plain(value: object) -> bool:
    """Whether a fact can be shown as it is: a number, or text that does nothing to a terminal."""
    if isinstance(value, str):
        return value.isprintable() and len(value) <= LONGEST_FACT
    return isinstance(value, SCALARS)


def _student(loss: object) -> dict | None:
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


def _network(told: object, size: int) -> EDMPrecond:
    if not (isinstance(told, PickledObject) and told.kind == "EDMPrecond"):
        raise UnsafePickle(f"its network is a {told.kind if isinstance(told, PickledObject) else type(told).__name__}")
    with torch.device("meta"):  # takes no memory: the file may say any size
        try:
            net = EDMPrecond(**_options(told))
        except UserError as error:
            raise UnsafePickle(f"its network cannot be built: {error}") from error
    weights = {}
    _gather(told, net, "", weights)
    if sum(tensor.nbytes for tensor in weights.values()) > size:
        raise UnsafePickle("its weights are told larger than the file")
    net.load_state_dict({name: tensor.read() for name, tensor in weights.items()}, assign=True)
    _check_filters(net)
    return net.eval().requires_grad_(False)


def _options(told: PickledObject) -> dict:
    """EDMPrecond's keyword arguments: the constructor's as stored, which the attributes have to agree with."""
    args, kwargs = told.state.get("_init_args"), told.state.get("_init_kwargs")
    if type(args) is not tuple or type(kwargs) is not dict or len(args) > len(PRECOND_ARGUMENTS):
        raise UnsafePickle("its network does not say how it was constructed")
    options = {**dict(zip(PRECOND_ARGUMENTS, args, strict=False)), **kwargs}
    attributes = {name: told.state.get(name) for name in PRECOND_ARGUMENTS[:-1]}
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
        return type(value) in (int, float) and value >= 0
    if name in LISTS:
        listed = isinstance(value, (list, tuple)) and len(value) <= LONGEST_LIST
        numbers = listed and all(type(n) in (int, float) and 0 <= n <= LARGEST_ENTRY for n in value)
        whole = numbers and (name == "resample_filter" or all(type(n) is int for n in value))
        return whole or name == "dout_resolutions" and value is None
    if name == "use_fp16":
        return type(value) is bool
    if name in WORDS:
        return _is_word(value)
    return _is_word(name) and (_is_word(value) if isinstance(value, str) else isinstance(value, SCALARS))


def _is_word(text: object) -> bool:
    return isinstance(text, str) and text.isidentifier() and len(text) <= LONGEST_WORD


def _gather(told: object, module: torch.nn.Module, prefix: str, weights: dict[str, Tensor]) -> None:
    """Put the tensors of `told`, by full name, into `weights`, having checked that it is `module` in a file's words."""
    if not isinstance(told, PickledObject) or told.kind != type(module).__name__:
        kind = told.kind if isinstance(told, PickledObject) else type(told).__name__
        raise UnsafePickle(f"{prefix.removesuffix('.')!a} is a {kind}, wanted a {type(module).__name__}")
    for name, value in _attributes(module).items():
        if not isinstance(told.state, dict) or told.state.get(name) != value:
            raise UnsafePickle(
                f"{prefix.removesuffix('.')!a} has another {name!r} than the network it says to be ({value})"
            )
    wanted = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    tensors = _members(told, "_parameters") | _members(told, "_buffers")
    _check_names(prefix, tensors, wanted)
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.storage.dtype.is_floating_point:
            raise UnsafePickle(f"{prefix + name!a} is not a tensor of floating-point numbers")
        if tensor.shape != tuple(wanted[name].shape):
            raise UnsafePickle(f"{prefix + name!a} has shape {list(tensor.shape)}, wanted {list(wanted[name].shape)}")
        weights[prefix + name] = tensor
    children, modules = dict(module.named_children()), _members(told, "_modules")
    _check_names(prefix, modules, children)
    for name, child in children.items():
        _gather(modules[name], child, f"{prefix}{name}.", weights)


def _members(told: PickledObject, part: str) -> dict:
    """Tensors or modules of one, without the places that are empty."""
    members = told.state.get(part) if isinstance(told.state, dict) else None
    if type(members) is not dict or not all(isinstance(name, str) for name in members):
        raise UnsafePickle(f"it has a {told.kind} without {part!r}")
    return {name: value for name, value in members.items() if value is not None}


def _check_names(prefix: str, found: dict, wanted: dict) -> None:
    for name in sorted(found.keys() ^ wanted.keys()):
        how = "missing" if name in wanted else "extra"
        raise UnsafePickle(f"weights of another network ({(prefix + name)[:100]!a} is {how})")


def _attributes(module: torch.nn.Module) -> dict:
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
    """A resampling by [1, 1] is computed without looking at the buffer, which has to be that filter, then."""
    for name, module in net.named_modules():
        if isinstance(module, Conv2d) and module.resample and module.is_box:
            if not torch.equal(module.resample_filter, torch.full((1, 1, 2, 2), 0.25)):
                raise UnsafePickle(
                    f"{name + '.resample_filter'!a} is not the filter [1, 1] that it was constructed with"
                )
