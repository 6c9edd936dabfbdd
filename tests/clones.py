"""Fresh clones of this project with a few steps a stage, and commands run in them."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from vtp import recipes
from vtp.config import ROOT

TINY = (
    "data.train_samples=1088",
    "data.validation_samples=320",
    "model.sizes.small.encoder.depth=1",
    "model.sizes.small.decoder.depth=1",
    "model.sizes.small.text.depth=1",
    "pretrain.steps=4",
    "pretrain.batch=16",
    "pretrain.ssl_batch=4",
    "pretrain.reconstruction_batch=4",
    "finetune_decoder.steps=4",
    "finetune_decoder.batch=4",
    "finetune_decoder.discriminator_start=1",
    "finetune_decoder.adversarial_start=2",
    "dit.steps=4",
    "dit.depth=1",
    "dit.batch=8",
    "evaluate.reference=train",  # a thousand are needed; so many of validation would take longest
    "evaluate.metric_network.steps=4",
    "evaluate.metric_network.batch=8",
    "evaluate.probe.max_samples=256",
    "evaluate.probe.iterations=3",
    "sample.samples=1000",
    "sample.points=2",
    "run.log_every=2",
    "run.save_every=2",
)


FOREIGN = re.compile("(GIT|DVC|MLFLOW)_.*|PYTHONPATH|VTP_LAUNCH|VTP_LOCK|RANK|WORLD_SIZE")
"""Variables that point back to this checkout (a hook of git's runs the tests, say), to a server or to other processes."""
OWN = {
    "DVC_NO_ANALYTICS": "1",
    # What a user or a machine sets for all repositories: shared caches, hooks, signed commits.
    "DVC_GLOBAL_CONFIG_DIR": "/nowhere",
    "DVC_SYSTEM_CONFIG_DIR": "/nowhere",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
} | {f"GIT_{role}_{what}": f"{what}@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def environment() -> dict[str, str]:
    """This environment's programs in front, and nothing from outside that a clone's results could depend on."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if not FOREIGN.fullmatch(key)}
    return {"VTP_TRACKING": "off"} | kept | {"PATH": path} | OWN


def sh(folder: Path, *command: str, ok: bool | None = True, **extra: str) -> str:
    """Run a command in a clone; its output, both streams.

    Args:
        ok: whether it must succeed or fail; None: either is fine.
        extra: further variables of its environment.
    """
    done = subprocess.run(command, cwd=folder, env=environment() | extra, capture_output=True, text=True)
    assert ok is None or (done.returncode == 0) is ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def processor_seconds() -> float:
    """What the commands run until now have used of processors: a busy machine adds little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def change(folder: Path, *overrides: str) -> None:
    """Set params.yaml to the demo with these overrides."""
    recipes.apply("demo", overrides, folder / "params.yaml")


def clone(folder: Path, *overrides: str) -> Path:
    """A clone of the working tree as it is, committed, with tiny parameters and these overrides."""
    for name in sh(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")) and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    change(folder, *TINY, *overrides)
    sh(folder, "git", "init", "-q", "-b", "main")
    sh(folder, "git", "add", "-A")
    sh(folder, "git", "commit", "-qm", "start")
    return folder


def finish(folder: Path) -> None:
    """Run the pipeline of a clone, `folder / "project"`, and commit its lock; last, what the run said, `folder / "said"`."""
    project = clone(folder / "project")
    said = sh(project, "dvc", "repro")
    sh(project, "git", "add", "-f", "dvc.lock")
    sh(project, "git", "commit", "-qm", "lock")
    (folder / "said").write_text(said)
