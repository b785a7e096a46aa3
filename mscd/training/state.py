"""Training states: what they contain, where they are stored, and which of them a run may resume from.

A run's folder holds <kimg>/state.safetensors, handed from one leg to the next, and rolling/, where a leg saves states
while it trains. A state carries the fingerprint of its run; a state of another run is never resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from mscd.checkpoints import tensor_file
from mscd.checkpoints.metadata import STATE_FORMAT, is_state, read_metadata
from mscd.config.training import OptimizerOptions
from mscd.errors import UserError
from mscd.methods.interface import MAIN
from mscd.networks import EDMPrecond
from mscd.provenance.code_version import CodeIdentity, code_identity
from mscd.training.leg import ROLLING, STATE_NAME, handed_kimgs
from mscd.training.optimizer import Optimizer

KEPT_ROLLING = 2
log = logging.getLogger(__name__)


@dataclasses.dataclass
class TrainedNetwork:
    """A network in training, with its optimiser and the averages of its weights.

    net: the network, already on its device; averages: networks of the same architecture, by name (`ema`,
    `phema-0.050`); options: of the optimiser; wrapped: what passes with gradients call, net or, if several processes
    train, net wrapped in DistributedDataParallel (mscd.training.setup); mean: for a network that is not wrapped, takes
    the mean of the gradients over the processes, in place. changed: images seen when the weights last changed.
    """

    net: torch.nn.Module
    averages: Mapping[str, torch.nn.Module]
    options: OptimizerOptions = OptimizerOptions()
    mean: Callable[[torch.Tensor], torch.Tensor] | None = None
    changed: int = 0

    def __post_init__(self) -> None:
        self.optimizer = Optimizer(self.net, self.averages, self.options, self.mean)
        self.wrapped: torch.nn.Module = self.net

    @contextlib.contextmanager
    def local_gradients(self) -> Iterator[None]:
        """Within the block, accumulate gradients in this process without summing them over all processes."""
        wrapped = self.wrapped
        with wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else contextlib.nullcontext():
            yield

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all tensors by name: `net.<parameter>`, `<average>.<parameter>`, `adam.<moment>.<parameter>`."""
        for prefix, net in {MAIN: self.net, **self.averages}.items():
            yield from ((f"{prefix}.{name}", tensor) for name, tensor in net.state_dict().items())
        yield from ((f"adam.{name}", moment) for name, moment in self.optimizer.moments().items())


