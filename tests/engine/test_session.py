"""What a stage's training tells when a device will not do."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vtp.config import load
from vtp.engine.session import _machine, start


def test_a_gpu_without_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ValueError, match=r"Tesla T4 has no bfloat16 arithmetic.*run\.device=cpu"):
        start(dataclasses.replace(load().run, device="cuda"))


def test_what_changes_the_bits_of_a_training_is_one_of_its_conditions():
    how, cpu = load().run, torch.device("cpu")
    for other in (dataclasses.replace(how, compile=True), dataclasses.replace(how, microbatch=8)):
        assert _machine(cpu, other) != _machine(cpu, how)
