"""Processes of a node read the images once and share them, and leave nothing behind, however they end."""

import itertools
import json
import logging
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import random_images, write_images

from mscd.data.dataset import ImageDataset, batches
from mscd.data.packing import pack
from mscd.parallel import shared_memory
from mscd.parallel.group import SINGLE_PROCESS, process_group
from mscd.parallel.shared_memory import shared_by_node

IMAGES, SIZE = 300, 32
INDICES = [torch.tensor([5, 299, 0]), torch.tensor([7, 7, 120, 3])]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    write_images(folder / "in", random_images(*(f"{k % 3}/{k:03d}.png" for k in range(IMAGES)), size=SIZE))
    pack(folder / "in", folder / "train.zip")
    return folder / "train.zip"


def private_kb(mapping):
    """Return the kB private to this process in its mappings that have `mapping` in their name."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split()[0].endswith(":"):
            counts = mapping in line
        elif counts and line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1])
    return total


def member(folder, data, rank, case):
    """Do what each of two processes does; write the findings to a file."""
    found = {}
    if case == "other kernel":
        shared_memory._node_id = lambda: f"node {rank}"
    elif case == "no room":  # shared memory counts as a file for this limit
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    elif case == "out of reach":
        os.open = refusing(os.open)
    with process_group(rank, 2, rank, f"file://{folder}/rendezvous") as group:
        dataset = ImageDataset(data)
        reads = counted(dataset)
        if case == "damaged" and rank == 0:
            dataset._files._table[7, 3] ^= 1  # a CRC
        images = dataset.images_in_memory(group=group)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        found |= {"reads": len(reads), "sum": int(images.long().sum()), "shares": bool(private_maps())}
        found["batches"] = [[b.tolist() for b in batch] for batch in batches(dataset, INDICES)]
        group.barrier()  # pages that both have read are not private
        found["private_kb"] = private_kb("memfd:mscd")
        group.barrier()
        images[rank] = 255  # visible only here
        group.barrier()
        found["other"] = images[1 - rank].long().sum().item()
        found["descriptors"] = len(descriptors())
        (folder / f"{rank}.part").write_text(json.dumps(found))
        (folder / f"{rank}.part").rename(folder / f"{rank}.json")
        if case == "killed":
            time.sleep(100)


def threads():
    """Return the names of this process's threads other than the first."""
    tasks = (task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid()))
    return sorted((task / "comm").read_text().strip() for task in tasks)


def member_that_fails(folder, data, rank):
    """Run a member that an error ends; before that, record which threads of its group are left."""
    try:
        member(Path(folder), data, rank, "damaged")
    finally:
        left = [name for name in threads() if "gloo" in name]
        (Path(folder) / f"{rank}.left.json").write_text(json.dumps(left))


def private_maps():
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:mscd" in line]


def descriptors():
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return [target for link in links if os.path.islink(link) and "memfd:mscd" in (target := os.readlink(link))]


def counted(dataset):
    """Return a list that collects the archive positions that the data set reads from now on."""
    reads, read = [], dataset._files.read
    dataset._files.read = lambda position: reads.append(position) or read(position)
    return reads


def refusing(opens):
    def open_(path, *arguments, **options):
        if str(path).startswith("/proc/") and "/fd/" in str(path):
            raise PermissionError(13, "Permission denied", path)
        return opens(path, *arguments, **options)

    return open_


def forked_member(folder, data, rank, case):
    """Run `member` in a process forked from this one, which has loaded torch already; it logs to a file."""
    torch.set_num_threads(1)
    tempfile.tempdir = str(folder / "tmp")
    logging.basicConfig(filename=folder / f"{rank}.log", force=True)
    member(folder, data, rank, case)


