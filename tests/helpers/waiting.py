"""Operations for which the host waits for the device."""

from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose result, or its shape, the host needs before it can continue.
WAITING = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "unique_dim")


class Waits(TorchDispatchMode):
    """Records the calls of operations in WAITING, on CPU tensors, too: these stand in for GPU tensors."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in WAITING:
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))
