"""Ctrl-C and SIGTERM as a wish: finish the step, write the checkpoint, leave."""

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Context manager; `requested` turns true on the first signal, a second one acts as usual."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Handlers can only be set by the main thread; elsewhere (a host's worker thread) there is none.
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True
        self._give_back()

    def __exit__(self, *error: object) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}
