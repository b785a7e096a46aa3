"""Which process of a job is reported as the cause, and in which words."""

import pytest
from submitit import LocalJob
from submitit.core.utils import cloudpickle_dump

from mscd.launch.outcome import WorkerResult, root_cause

TRACE = """Traceback (most recent call last):
  File "train.py", line 5, in step
    loss.backward()
    ~~~~~~~~~~~~~^^
torch.AcceleratorError: CUDA error: device-side assert triggered
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""
MEMORY = """Traceback (most recent call last):
  File "a.py", line 1, in f
    f()
torch.OutOfMemoryError: CUDA out of memory.
"""


@pytest.fixture
def job(tmp_path):
    """Make a job whose process k left results[k] (None: no result)."""

    def made(*results):
        job = LocalJob(tmp_path, "1", tasks=range(len(results)))
        for rank, result in enumerate(results):
            paths = job.task(rank).paths
            paths.stderr.parent.mkdir(exist_ok=True, parents=True)
            paths.stderr.write_text(f"first\nlast of {rank}\n")
            if result is not None:
                cloudpickle_dump(
                    ("error", result) if isinstance(result, str) else ("success", result), paths.result_pickle
                )
        return job

    return made


@pytest.mark.parametrize(
    ("results", "reported"),
    [
        ((WorkerResult("finished"), WorkerResult("finished")), "None"),
        (
            (WorkerResult("lost", "closed by peer"), None),
            "process 1 was killed before it could report a cause; last line of its log: last of 1",
        ),
        ((WorkerResult("lost", "closed by peer"), WorkerResult("finished")), "process 0 failed: closed by peer"),
        ((None, WorkerResult("failed", "no such file")), "no such file"),
        (
            (WorkerResult("lost", "x"), TRACE),
            "process 1 failed: torch.AcceleratorError: CUDA error: device-side assert triggered",
        ),
        (
            (MEMORY, None),
            "process 0 failed: torch.OutOfMemoryError: CUDA out of memory.; lower batch_per_process in the profile",
        ),
        ((WorkerResult("stopped", "stopped at 5 images"), None), "stopped at 5 images"),
    ],
)
def test_the_first_cause_is_reported(job, results, reported):
    assert str(root_cause(job(*results))) == reported


@pytest.mark.parametrize(("result", "tail"), [(TRACE, TRACE.strip()), (None, "first\nlast of 1")])
def test_the_last_lines_are_those_of_the_cause(job, result, tail):
    assert root_cause(job(WorkerResult("lost", "x"), result)).tail == tail
