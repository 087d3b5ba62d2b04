"""mmengine's message hub, for logging that does not hold up the device."""

from __future__ import annotations

from collections import defaultdict

import torch
from mmengine.logging import HistoryBuffer, MessageHub
from torch import Tensor


class DeferredMessageHub(MessageHub):
    """Keeps scalars that lie on the device there until somebody reads them.

    mmengine's hub fetches each scalar when it is told, thirty a step, and each time the host waits
    until the device has done all it was given. Here they are fetched when the log, a checkpoint or
    a hook asks for them, in one copy; what they then read is the same to the last bit.
    """

    limit = 8192
    """Scalars kept at most; then they are fetched unasked."""

    def __init__(self, name: str, **kwargs):
        super().__init__(name, **kwargs)
        self._deferred: list[tuple[str, Tensor, int]] = []
        self._deferred_keys: set[str] = set()

    def update_scalar(self, key: str, value, count: int = 1, resumed: bool = True) -> None:
        """See mmengine's; a tensor is kept as it is."""
        if not (isinstance(value, Tensor) and value.numel() == 1):
            if key in self._deferred_keys:
                self.fetch()  # in the order of the steps
            return super().update_scalar(key, value, count, resumed)
        self._set_resumed_keys(key, resumed)
        if key not in self._log_scalars:
            # Now, not when it is fetched: the log shows keys in this order.
            self._log_scalars[key] = HistoryBuffer()
        # Detached: a loss would keep the graph of its step.
        self._deferred.append((key, value.detach(), count))
        self._deferred_keys.add(key)
        if len(self._deferred) >= self.limit:
            self.fetch()
        return None

    def fetch(self) -> None:
        """Bring everything that was kept to the host: one copy for each device and type."""
        deferred, self._deferred = self._deferred, []
        self._deferred_keys = set()
        groups: dict[tuple, list[int]] = defaultdict(list)
        for i, (_, value, _) in enumerate(deferred):
            groups[value.device, value.dtype].append(i)
        fetched: dict[int, float] = {}
        for members in groups.values():
            values = torch.stack([deferred[i][1].reshape(()) for i in members]).tolist()
            fetched.update(zip(members, values, strict=True))
        for i, (key, _, count) in enumerate(deferred):
            self._log_scalars[key].update(fetched[i], count)

    @property
    def log_scalars(self):
        """See mmengine's."""
        self.fetch()
        return super().log_scalars

    def get_scalar(self, key: str) -> HistoryBuffer:
        """See mmengine's; of a key that was not kept back, nothing is fetched."""
        if key in self._log_scalars and key not in self._deferred_keys:
            return self._log_scalars[key]
        return super().get_scalar(key)

    def state_dict(self) -> dict:
        """See mmengine's."""
        self.fetch()
        return super().state_dict()

    def load_state_dict(self, state_dict) -> None:
        """See mmengine's."""
        self.fetch()
        super().load_state_dict(state_dict)


def install(name: str) -> None:
    """Make the hub of this name, which mmengine's parts find by it, a deferred one."""
    # mmengine has no way to choose the class; the dictionary is what its own lookups read.
    if not MessageHub.check_instance_created(name):
        MessageHub._instance_dict[name] = DeferredMessageHub(name)
