from codmoe.engine.checkpoints import AtomicBackend
from codmoe.engine.data_hooks import UnreadableFilesHook
from codmoe.engine.ddp import CODDistributedDataParallel
from codmoe.engine.experts_after import ExpertsAfterHook
from codmoe.engine.finite_loss import FiniteLossHook
from codmoe.engine.frozen_cache import FrozenCacheHook
from codmoe.engine.hooks import AverageBuffersHook, BestWeightsHook, TrainingProgressHook
from codmoe.engine.optimizers import MergedGroupsConstructor
from codmoe.engine.result_hooks import GridHook, SaveMapsHook, TestProgressHook
from codmoe.engine.router_watch import RouterWatchHook
from codmoe.engine.warmup import BackboneWarmupHook

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