@dataclasses.dataclass
class TrainingState:
    """Everything that changes in a run: the networks it trains and how many images were seen.

    trained: the networks, by name; MAIN is averaged, sampled and exported. nimg: images seen.
    """

    trained: dict[str, TrainedNetwork]
    nimg: int = 0

    @property
    def main(self) -> TrainedNetwork:
        """The network that is averaged, sampled and exported."""
        return self.trained[MAIN]

    def average(self, name: str) -> EDMPrecond:
        """Return an average of MAIN's network."""
        net = self.main.averages[name]
        assert isinstance(net, EDMPrecond)
        return net

    @contextlib.contextmanager
    def local_gradients(self) -> Iterator[None]:
        """Within the block, do not sum any network's gradients over the processes."""
        with contextlib.ExitStack() as entered:
            for network in self.trained.values():
                entered.enter_context(network.local_gradients())
            yield

    def update(
        self, updated: Sequence[str], learning_rate: float, betas: Mapping[str, float], batch_size: int
    ) -> dict[str, torch.Tensor]:
        """Take one step of the networks `updated` with their gradients over batch_size images.

        All networks use the same learning rate. betas: the decay of each average in this step. Returns the norm of each
        one's gradient.
        """
        self.nimg += batch_size
        norms = {}
        for name in updated:
            part = self.trained[name]
            norms[name] = part.optimizer.step(learning_rate, {average: betas[average] for average in part.averages})
            part.changed = self.nimg
        return norms

    def counters(self) -> dict[str, Any]:
        """Return what a state file records besides tensors: images seen, and steps of the optimisers.

        `further` is there only if several networks are trained: per network, its steps and when it last changed.
        """
        counters: dict[str, Any] = {"nimg": self.nimg, "steps": self.main.optimizer.steps}
        if len(self.trained) > 1:
            counters["further"] = {name: [part.optimizer.steps, part.changed] for name, part in self.trained.items()}
        return counters

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name; names are prefixed with `<network>/` except for MAIN's."""
        return {
            name if network == MAIN else f"{network}/{name}": tensor
            for network, part in self.trained.items()
            for name, tensor in part.tensors()
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor], counters: Mapping[str, Any]) -> None:
        """Copy in the tensors (named as by `tensors`) and counters of a state file."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self.nimg = counters["nimg"]
        further = counters.get("further", {MAIN: [counters["steps"], counters["nimg"]]})
        for name, part in self.trained.items():
            part.optimizer.steps, part.changed = further[name]


@dataclasses.dataclass(frozen=True)
class Resumed:
    """The state file that training resumes from, and the code that wrote it."""

    path: Path
    code: CodeIdentity


@dataclasses.dataclass(frozen=True)
class StateFolder:
    """The states of one run: `run_dir` is the run's folder, `fingerprint` identifies the run."""

    run_dir: Path
    fingerprint: str

    @property
    def rolling(self) -> Path:
        """Folder of the states a leg saves while it trains; unknown to Snakemake."""
        return self.run_dir / ROLLING

    def rolling_state(self, nimg: int) -> Path:
        """Return the path of the rolling state at image `nimg`."""
        return self.rolling / f"state-{nimg:012d}.safetensors"

    def handed(self, kimg: int) -> Path:
        """Return the path of the state at the end of the leg that ends at `kimg`."""
        return self.run_dir / str(kimg) / STATE_NAME

    def save(self, state: TrainingState, path: Path, score: float | None = None) -> None:
        """Write `state` to `path` atomically, with its `score` (lower is better)."""
        metadata = {"format": STATE_FORMAT, "fingerprint": self.fingerprint, **state.counters()}
        code = dataclasses.asdict(code_identity())
        tensor_file.save_tensors(path, state.tensors(), {**metadata, "score": score, "code": code})

    def save_rolling(self, state: TrainingState, score: float | None = None) -> Path:
        """Save a rolling state and return its path; keep only this run's last two and the one with the best score."""
        path = self.rolling_state(state.nimg)
        self.save(state, path, score)
        states = [state for state in sorted(self.rolling.glob("state-*.safetensors")) if self._is_own(state)]
        keep = set(states[-KEPT_ROLLING:])
        best = min(states, key=_score)
        if _score(best) < math.inf:
            keep.add(best)
        for old in set(states) - keep:
            old.unlink()
        return path

    def _is_own(self, path: Path) -> bool:
        """Return whether a state may be resumed: it belongs to this run and its header is undamaged."""
        try:
            metadata = read_metadata(path)
        except UserError:
            return False
        return (metadata.get("format"), metadata.get("fingerprint")) == (STATE_FORMAT, self.fingerprint)

    def candidates(self, start_kimg: int, end_nimg: int) -> Iterator[Path]:
        """Yield the state files that a leg from start_kimg to end_nimg images may resume from, most advanced first."""
        rolling = sorted(self.rolling.glob("state-*.safetensors"), reverse=True)
        yield from (path for path in rolling if int(path.stem.removeprefix("state-")) <= end_nimg)
        kimgs = [kimg for kimg in handed_kimgs(self.run_dir) if kimg <= start_kimg]
        yield from (self.handed(kimg) for kimg in reversed(kimgs))

    def resume(self, state: TrainingState, start_kimg: int, end_nimg: int) -> Resumed | None:
        """Load the most advanced usable state into `state`; return which it is, or None if training starts afresh.

        The log names each state that is skipped because it is damaged, is from another version of mscd, or belongs to
        another configuration, data set or teacher.
        """
        for path in self.candidates(start_kimg, end_nimg):
            try:
                with tensor_file.open_tensors(path) as file:
                    metadata = file.metadata
                    if metadata.get("fingerprint") != self.fingerprint:
                        log.warning("%s belongs to another configuration, data set or teacher: not resumed", path)
                        continue
                    if not is_state(metadata):
                        log.warning("%s was written by another version of mscd: not resumed", path)
                        continue
                    state.load(file.read_all(), metadata)
            except UserError as error:
                log.warning("%s; falling back to the previous state", error)
                continue
            return Resumed(path, CodeIdentity(**metadata["code"]))
        return None


def _score(path: Path) -> float:
    try:
        metadata = read_metadata(path)
    except UserError:
        return math.inf  # a damaged file is never the best; resuming reports the damage
    score = metadata["score"] if is_state(metadata) else None
    return math.inf if score is None else score
