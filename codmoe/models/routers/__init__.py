from codmoe.models.routers.base import Router
from codmoe.models.routers.baselines import (
    FixedRouter,
    ForcedRouter,
    RandomRouter,
    StaticRouter,
    UniformRouter,
)
from codmoe.models.routers.evidence import EvidenceRouter
from codmoe.models.routers.grown import GrownRouter

__all__ = [
    "EvidenceRouter",
    "FixedRouter",
    "ForcedRouter",
    "GrownRouter",
    "RandomRouter",
    "Router",
    "StaticRouter",
    "UniformRouter",
]
