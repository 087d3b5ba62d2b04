"""Reports unreadable training files once, over all workers and processes, and stops at too many."""

from __future__ import annotations

from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook

from codmoe.datasets.cod import TolerantDataset
from codmoe.registry import HOOKS


@HOOKS.register_module()
class UnreadableFilesHook(Hook):
    """Reports what :class:`TolerantDataset` replaced; stops at too much.

    Args:
        interval: Steps after which several processes tell each other what they found; one process
            alone looks after every step.
    """

    priority = "VERY_LOW"

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self._told: set[int] = set()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if get_world_size() == 1 or self.every_n_train_iters(runner, self.interval):
            self._look(runner)

    def after_train_epoch(self, runner) -> None:
        self._look(runner)

    def _look(self, runner) -> None:
        dataset = runner.train_dataloader.dataset
        if not isinstance(dataset, TolerantDataset):
            return
        if get_world_size() > 1:
            # On the device that the backend speaks to; all processes then hold the union, report
            # the same and stop at the same step.
            device = next(runner.model.parameters()).device
            flags = dataset.flags.to(device, copy=True)
            all_reduce(flags, op="max")
            # Only ever set: a worker may set another one meanwhile.
            dataset.flags[flags.cpu().bool()] = 1
        new = [index for index in dataset.unreadable() if index not in self._told]
        self._told.update(new)
        for index in new:
            runner.logger.warning(f"replaced by another sample: {dataset.reason(index)}")
        complaint = dataset.complaint() if new else None
        if complaint:
            raise ValueError(complaint)
