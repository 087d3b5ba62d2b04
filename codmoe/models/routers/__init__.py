from codmoe.models.routers.base import Router
from codmoe.models.routers.baselines import (
    FixedRouter,
    ForcedRouter,
    OracleRouter,
    RandomRouter,
    StaticRouter,
    UniformRouter,
)
from codmoe.models.routers.evidence import EvidenceRouter

__all__ = [
    "EvidenceRouter",
    "FixedRouter",
    "ForcedRouter",
    "OracleRouter",
    "RandomRouter",
    "Router",
    "StaticRouter",
    "UniformRouter",
]
