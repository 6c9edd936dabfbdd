"""How a training hears that it should end."""

from __future__ import annotations

import signal

import pytest

from vtp import stopping


@pytest.fixture
def interruptible():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_noted_and_ctrl_c_after_it_does_not_wait(interruptible, first):
    with stopping.noted() as request:
        assert not request.made
        signal.raise_signal(first)
        assert request.made
        signal.raise_signal(signal.SIGTERM)  # a scheduler may say it twice
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_ignores_ctrl_c_goes_on_ignoring_it(interruptible):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stopping.noted() as request:
        signal.raise_signal(signal.SIGINT)
        assert not request.made
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
