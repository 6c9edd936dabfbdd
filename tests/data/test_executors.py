from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.data.stub import DATA, stub
from tests.waiting import PATIENCE, wait_for
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


def gone(job: int) -> int:
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
    return job


def test_a_process_that_was_killed_is_one_line() -> None:
    with executor("processes", gone, 2) as run, pytest.raises(ValueError, match="most likely because memory ran out") as caught:
        list(run(range(20)))
    assert "\n" not in str(caught.value)


def noted(job: Path) -> Path:
    time.sleep(0.02)
    job.touch()
    return job


def test_who_stops_in_the_middle_does_not_wait_for_the_rest(tmp_path: Path) -> None:
    jobs = [tmp_path / str(number) for number in range(300)]
    with executor("processes", noted, 2) as run:
        results = run(jobs)  # held by a frame, as while the handler of a signal raises
        next(results)
    assert len(list(tmp_path.iterdir())) < len(jobs)
    results.close()  # type: ignore[attr-defined]


ORPHANS = """
import os, signal, sys
from tests.data.test_executors import process_of
from vtp.data.executors import executor
if __name__ == "__main__":
    with executor("processes", process_of, 2) as run:
        print(*run(range(8)), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def process_of(job: int) -> int:
    time.sleep(0.1)
    return os.getpid()


def at_work(process: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE  # nobody may be there who asks for its status
    return False


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(ORPHANS)
    command = [sys.executable, str(tmp_path / "main.py")]
    with (tmp_path / "said").open("w") as said:
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=said)
    assert done.returncode == -signal.SIGKILL
    processes = set(map(int, (tmp_path / "said").read_text().split()))
    assert processes
    wait_for(lambda: not any(map(at_work, processes)))


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
        (tmp_path / "met").mkdir()
        with executor("ray", where, None) as run:
            nodes = set(run([tmp_path / "met"] * 16))
        prepare_source(tmp_path / "there", stub(40, 12), DATA, How("ray"))
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert len(nodes) == 2
    trees = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("here", "there")]
    assert trees[0] == trees[1]


def where(met: Path) -> str:
    """The node of a job, which waits for one on another node."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    (met / node).touch()
    deadline = time.monotonic() + PATIENCE
    while len(list(met.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return node
