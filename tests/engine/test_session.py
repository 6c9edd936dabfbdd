"""What a stage's training tells when a device will not do."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.tasks.conftest import build
from vtp.config import load
from vtp.engine.session import room, start


def test_too_little_memory_names_what_lowers_it_and_by_how_much():
    task = build("pretrain", microbatch=4)
    text = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.1 GiB is free. Of"
    with pytest.raises(ValueError, match=r"Tried to allocate 2\.00 GiB.*1\.1 GiB is free") as caught, room(task):
        raise torch.OutOfMemoryError(text)
    assert "run.microbatch=2 halves what its forward passes hold (now 4 pictures at once, of 8)" in str(caught.value)
    assert "the same command goes on from the last" in str(caught.value)


def test_a_gpu_without_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ValueError, match=r"Tesla T4 has no bfloat16 arithmetic.*run\.device=cpu"):
        start(dataclasses.replace(load().run, device="cuda"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_step_cannot_be_recorded_on_a_cpu():
    from vtp.engine.checkpoint import State
    from vtp.engine.loop import stepper

    task = build("pretrain")
    with pytest.raises(ValueError, match=r"run\.replay=true needs one process with a GPU"):
        stepper(task, State(task.models, {}), 0, torch.device("cpu"), replayed=True)
