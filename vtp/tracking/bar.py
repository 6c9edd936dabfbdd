"""Progress of a run, on a terminal or in its log."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

log = logging.getLogger(__name__)

PLAIN_INTERVAL = 30.0  # seconds between two lines of progress where no terminal is there to draw a bar on
RATE_INTERVAL = 1.0  # seconds over which images per second are counted


class Bar:
    """Progress over steps with loss and images per second: a bar on a terminal, a line of log now and then elsewhere."""

    def __init__(self, label: str, total: int, initial: int, *, shown: bool) -> None:
        self._label, self._total, self._step, self._shown = label, total, initial, shown
        self._loss: float | None = None
        self._figures, self._rate, self._images = "", 0.0, 0
        self._counted = self._told = time.monotonic()
        terminal = shown and sys.stderr.isatty()
        self._tqdm = tqdm(total=total, initial=initial, desc=label, unit="step", dynamic_ncols=True) if terminal else None

    def advance(self, images: int, loss: float | None = None, figures: str | None = None) -> None:
        """One step is done.

        Args:
            images: of the global batch.
            loss, figures: to show from now on; None keeps those shown (reading a loss makes the host wait for the device).
        """
        if not self._shown:
            return
        self._step += 1
        self._images += images
        self._loss = self._loss if loss is None else loss
        self._figures = self._figures if figures is None else figures
        now = time.monotonic()
        if now - self._counted >= RATE_INTERVAL:
            self._rate, self._images, self._counted = self._images / (now - self._counted), 0, now
        try:
            if self._tqdm is not None:
                self._tqdm.set_postfix_str(self._facts(), refresh=False)
                self._tqdm.update()
            elif now - self._told >= PLAIN_INTERVAL:
                self._told = now
                self._tell()
        except OSError:  # the terminal was closed
            self._shown = False

    def close(self) -> None:
        """Draw or log the last state; closing twice is fine."""
        if not self._shown:
            return
        self._shown = False
        try:
            if self._tqdm is not None:
                self._tqdm.close()
            else:
                self._tell()
        except OSError:
            pass

    def _tell(self) -> None:
        log.info("%s step %d/%d: %s", self._label, self._step, self._total, self._facts())

    def _facts(self) -> str:
        facts = [f"loss {self._loss:.4g}" if self._loss is not None else "", f"{self._rate:.0f} images/s" if self._rate else ""]
        return ", ".join(fact for fact in (*facts, self._figures) if fact) or "no figures yet"
