"""Pickled checkpoints as NVIDIA's code writes them, made from mscd's networks: teachers and students for tests to read.

The source code embedded in them is one line that raises if it is ever run.
"""

import copy
import copyreg
import functools
import io
import os
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import contextmanager

import numpy as np
import torch

from mscd.networks import EDMPrecond
from mscd.networks.layers import Conv2d, FourierEmbedding, GroupNorm, Linear, PositionalEmbedding, UNetBlock

SOURCE = "raise RuntimeError('code embedded in a checkpoint was executed')\n"
# The attributes of an nn.Module's state in torch 1.10.
OLD_STATE = {"training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_backward_hooks", "_modules"}
OLD_STATE |= {"_is_full_backward_hook", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks"}
OLD_STATE |= {"_load_state_dict_pre_hooks"}


def write_pickle(
    path: str | os.PathLike,
    net: EDMPrecond,
    *,
    key: str = "ema",
    student_segments: int | None = None,
    nimg: int | None = None,
    torch1: bool = False,
) -> None:
    """Write `net` under `key`: as a teacher or, with student_segments, as a student along with its loss and teacher.

    torch1: write it as Python 3.8 and torch 1.10 did, from a GPU.
    """
    content = {key: persistent(net)}
    if student_segments is not None:
        content |= {"loss_fn": student_loss(net, student_segments), "augment_pipe": None}
        content["dataset_kwargs"] = {"path": "data.zip", "use_labels": True, "resolution": net.img_resolution}
    if nimg is not None:
        content["nimg"] = nimg
    dump(path, content, torch1=torch1)


def dump(path: str | os.PathLike, content: object, *, torch1: bool = False) -> None:
    """Pickle `content`; results of `persistent` in it are written as NVIDIA's classes are."""
    with foreign_names() as names, open(path, "wb") as file:
        _Pickler(file, names, torch1).dump(content)


class Persistent(torch.nn.Module):
    """A module whose class has its source code in the file; the class here only has its name."""


class Loss:
    """A loss, or another object that is not a module, whose class has its source code in the file."""


class EasyDict(dict):
    """A dict of the class that NVIDIA's code uses for options."""

    __module__ = "dnnlib.util"


def record(name: str, **attributes: object) -> Loss:
    """An object of NVIDIA's class `name` that is not a module."""
    made = _class(Loss, name)()
    made.__dict__ = attributes | {"_init_args": (), "_init_kwargs": {}}
    return made


@functools.cache
def _class(kind: type, name: str) -> type:
    return type(name, (kind,), {})


class _Pickler(pickle.Pickler):
    def __init__(self, file, names: Mapping, torch1: bool):
        super().__init__(file, protocol=4)
        self.names, self.torch1 = names, torch1

    def reducer_override(self, value):
        if isinstance(value, Persistent | Loss):
            meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": type(value).__name__}
            meta["state"] = self._state(value)
            return self.names["reconstruct"], (meta,)
        if self.torch1 and isinstance(value, torch.nn.ModuleDict):
            return copyreg.__newobj__, (torch.nn.ModuleDict,), self._state(value)
        if self.torch1 and isinstance(value, np.float64):
            return self.names["scalar"], (value.dtype, value.tobytes())
        if self.torch1 and isinstance(value, torch.storage.TypedStorage):
            stored = io.BytesIO()
            torch.save(value, stored, _use_new_zipfile_serialization=False)
            on_gpu = stored.getvalue().replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0", 1)
            return torch.storage._load_from_bytes, (on_gpu,)
        return NotImplemented

    def _state(self, value: object) -> dict:
        if not self.torch1 or isinstance(value, Loss):
            return value.__dict__
        new = {name for name in torch.nn.Module().__dict__ if name not in OLD_STATE}
        state = {name: part for name, part in value.__dict__.items() if name not in new}
        return state | {name: OrderedDict(state[name]) for name in ("_parameters", "_buffers", "_modules")}


@contextmanager
def foreign_names():
    """Yield objects that pickle writes under the names of code that is not installed here."""
    made = {"reconstruct": ("torch_utils.persistence", "_reconstruct_persistent_obj")}
    made |= {"scalar": ("numpy.core.multiarray", "scalar")}
    modules = {name: types.ModuleType(name) for name in ("torch_utils", "dnnlib", "dnnlib.util")}
    modules["dnnlib.util"].EasyDict = EasyDict
    for short, (module, name) in made.items():
        made[short] = type(name, (), {"__module__": module})
        modules[module] = types.ModuleType(module)
        setattr(modules[module], name, made[short])
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield made
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def student_loss(teacher: EDMPrecond, segments: int) -> Loss:
    """The loss in a student's file, which holds the teacher twice."""
    grid = {"rho": 7.0, "sigma_min": 0.002, "sigma_max": 80.0}
    steps = {"S": segments, "T_start": 64, "T_end": 1280}
    loss = record("EDMConsistencyDistillLoss", teacher_net=persistent(teacher), **steps, **grid, _filter_cache={})
    loss.__dict__ |= {"_init_args": (persistent(teacher),), "_init_kwargs": steps}
    return loss


def persistent(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of mscd's `module` as an object of NVIDIA's class of that name, sharing its weights."""
    if isinstance(module, torch.nn.ModuleDict):
        made = torch.nn.ModuleDict()
    else:
        made = _class(Persistent, type(module).__name__)()
    for name, parameter in module.named_parameters(recurse=False):
        made.register_parameter(name, torch.nn.Parameter(parameter.detach(), requires_grad=False))
    for name, buffer in module.named_buffers(recurse=False):
        made.register_buffer(name, buffer)
    for name, child in module.named_children():
        made.add_module(name, persistent(child))
    attributes = _attributes(module)
    kwargs = attributes.pop("_init_kwargs", {})
    absent = [name for name in ("skip", "map_label", "map_augment") if getattr(module, name, 0) is None]
    made.__dict__.update(attributes | dict.fromkeys(absent))
    if isinstance(made, Persistent):
        made.__dict__.update(_init_args=(), _init_kwargs=kwargs)
    return made.eval()


def _attributes(module: torch.nn.Module) -> dict:
    match module:
        case EDMPrecond():
            return _network_attributes(module)
        case UNetBlock():
            shape = {"in_channels": module.conv0.weight.shape[1], "out_channels": module.conv0.weight.shape[0]}
            shape |= {"emb_channels": module.affine.weight.shape[1], "num_heads": module.heads}
            scale = module.skip_scale if module.skip_scale == 1 else np.float64(module.skip_scale)
            rest = {"dropout": module.dropout, "skip_scale": int(scale) if scale == 1 else scale}
            return shape | rest | {"adaptive_scale": module.adaptive, "dout_resolutions": None}
        case Conv2d():
            return _convolution_attributes(module)
        case Linear():
            out_features, in_features = module.weight.shape
            init = {"in_features": in_features, "out_features": out_features, "init_weight": np.float64(0.5)}
            shape = {"in_features": in_features, "out_features": out_features, "_init_kwargs": init}
            return shape | ({"bias": None} if module.bias is None else {})
        case GroupNorm():
            return {"num_groups": module.groups, "eps": module.eps}
        case PositionalEmbedding():
            return {"num_channels": 2 * module.frequencies, "max_positions": 10000, "endpoint": module.offset == 1}
        case torch.nn.ModuleDict() | FourierEmbedding():
            return {}
    return {"label_dropout": module.label_dropout}


def _network_attributes(net: EDMPrecond) -> dict:
    half = net.precision == "fp16"
    now = {"img_resolution": net.img_resolution, "img_channels": net.img_channels, "label_dim": net.label_dim}
    now |= {"use_fp16": half, "sigma_min": net.sigma_min, "sigma_max": net.sigma_max, "sigma_data": net.sigma_data}
    given = {name: value for name, value in copy.deepcopy(net.init_kwargs).items() if name not in ("precision", *now)}
    shape = {name: now[name] for name in ("img_resolution", "img_channels", "label_dim")}
    return now | {"_init_kwargs": shape | given | ({"use_fp16": True} if half else {})}


def _convolution_attributes(module: Conv2d) -> dict:
    attributes = {"up": module.resample == "up", "down": module.resample == "down"}
    attributes["fused_resample"] = module.filter_last
    if module.weight is None:
        return {"in_channels": 0, "out_channels": 0} | attributes | {"weight": None, "bias": None}
    return {"in_channels": module.weight.shape[1], "out_channels": module.weight.shape[0]} | attributes
