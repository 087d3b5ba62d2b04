"""Result files of ``tools/test.py`` and ``tools/eval_maps.py``, read back as methods to compare."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codmoe.messages import suggest

MIXTURE, ORACLE, ALL = "mixture", "oracle", "all"


@dataclass
class Method:
    """One source of one result file.

    Args:
        name: What tables call it.
        source: Its name in the file: ``"mixture"``, an expert, ``"oracle"``, a published method.
        path: The file.
        rows: ``{dataset: ROW}``; a row has its numbers, ``images`` ({stem: {metric: value}}) and,
            unless an older version wrote it, ``curves``.
        conventions: ``{metric: text}`` of the file.
    """

    name: str
    source: str
    path: Path
    rows: dict[str, dict[str, Any]]
    conventions: dict[str, str] = field(default_factory=dict)


def load_methods(
    paths: Sequence[str | os.PathLike],
    *,
    names: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
) -> list[Method]:
    """The methods of some result files, in their order.

    Args:
        paths: JSON files.
        names: One per file; by default the stem of its checkpoint, or the method it names, or the
            file's stem, made unique. Of several sources of a file each adds ``/<source>``.
        sources: Sources to take from each file; ``"all"`` takes every one, None the mixture. A file
            of one method that is no mixture (saved maps) is taken whatever this says.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is no result file or lacks a source; names do not fit the files.
    """
    if not paths:
        raise ValueError("There is no result file to compare; name at least one.")
    if names is not None and (len(names) != len(paths) or len(set(names)) != len(names)):
        raise ValueError(
            f"{len(names)} name(s) for {len(paths)} file(s): {', '.join(names)}; give each file "
            "one name of its own."
        )
    methods = []
    paths = [Path(path) for path in paths]
    loaded = [_read(path) for path in paths]
    bases = list(names) if names else _unique([base for base, _, _ in loaded], paths)
    for path, base, (_, table, conventions) in zip(paths, bases, loaded, strict=True):
        chosen = _sources(path, table, sources)
        for source in chosen:
            rows = {dataset: found[source] for dataset, found in table.items() if source in found}
            name = base if len(chosen) == 1 else f"{base}/{source}"
            methods.append(Method(name, source, path, rows, conventions))
    return methods


def _read(path: Path) -> tuple[str, dict[str, dict[str, dict]], dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"The result file {path} does not exist; make it with --json of tools/test.py or "
            "tools/eval_maps.py."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is no JSON file ({error}); give what --json of tools/test.py or "
            "tools/eval_maps.py wrote"
        ) from None
    fault = (
        f"{path} is no result file: it has neither a `table` ({{data set: {{source: row}}}}) nor a "
        "row with `images`; give what tools/test.py or tools/eval_maps.py wrote."
    )
    if not isinstance(data, Mapping):
        raise ValueError(fault)
    if "table" in data:
        table = data["table"]
        checkpoint = data.get("checkpoint")
        base = str(data.get("method") or (Path(checkpoint).stem if checkpoint else path.stem))
    elif "images" in data:
        base = str(data.get("method") or path.stem)
        table = {str(data.get("dataset") or "data"): {base: data}}
    else:
        raise ValueError(fault)
    if not isinstance(table, Mapping) or not table:
        raise ValueError(fault)
    if not all(isinstance(rows, Mapping) and rows for rows in table.values()):
        raise ValueError(fault)
    kinds = {source for rows in table.values() for source in rows}
    if "checkpoint" not in data and len(kinds) == 1:
        base = kinds.pop()
    cleaned = {
        dataset: {source: _row(path, dataset, source, row) for source, row in rows.items()}
        for dataset, rows in table.items()
    }
    return base, cleaned, dict(data.get("conventions") or {})


def _row(path: Path, dataset: str, source: str, row: Mapping[str, Any]) -> dict[str, Any]:
    where = f"{path}: {source!r} on {dataset!r}"
    images = row.get("images") if isinstance(row, Mapping) else None
    if not images:
        raise ValueError(
            f"{where} has no values per image (`images`), so nothing can be paired; write the file "
            "again with tools/test.py or tools/eval_maps.py."
        )
    numbers = {key: _number(value) for key, value in row.items() if _is_number(value)}
    if numbers.get("n", len(images)) != len(images):
        raise ValueError(f"{where} says n = {row['n']} and lists {len(images)} images.")
    cleaned: dict[str, Any] = {**numbers, "n": len(images)}
    cleaned["images"] = {
        stem: {key: _number(value) for key, value in values.items()}
        for stem, values in images.items()
    }
    if row.get("curves"):
        curves = row["curves"]
        cleaned["curves"] = {key: [_number(v) for v in values] for key, values in curves.items()}
    return cleaned


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _number(value: float | None) -> float:
    # JSON has no NaN; `tables.save_json` writes null for it.
    return math.nan if value is None else value


def _sources(
    path: Path, table: Mapping[str, Mapping[str, Any]], wanted: Sequence[str] | None
) -> list[str]:
    known = list(dict.fromkeys(source for rows in table.values() for source in rows))
    if len(known) == 1 and known[0] != MIXTURE:
        return known
    chosen = []
    for source in wanted or [MIXTURE]:
        if source != ALL and source not in known:
            raise ValueError(f"{path} has no source {source!r}; {suggest(source, [*known, ALL])}")
        chosen += known if source == ALL else [source]
    return list(dict.fromkeys(chosen))


def _unique(bases: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Names told apart by what tells their files apart: file stem, then folder, then number."""
    names = list(bases)
    for detail in ("{0.stem}", "{0.parent.name}/{0.stem}", "{1}"):
        counts = Counter(names)
        names = [
            name if counts[name] == 1 else f"{base} ({detail.format(path, index + 1)})"
            for index, (name, base, path) in enumerate(zip(names, bases, paths, strict=True))
        ]
    return names
