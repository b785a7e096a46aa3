"""Training states: what is kept to go on from, where it lies, and which of it belongs to a run.

A run's folder holds <kimg>/state.safetensors, handed from one leg to the next, and rolling/, where a leg dumps states
while it trains. States carry the fingerprint of the run they belong to; one of another run is never gone on from.
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
MAIN = "net"  # what states call the network that is averaged, sampled and exported
log = logging.getLogger(__name__)


@dataclasses.dataclass
class TrainedNetwork:
    """A network in training, with its optimiser and the averages of its weights.

    net: on its device already; averages: by name (`ema`, `phema-0.050`), networks like it; wrapped: the network as a
    pass with gradient calls it, by DistributedDataParallel where several processes train (mscd.training.setup).
    """

    net: EDMPrecond
    averages: dict[str, EDMPrecond]

    def __post_init__(self) -> None:
        self.optimizer = AdamWithAverages(self.net, self.averages)
        self.wrapped: torch.nn.Module = self.net

    @contextlib.contextmanager
    def local_gradients(self) -> Iterator[None]:
        """In the block, gradients are added up in this process and not yet summed over all."""
        wrapped = self.wrapped
        with wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else contextlib.nullcontext():
            yield

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor by name: `net.<parameter>`, `<average>.<parameter>`, `adam.<moment>.<parameter>`."""
        for prefix, net in {MAIN: self.net, **self.averages}.items():
            yield from ((f"{prefix}.{name}", tensor) for name, tensor in net.state_dict().items())
        yield from ((f"adam.{name}", moment) for name, moment in self.optimizer.moments().items())


@dataclasses.dataclass
class TrainingState:
    """Everything that changes in a run: the networks that it trains, and two counters.

    trained: by name; MAIN is the one that is averaged, sampled and exported. nimg: images seen; steps: optimiser steps.
    """

    trained: dict[str, TrainedNetwork]
    nimg: int = 0
    steps: int = 0

    @property
    def main(self) -> TrainedNetwork:
        """The network that the run is about."""
        return self.trained[MAIN]

    @contextlib.contextmanager
    def local_gradients(self) -> Iterator[None]:
        """In the block, no network's gradients are summed over the processes."""
        with contextlib.ExitStack() as entered:
            for network in self.trained.values():
                entered.enter_context(network.local_gradients())
            yield

    def update(self, learning_rate: float, betas: Mapping[str, float], batch_size: int) -> torch.Tensor:
        """Take the step whose gradients the networks have, of batch_size images; returns the norm of MAIN's gradient.

        Every network takes it, at the same rate. betas: the decay of each average in this step.
        """
        norms = {
            name: part.optimizer.step(learning_rate, {ema: betas[ema] for ema in part.averages}, self.steps)
            for name, part in self.trained.items()
        }
        self.nimg, self.steps = self.nimg + batch_size, self.steps + 1
        return norms[MAIN]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by name: MAIN's as they are, others' after `<network>/`."""
        return {
            name if network == MAIN else f"{network}/{name}": tensor
            for network, part in self.trained.items()
            for name, tensor in part.tensors()
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor], nimg: int, steps: int) -> None:
        """Take over the tensors (by the names of `tensors`) and counters of a state file."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self.nimg, self.steps = nimg, steps


@dataclasses.dataclass(frozen=True)
class Resumed:
    """The state file that training goes on from, and the code that wrote it."""

    path: Path
    code: CodeIdentity


@dataclasses.dataclass(frozen=True)
class StateFolder:
    """The states of one run: `run_dir` is the run's folder, `fingerprint` tells the run from any other."""

    run_dir: Path
    fingerprint: str

    @property
    def rolling(self) -> Path:
        """Where a leg's own states lie; Snakemake knows nothing of it."""
        return self.run_dir / ROLLING

    def rolling_state(self, nimg: int) -> Path:
        """The rolling state at image `nimg`."""
        return self.rolling / f"state-{nimg:012d}.safetensors"

    def handed(self, kimg: int) -> Path:
        """The state at the end of the leg that ends at `kimg`."""
        return self.run_dir / str(kimg) / STATE_NAME

    def save(self, state: TrainingState, path: Path, score: float | None = None) -> None:
        """Write `state` to `path`, whole or not at all; `score` (lower is better) goes with it."""
        metadata = {"format": STATE_FORMAT, "fingerprint": self.fingerprint, "nimg": state.nimg, "steps": state.steps}
        code = dataclasses.asdict(code_identity())
        tensor_file.save_tensors(path, state.tensors(), {**metadata, "score": score, "code": code})

    def save_rolling(self, state: TrainingState, score: float | None = None) -> Path:
        """Dump a rolling state; of those that this run has, the last two and the best scored stay."""
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
        """Whether a state may be gone on from: one of this run, and undamaged as far as its header tells."""
        try:
            metadata = read_metadata(path)
        except UserError:
            return False
        return (metadata.get("format"), metadata.get("fingerprint")) == (STATE_FORMAT, self.fingerprint)

    def candidates(self, start_kimg: int, end_nimg: int) -> Iterator[Path]:
        """State files a leg from start_kimg to end_nimg images may go on from, the furthest first."""
        rolling = sorted(self.rolling.glob("state-*.safetensors"), reverse=True)
        yield from (path for path in rolling if int(path.stem.removeprefix("state-")) <= end_nimg)
        kimgs = [kimg for kimg in handed_kimgs(self.run_dir) if kimg <= start_kimg]
        yield from (self.handed(kimg) for kimg in reversed(kimgs))

    def resume(self, state: TrainingState, start_kimg: int, end_nimg: int) -> Resumed | None:
        """Load the furthest usable state into `state`; returns which, or None where training begins afresh.

        What is damaged, or belongs to another configuration, data set or teacher, is passed over and named in the log.
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
                log.warning("%s; falling back to the state before it", error)
                continue
            return Resumed(path, CodeIdentity(**metadata["code"]))
        return None


def _score(path: Path) -> float:
    try:
        metadata = read_metadata(path)
    except UserError:
        return math.inf  # a damaged file is never the best; reading it to resume says so
    score = metadata["score"] if is_state(metadata) else None
    return math.inf if score is None else score
