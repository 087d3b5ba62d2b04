from codmoe.models.routers.base import Router
from codmoe.models.routers.baselines import (
    FixedRouter,
    OracleRouter,
    RandomRouter,
    StaticRouter,
    UniformRouter,
)
from codmoe.models.routers.evidence import EvidenceRouter

__all__ = [
    "EvidenceRouter",
    "FixedRouter",
    "OracleRouter",
    "RandomRouter",
    "Router",
    "StaticRouter",
    "UniformRouter",
]
