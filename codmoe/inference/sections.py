"""Parts of a check, each with a time limit, that cannot take one another along."""

from __future__ import annotations

import faulthandler
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OutOfTime(BaseException):
    """A section took too long. No error that somebody on the way would answer."""


class Sections:
    """Runs parts of a check one after the other; one that fails or takes too long is reported, and
    the next begins.

    Args:
        budget: Seconds for all of them. What has not begun by then is left out; where the process
            hangs in foreign code it is ended 20 s later.
    """

    def __init__(self, budget: float):
        self.started, self.budget = time.monotonic(), budget
        faulthandler.dump_traceback_later(budget + 20, exit=True, file=sys.__stderr__)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.budget - (time.monotonic() - self.started)

    @contextmanager
    def begin(self, title: str, limit: float) -> Iterator[None]:
        """A section; used as ``with sections.begin(...)``, around all that it does."""
        begun = time.monotonic()
        limit = min(limit, self.left)
        print(f"\n== {title} (at {begun - self.started:.0f} s, limit {limit:.0f} s)", flush=True)

        def stop(*_: Any) -> None:
            raise OutOfTime(f"more than {limit:.0f} s")

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max(limit, 0.01))
        try:
            yield
        except (Exception, OutOfTime) as error:  # the next section may still tell something
            print(f"!! {title}: {type(error).__name__}: {error}", flush=True)
            traceback.print_exc(limit=-4)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            print(f"-- {time.monotonic() - begun:.1f} s", flush=True)

    def end(self) -> None:
        """All done: nothing ends the process any more."""
        faulthandler.cancel_dump_traceback_later()
