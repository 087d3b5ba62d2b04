"""The plan of a study: rows as configs, each with some seeds, and which starts from which."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from codmoe.engine.config import load_config, parse_options
from codmoe.engine.stages import Stage
from codmoe.messages import suggest
from codmoe.registry import MODELS

# The environment variable by which a config is told its data set.
VARIABLE = "STUDY_DATA"
CONFIGS = Path(__file__).parent / "configs"
DATASETS = ("polyp", "mix")
# What is wanted first: the chain to the ensemble is long, so it starts first.
PRIORITY = (
    "warm fpn joint router_top2 stage3 joint_mixture router_mixture stage3_mixture fpn4 static "
    "router_top4 router_pixel router_top1 ujsc zoomnet sinet pranet stage3_sparse "
    "stage3_no_expert_loss router_no_distill router_no_texture router_no_edge router_no_context "
    "router_no_frequency router_no_balance router_no_z router_no_temperature refit fpn_long "
    "joint_lite2 router_lite2 stage3_lite2 fpn_frozen joint_frozen stage3_top2 joint_cold "
    "joint_zoomnet_structure"
).split()


@dataclass(eq=False)
class Run(Stage):
    """One row of the study with one seed.

    Attributes:
        row: Its name.
        dataset: What the config is read with in :data:`VARIABLE`; nothing if it is empty.
        seed: ``randomness.seed``.
        above: The runs whose weights this one starts from; none for one that starts from nothing or
            from a file of somebody else's.
        options: ``key=value`` of the command line that make this run's config from the file.
    """

    row: str = ""
    dataset: str = ""
    seed: int = 0
    above: list[Run] = field(default_factory=list)
    options: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """``<row>_seed<k>``, the name of its folder and of its result."""
        return f"{self.row}_seed{self.seed}"

    @property
    def fingerprint(self) -> str:
        """Changes with anything in the config, overrides included, and in those it starts from."""
        # Not of pretty_text, as a stage's: formatting a hundred configs takes a minute.
        text = json.dumps(self.cfg.to_dict(), sort_keys=True, default=str)
        above = [run.fingerprint for run in self.above]
        return hashlib.sha256("".join([text, *above]).encode()).hexdigest()

    @property
    def result(self) -> Path:
        """The small result, which also marks the run as done."""
        return self.work_dir / "result.json"

    def is_done(self) -> bool:
        """Whether it was trained and tested with this very config."""
        try:
            return json.loads(self.result.read_text())["fingerprint"] == self.fingerprint
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @property
    def is_source(self) -> bool:
        """Whether a config beside its own names its weights, planned today or not."""
        folder = Path(self.name).parent
        beside = [*folder.glob("*.py"), *folder.glob("_base_/*.py")]
        return any(self.weights.name in path.read_text(encoding="utf-8") for path in beside)

    @property
    def kind(self) -> tuple:
        """Runs of equal kind take about the same time per epoch."""
        model = self.cfg.model
        return (
            self.row.split("_")[0],
            tuple(model.get("frozen") or ()),
            tuple(sorted(e["type"] for e in model.experts.values() if e)),
            model.backbone.get("name"),
        )

    @property
    def is_heavy(self) -> bool:
        """Whether its training takes a large part of a GPU's memory: at batch 24 several complete
        experts hold 43 GiB, one that reads the image at further scales 32, others 9 to 17. At batch
        12, the study's, it is half of that, and three of any kind share 80 GB.
        """
        model = self.cfg.model
        if self.cfg.train_dataloader.batch_size <= 12:
            return False
        types = [e["type"] for e in model.experts.values() if e]
        learning = [MODELS.get(name) for name in types if name != "FPNExpert"]
        further = any(len(expert.input_scales) > 1 for expert in learning)
        return (len(learning) > 1 or further) and "experts" not in (model.get("frozen") or ())

    @property
    def epochs(self) -> int:
        """Length of its training."""
        return int(self.cfg.train_cfg.max_epochs)


class Row(NamedTuple):
    """A config, and the data set that it is trained on where the config leaves that open."""

    name: str
    config: str
    dataset: str = ""


def study_rows(patterns: Sequence[str] = (), folder: Path = CONFIGS) -> list[Row]:
    """The rows that are asked for, in that order.

    Args:
        patterns: Rows (``polyp_fpn``), patterns of them (``mix_router_*``) or config files; without
            any, all rows of the folder, the most wanted first.
        folder: Holds one config a row; what begins with ``_`` is none. With data sets in
            ``_base_/data``, every config is a row of each, ``<data set>_<config>``.

    Raises:
        FileNotFoundError: There is no such row, the message names the nearest; or no such folder.
    """
    configs = [path for path in folder.glob("*.py") if path.stem[0] != "_"]
    datasets = [path.stem for path in folder.glob("_base_/data/*.py")]
    found = [Row(f"{data}_{p.stem}", str(p), data) for data in datasets for p in configs]
    rows = {row.name: row for row in found or [Row(p.stem, str(p)) for p in configs]}
    if not rows:
        raise FileNotFoundError(f"{folder} holds no config; give the folder of a project's rows")
    order = sorted(rows, key=_priority)
    chosen = []
    for pattern in patterns or ["*"]:
        matching = [rows[name] for name in order if fnmatchcase(name, pattern)]
        if not matching and Path(pattern).is_file():
            matching = [Row(Path(pattern).stem, pattern)]
        if not matching:
            raise FileNotFoundError(f"{folder} has no row {pattern!r}; {suggest(pattern, rows)}")
        chosen += matching
    return list(dict.fromkeys(chosen))


def _priority(name: str) -> tuple[int, int, str]:
    dataset, _, row = name.partition("_")
    ranks = [PRIORITY.index(known) for known in (row, name) if known in PRIORITY]
    place = DATASETS.index(dataset) if dataset in DATASETS else len(DATASETS)
    return ranks[0] if ranks else len(PRIORITY), place, name


@contextmanager
def chosen_dataset(row: Row) -> Iterator[None]:
    """Read configs with the data set of a row, and without a line about it each time."""
    earlier = os.environ.get(VARIABLE)
    logging.disable(logging.INFO)
    try:
        if row.dataset:
            os.environ[VARIABLE] = row.dataset
        yield
    finally:
        logging.disable(logging.NOTSET)
        os.environ.pop(VARIABLE, None)
        if earlier is not None:
            os.environ[VARIABLE] = earlier


def row_options(row: str, options: Sequence[str]) -> list[str]:
    """Those of ``key=value`` and ``<pattern of rows>:key=value`` that apply to one row."""
    mine = []
    for option in options:
        key, _, value = option.partition("=")
        pattern, colon, own = key.partition(":")
        if not colon:
            mine.append(option)
        elif fnmatchcase(row, pattern):
            mine.append(f"{own}={value}")
    return mine


def plan_study(
    rows: Sequence[Row], *, seeds: Sequence[int], work_dir: Path, options: Sequence[str] = ()
) -> list[Run]:
    """Load and check every config, and find out which run starts from which.

    Args:
        rows: As :func:`study_rows` returns them, the most wanted first.
        seeds: All rows run with the first before any runs with the second.
        work_dir: Folder of one folder per run, and of the weights.
        options: Overrides; see :func:`row_options`.

    Returns:
        The runs in order of priority; a source may stand behind what starts from it.

    Raises:
        ValueError: Two rows leave the same weights, one starts from what none leaves and what is
            not there, or an override is for a row that does not exist.
    """
    _check_patterns(rows, options)
    configs: dict[str, tuple[Row, Config]] = {}
    for row in rows:
        if row.name in configs:
            other = configs[row.name][0].config
            raise ValueError(f"two rows are called {row.name!r}: {other} and {row.config}")
        with chosen_dataset(row):
            loaded = load_config(row.config, parse_options(row_options(row.name, options)))
        configs[row.name] = row, loaded
    runs = []
    for seed in seeds:
        for row, loaded in configs.values():
            weights = work_dir / "weights" / f"seed{seed}" / Path(_folder(loaded)).name
            own = [f"checkpoint_dir={weights}", f"randomness.seed={seed}"]
            cfg = copy.deepcopy(loaded)
            cfg.merge_from_dict(parse_options(own))
            folder = work_dir / f"{row.name}_seed{seed}"
            run = Run(row.config, cfg, folder, row.name, row.dataset, seed)
            run.options = [*row_options(row.name, options), *own]
            runs.append(run)
    _link(runs)
    return runs


def _check_patterns(rows: Sequence[Row], options: Sequence[str]) -> None:
    # An override for a row that is not asked for today is no mistake.
    known = {row.name for row in rows}
    for folder in {Path(row.config).parent for row in rows}:
        known |= {row.name for row in study_rows(folder=folder)}
    for option in options:
        pattern, colon, _ = option.partition("=")[0].partition(":")
        if colon and not any(fnmatchcase(row, pattern) for row in known):
            raise ValueError(
                f"--cfg-options {option}: no row is called {pattern!r}; {suggest(pattern, known)}"
            )


def _folder(cfg: Config | Mapping[str, Any]) -> str:
    return str(cfg.get("checkpoint_dir", "checkpoints_moe"))


def _link(runs: Sequence[Run]) -> None:
    by_weights: dict[Path, Run] = {}
    for run in runs:
        other = by_weights.setdefault(run.weights, run)
        if other is not run:
            raise ValueError(
                f"{run.row} and {other.row} both leave {run.weights.name}; give each its own "
                "default_hooks.best.name"
            )
    for run in runs:
        for wanted in run.sources:
            if wanted in by_weights:
                run.above.append(by_weights[wanted])
            elif not wanted.is_file():
                made = run.cfg.init_from.get("command", "the stage before")
                raise ValueError(
                    f"{run.row} starts from {wanted.name}, which none of the rows asked for "
                    f"leaves; add the row of: {made}"
                )
    sources_first(runs)


def sources_first(runs: Sequence[Run]) -> list[Run]:
    """The runs, each behind those it starts from.

    Raises:
        ValueError: One starts, by way of others, from itself.
    """
    order: list[Run] = []
    for _ in runs:
        order += [r for r in runs if r not in order and all(a in order for a in r.above)]
    if len(order) < len(runs):
        odd = next(run for run in runs if run not in order)
        raise ValueError(f"{odd.row} starts, by way of others, from itself")
    return order
