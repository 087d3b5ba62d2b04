"""Parts of the prepared model, compiled whole once and loaded by every later start."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from codmoe.compiled.artefact import circumstances
from codmoe.compiled.copies import PartCopies
from codmoe.compiled.graphs import reason_of
from codmoe.compiled.speed import look_of
from codmoe.compiled.whole import (
    NotLoaded,
    Whole,
    compiler_settings,
    kept_whole,
    load_whole,
    make_whole,
    no_autocast_cache,
)
from codmoe.messages import note


class KeptParts:
    """Parts of a model compiled whole, which torch's cache folder keeps for the next start.

    Args:
        copies: The parts.
        artefact: Folder of what was put into the cache beforehand. A part that it lacks is told.
    """

    def __init__(self, copies: PartCopies, artefact: str | Path | None = None):
        self.artefact = artefact
        self.made_for = (sorted(circumstances(copies).items()), compiler_settings())
        self.wholes: dict[tuple, Whole | None] = {}

    @no_autocast_cache()
    def find(self, name: str, function: Callable, arguments: tuple) -> Whole | None:
        """A part for such arguments, loaded or compiled and kept; None, once with a note why, if it
        cannot be kept or does not fit any longer.
        """
        key = (name, look_of(*arguments), torch.get_num_threads())
        try:
            if key not in self.wholes:
                self.wholes[key] = None
                self.wholes[key] = self._whole(name, function, arguments, key)
            elif (whole := self.wholes[key]) and (misfit := whole.misfit(arguments, {})):
                self.wholes[key] = None
                raise NotLoaded(misfit)
        except Exception as error:  # more than one graph, a folder of somebody else's, a full disk
            note(f"{name} is compiled as if nothing were kept: {reason_of(error)}")
        return self.wholes[key]

    def _whole(self, name: str, function: Any, arguments: tuple, key: tuple) -> Whole:
        method = function if inspect.ismethod(function) else function._call_impl
        digest = hashlib.sha256(repr((self.made_for, key)).encode()).hexdigest()
        path = kept_whole() / f"{digest[:32]}.whole"
        try:
            whole = load_whole(method, path, (arguments, {}))
            whole(*arguments)  # what it reads besides may be gone
            return whole
        except FileNotFoundError:
            if self.artefact is not None:
                shape = " × ".join(map(str, arguments[0].shape))
                note(f"{name} for {shape} is not in artefact {self.artefact}: it is compiled now")
        except Exception as error:
            note(f"{name} is compiled anew: {reason_of(error)}")
        return make_whole(method, path, (arguments, {}))
