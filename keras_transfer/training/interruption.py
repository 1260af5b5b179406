"""Being stopped between two calls rather than within one."""

import signal
import threading


class Stop(BaseException):
    """Leaves the work in progress, at a place where it can be saved."""


class DeferredSignals:
    """Holds SIGTERM and SIGINT back until the work in progress is saved.

        with DeferredSignals() as signals:
            try:
                work(signals.check)
            except Stop:
                save()
                raise

    `check` raises `Stop` if a signal has come. On leaving the block the signal
    is delivered to whoever handled it before; a second signal is delivered at
    once. Outside the block, and outside the main thread (where Python has no
    signals), nothing is held back.

    Args:
        active: bool, whether anything is to be held back at all.
    """

    def __init__(self, active=True):
        self._active = active
        self._previous = {}
        self._received = None

    def __enter__(self):
        main_thread = threading.main_thread()
        if self._active and threading.current_thread() is main_thread:
            for number in (signal.SIGTERM, signal.SIGINT):
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):
                    self._previous[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *exception):
        self._restore()
        if self._received is not None:
            signal.raise_signal(self._received)

    def check(self):
        """Raises `Stop` if a signal has come."""
        if self._received is not None:
            raise Stop

    def _note(self, number, frame):
        if self._received is None:
            self._received = number
            return
        self._restore()
        signal.raise_signal(number)

    def _restore(self):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
