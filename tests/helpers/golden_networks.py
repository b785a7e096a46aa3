"""The networks of the golden numbers."""

import torch
from golden_data import load

from mscd.networks import EDMPrecond


def golden_network(role: str) -> EDMPrecond:
    """Return the network that golden numbers call "teacher" or "student", in evaluation mode."""
    teacher, options = load("nets_dhariwal_small")
    arrays, prefix = {"teacher": (teacher, "b/sd/"), "student": (load("loss")[0], "student/sd/")}[role]
    net = EDMPrecond(**{name: value for name, value in options["b/kwargs"].items() if name != "class_name"}).eval()
    weights = {name: torch.as_tensor(value) for name, value in arrays.items() if name.startswith(prefix)}
    net.load_state_dict({name.removeprefix(prefix): value for name, value in weights.items()})
    return net
