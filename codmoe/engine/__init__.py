from codmoe.engine.checkpoints import AtomicBackend
from codmoe.engine.ddp import CODDistributedDataParallel
from codmoe.engine.hooks.experts_after import ExpertsAfterHook
from codmoe.engine.hooks.finite_loss import FiniteLossHook
from codmoe.engine.hooks.frozen_features import FrozenCacheHook
from codmoe.engine.hooks.progress import AverageBuffersHook, BestWeightsHook, TrainingProgressHook
from codmoe.engine.hooks.results import GridHook, SaveMapsHook, TestProgressHook
from codmoe.engine.hooks.router_watch import RouterWatchHook
from codmoe.engine.hooks.unreadable import UnreadableFilesHook
from codmoe.engine.hooks.warmup import BackboneWarmupHook
from codmoe.engine.optim import MergedGroupsConstructor

__all__ = [
    "AtomicBackend",
    "AverageBuffersHook",
    "BackboneWarmupHook",
    "BestWeightsHook",
    "CODDistributedDataParallel",
    "ExpertsAfterHook",
    "FiniteLossHook",
    "FrozenCacheHook",
    "GridHook",
    "MergedGroupsConstructor",
    "RouterWatchHook",
    "SaveMapsHook",
    "TestProgressHook",
    "TrainingProgressHook",
    "UnreadableFilesHook",
]
