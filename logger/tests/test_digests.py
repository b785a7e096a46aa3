"""Digests of a job's input files."""

import time

from snakemake_logger_plugin_mlflow.digests import Digests


def test_digest_is_of_the_input_that_the_job_saw(tmp_path):
    path, big = tmp_path / "in", tmp_path / "big"
    path.write_text("abc")
    with open(big, "wb") as file:
        file.truncate(9 * 2**20)
    paths = [str(path), str(big), str(tmp_path), str(tmp_path / "none")]
    digests = Digests().of_inputs(paths, time.time())
    assert list(digests.values()) == [
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "size:9437184", "folder", "gone"
    ]  # fmt: skip
    assert Digests().of_inputs([str(path)], time.time() - 1000) == {str(path): "changed since"}
