from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.data.stub import DATA, stub
from vtp.config import ROOT
from vtp.data.executors import executor
from vtp.data.prepare import How, prepare_source


def slower_first(job: int) -> tuple[int, int]:
    time.sleep(0.05 if job == 0 else 0)
    return job, os.getpid()


def failing(job: int) -> int:
    raise ValueError(f"job {job} cannot be done")


def test_no_more_processes_than_cores_this_one_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 128)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {5})
    with executor("processes", lambda job: (job, os.getpid()), None) as run:
        assert list(run([1])) == [(1, os.getpid())]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers: int) -> None:
    with executor("processes", slower_first, workers) as run:
        found = list(run(range(20)))
        assert list(run([])) == []
    assert [job for job, _ in found] == list(range(20))
    assert (os.getpid() in {pid for _, pid in found}) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_is_that_of_the_work(workers: int) -> None:
    with pytest.raises(ValueError, match="job 0 cannot be done"), executor("processes", failing, workers) as run:
        list(run(range(3)))


@pytest.mark.slow
def test_two_nodes_of_a_ray_cluster_make_the_same_bytes_as_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # nodes of one machine inherit it; on others the executor hands it on
    prepare_source(tmp_path / "here", stub(40, 12), DATA, How(workers=1))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
    try:
        cluster.add_node(num_cpus=1, object_store_memory=10**8)
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with executor("ray", where, None) as run:
            nodes = set(run(range(16)))
        prepare_source(tmp_path / "there", stub(40, 12), DATA, How("ray"))
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert len(nodes) == 2
    trees = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("here", "there")]
    assert trees[0] == trees[1]


def where(job: int) -> str:
    import ray

    time.sleep(0.3)
    return ray.get_runtime_context().get_node_id()