@contextmanager
def two_processes(folder, data, case):
    (folder / "tmp").mkdir()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=forked_member, args=(folder, data, rank, case)) for rank in (0, 1)]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def findings(folder, data, case):
    """Return what each process found and what each logged."""
    with two_processes(folder, data, case) as processes:
        for process in processes:
            process.join(timeout=120)
        logged = [(folder / f"{rank}.log").read_text() for rank in (0, 1)]
        assert [process.exitcode for process in processes] == [0, 0], logged
    assert not list((folder / "tmp").iterdir())
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)], logged


def expected(data):
    dataset = ImageDataset(data)
    images = dataset.images_in_memory()
    want = [[b.tolist() for b in batch] for batch in batches(dataset, INDICES)]
    return int(images.long().sum()), want, [images[1 - rank].long().sum().item() for rank in (0, 1)]


def assert_all_have_the_images(found, data):
    total, want, others = expected(data)
    assert [each["sum"] for each in found] == [total, total]
    assert [each["batches"] for each in found] == [want, want]
    assert [each["other"] for each in found] == others  # unchanged: the neighbour wrote to its own copy
    assert max(each["descriptors"] for each in found) <= 1  # the one of Python's mmap


def test_one_process_reads_the_images_and_both_share_them(train, tmp_path):
    found, _ = findings(tmp_path, train, "shared")
    assert_all_have_the_images(found, train)
    assert [each["reads"] for each in found] == [IMAGES, 0]
    assert [each["shares"] for each in found] == [True, True]
    assert max(each["private_kb"] for each in found) < IMAGES * SIZE**2 / 1024 / 10


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("no room", "cannot share 307200 bytes ([Errno 27] File too large); each reads the images itself"),
        ("out of reach", "are not shared with the other processes of this node ([Errno 13]"),
        ("other kernel", ""),
    ],
)
def test_without_shared_memory_each_process_reads_for_itself(case, said, train, tmp_path):
    found, logged = findings(tmp_path, train, case)
    assert_all_have_the_images(found, train)
    assert [each["reads"] for each in found] == [IMAGES, IMAGES]
    assert said in "".join(logged) and "Traceback" not in "".join(logged)


def test_a_damaged_image_ends_all_processes_and_is_named(train, tmp_path):
    # Not forked, as the interpreter's exit is tested too: a gloo thread that holds a tensor then aborts the process.
    code = (
        f"from test_shared_memory import member_that_fails; member_that_fails({str(tmp_path)!r}, {str(train)!r}, {{}})"
    )
    common = {"env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", code.format(rank)], **common) for rank in (0, 1)]
    try:
        said = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, 1]
    assert [json.loads((tmp_path / f"{rank}.left.json").read_text()) for rank in (0, 1)] == [[], []]
    for text in said:
        assert "UserError" in text and "img00000007.png cannot be read (its content does not match its CRC)" in text


def test_killed_processes_leave_nothing(train, tmp_path):
    before = set(os.listdir("/dev/shm"))
    with two_processes(tmp_path, train, "killed") as processes:
        deadline = time.monotonic() + 120
        while not all((tmp_path / f"{rank}.json").exists() for rank in (0, 1)):
            assert time.monotonic() < deadline and all(process.is_alive() for process in processes)
            time.sleep(0.05)
        for process in processes:
            process.kill()
            process.join()
    assert not list((tmp_path / "tmp").iterdir())
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "mscd" in name]


def test_a_lone_process_fills_private_memory():
    maps = len(private_maps())
    tensor = shared_by_node((2, 3), lambda array: array.__setitem__(slice(None), 7), SINGLE_PROCESS)
    assert torch.equal(tensor, torch.full((2, 3), 7, dtype=torch.uint8)) and len(private_maps()) == maps
    tensor[0] = 1  # it is writable
    assert np.array_equal(tensor.numpy().sum(1), [3, 21])


def test_images_of_a_lone_process_are_read_once(train):
    dataset = ImageDataset(train)
    reads = counted(dataset)
    assert dataset.images_in_memory() is dataset.images_in_memory()
    list(itertools.islice(batches(dataset, INDICES), 2))
    assert len(reads) == IMAGES
