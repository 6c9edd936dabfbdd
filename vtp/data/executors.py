"""The same work on many pieces, by processes of this machine or, through Ray, of several."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
Run = Callable[[Sequence[Job]], Iterator[Result]]

WAITING = 4
"""Jobs handed to Ray ahead of time, for each core."""

_shared: list[Callable] = []
"""In a worker process: the work, sent once and not with every job."""


@contextmanager
def executor(kind: Literal["processes", "ray"], work: Callable[[Job], Result], workers: int | None) -> Iterator[Run]:
    """A function that does `work` on jobs and yields the results in their order; work, jobs and results must pickle.

    Args:
        kind: `ray` runs on the cluster that RAY_ADDRESS names, or on one of this machine's own; every machine of it must see
            the checkout and the folders that the work reads and writes.
        workers: processes; None for as many as cores that this process may use. Ray takes the cores it has.

    Raises:
        ValueError: Ray is not installed; or, from the function, a process was killed.
    """
    if kind == "ray":
        with _ray(work) as run:
            yield run
    elif (workers := workers or cores()) == 1:
        yield lambda jobs: map(work, jobs)
    else:
        context = multiprocessing.get_context("forkserver")  # imports once, then forks a process without threads
        context.set_forkserver_preload(["vtp.data.work", "pandera.pandas"])
        pool = ProcessPoolExecutor(workers, context, initializer=_share, initargs=(work,))
        try:
            yield lambda jobs: _told(pool.map(_run, jobs))
        finally:
            pool.shutdown(cancel_futures=True)  # who is asked to stop does not wait for what nobody will look at


def cores() -> int:
    """Cores that this process may use: of a share of a large machine, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _told(results: Iterator[Result]) -> Iterator[Result]:
    try:
        yield from results
    except BrokenProcessPool:
        raise ValueError(
            f"one of the processes was killed, most likely because memory ran out; each of {cores()} cores has one: give the "
            "machine more memory or this command fewer cores (taskset -c 0,1 ...)."
        ) from None


def _share(work: Callable) -> None:
    _shared[:] = [work]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed tells nobody, and its processes would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(job: Any) -> Any:
    return _shared[0](job)


@contextmanager
def _ray(work: Callable[[Job], Result]) -> Iterator[Run]:
    try:
        import ray
    except ImportError:
        raise ValueError("run.executor=ray, but Ray is not installed; `pip install ray` brings it.") from None
    started = not ray.is_initialized()
    if started:
        path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
        ray.init(
            address=os.environ.get("RAY_ADDRESS"),
            runtime_env={"env_vars": {"PYTHONPATH": path}},
            include_dashboard=False,
            log_to_driver=False,
        )
    try:
        shared = ray.put(work)
        task = ray.remote(_apply)

        def run(jobs: Sequence[Job]) -> Iterator[Result]:
            most = WAITING * max(1, int(ray.cluster_resources().get("CPU", 1)))
            waiting: deque = deque()
            for job in jobs:
                if len(waiting) == most:
                    yield ray.get(waiting.popleft())
                waiting.append(task.remote(shared, job))
            while waiting:
                yield ray.get(waiting.popleft())

        yield run
    finally:
        if started:
            ray.shutdown()


def _apply(work: Callable, job: Any) -> Any:
    return work(job)
