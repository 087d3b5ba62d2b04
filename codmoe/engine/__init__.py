from codmoe.engine.checkpoints import AtomicBackend
from codmoe.engine.data_hooks import UnreadableFilesHook
from codmoe.engine.ddp import CODDistributedDataParallel
from codmoe.engine.frozen_cache import FrozenCacheHook
from codmoe.engine.hooks import AverageBuffersHook, BestWeightsHook, TrainingProgressHook
from codmoe.engine.optimizers import MergedGroupsConstructor
from codmoe.engine.result_hooks import GridHook, SaveMapsHook, TestProgressHook

__all__ = [
    "AtomicBackend",
    "AverageBuffersHook",
    "BestWeightsHook",
    "CODDistributedDataParallel",
    "FrozenCacheHook",
    "GridHook",
    "MergedGroupsConstructor",
    "SaveMapsHook",
    "TestProgressHook",
    "TrainingProgressHook",
    "UnreadableFilesHook",
]
