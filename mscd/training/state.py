"""Training states: what they contain, where they are stored, and which of them a run may resume from.

A run's folder holds <kimg>/state.safetensors, handed from one leg to the next, and rolling/, where a leg saves states
while it trains. A state carries the fingerprint of its run; a state of another run is never resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from mscd.checkpoints import tensor_file
from mscd.checkpoints.metadata import STATE_FORMAT, is_state, read_metadata
from mscd.errors import UserError
from mscd.networks import EDMPrecond
from mscd.provenance.code_version import CodeIdentity, code_identity
from mscd.training.leg import ROLLING, STATE_NAME, handed_kimgs
from mscd.training.optimizer import AdamWithAverages

KEPT_ROLLING = 2
MAIN = "net"  # name, in states, of the network that is averaged, sampled and exported
log = logging.getLogger(__name__)


@dataclasses.dataclass
class TrainedNetwork:
    """A network in training, with its optimiser and the averages of its weights.

    net: the network, already on its device; averages: networks of the same architecture, by name (`ema`,
    `phema-0.050`); wrapped: what passes with gradients call, net or, if several processes train, net wrapped in
    DistributedDataParallel (mscd.training.setup).
    """

    net: EDMPrecond
    averages: dict[str, EDMPrecond]

    def __post_init__(self) -> None:
        self.optimizer = AdamWithAverages(self.net, self.averages)
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
    """Everything that changes in a run: the networks it trains and two counters.

    trained: the networks, by name; MAIN is averaged, sampled and exported. nimg: images seen; steps: optimiser steps.
    """

    trained: dict[str, TrainedNetwork]
    nimg: int = 0
    steps: int = 0

    @property
    def main(self) -> TrainedNetwork:
        """The network that is averaged, sampled and exported."""
        return self.trained[MAIN]

    @contextlib.contextmanager
    def local_gradients(self) -> Iterator[None]:
        """Within the block, do not sum any network's gradients over the processes."""
        with contextlib.ExitStack() as entered:
            for network in self.trained.values():
                entered.enter_context(network.local_gradients())
            yield

    def update(self, learning_rate: float, betas: Mapping[str, float], batch_size: int) -> torch.Tensor:
        """Take one step of every network with its gradients over batch_size images; return the norm of MAIN's gradient.

        All networks use the same learning rate. betas: the decay of each average in this step.
        """
        norms = {
            name: part.optimizer.step(learning_rate, {ema: betas[ema] for ema in part.averages}, self.steps)
            for name, part in self.trained.items()
        }
        self.nimg, self.steps = self.nimg + batch_size, self.steps + 1
        return norms[MAIN]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name; names are prefixed with `<network>/` except for MAIN's."""
        return {
            name if network == MAIN else f"{network}/{name}": tensor
            for network, part in self.trained.items()
            for name, tensor in part.tensors()
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor], nimg: int, steps: int) -> None:
        """Copy in the tensors (named as by `tensors`) and counters of a state file."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self.nimg, self.steps = nimg, steps


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
        metadata = {"format": STATE_FORMAT, "fingerprint": self.fingerprint, "nimg": state.nimg, "steps": state.steps}
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
                    state.load(file.read_all(), metadata["nimg"], metadata["steps"])
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
