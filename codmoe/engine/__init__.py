"""Running a stage: configs, launch, hooks, checkpoints; importing it registers its parts."""

from codmoe.engine.checkpoints import AtomicBackend
from codmoe.engine.ddp import CODDistributedDataParallel
from codmoe.engine.hooks.frozen_features import FrozenCacheHook
from codmoe.engine.hooks.mixture import ExpertsAfterHook, RouterWatchHook
from codmoe.engine.hooks.progress import LoggerHook
from codmoe.engine.hooks.resuming import CheckpointHook
from codmoe.engine.hooks.training import (
    AverageBuffersHook,
    BackboneWarmupHook,
    BestWeightsHook,
    FiniteLossHook,
    TrainingProgressHook,
    UnreadableFilesHook,
)
from codmoe.engine.optim import MergedGroupsConstructor
from codmoe.engine.testing import GridHook, SaveMapsHook, TestProgressHook

__all__ = [
    "AtomicBackend",
    "AverageBuffersHook",
    "BackboneWarmupHook",
    "BestWeightsHook",
    "CODDistributedDataParallel",
    "CheckpointHook",
    "ExpertsAfterHook",
    "FiniteLossHook",
    "FrozenCacheHook",
    "GridHook",
    "LoggerHook",
    "MergedGroupsConstructor",
    "RouterWatchHook",
    "SaveMapsHook",
    "TestProgressHook",
    "TrainingProgressHook",
    "UnreadableFilesHook",
]
