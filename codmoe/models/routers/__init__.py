from codmoe.models.routers.base import Router
from codmoe.models.routers.baselines import (
    FixedRouter,
    ForcedRouter,
    RandomRouter,
    StaticRouter,
    UniformRouter,
)
from codmoe.models.routers.evidence import EvidenceRouter

__all__ = [
    "EvidenceRouter",
    "FixedRouter",
    "ForcedRouter",
    "RandomRouter",
    "Router",
    "StaticRouter",
    "UniformRouter",
]
