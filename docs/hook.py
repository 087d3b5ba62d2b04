"""Pages of the site that are made when it is built, so that nothing is written twice.

`mkdocs build` calls the functions `on_*`. Made are: the reference of config keys, from the
docstrings and signatures of what is registered and the comments of `configs/_base_`; that of the
commands; the pages of the API, for mkdocstrings to fill; and pages of files outside `docs/`,
notebooks among them.
"""

from __future__ import annotations

import argparse
import ast
import html
import io
import json
import posixpath
import re
import tokenize
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from codmoe.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "tour.md",
    "CHANGELOG.md": "project/changelog.md",
    "CODE_OF_CONDUCT.md": "project/conduct.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/report.md",
    "projects/README.md": "project/experiments.md",
    "projects/camo_study/README.md": "project/camo_study.md",
    "projects/earlier_studies.md": "project/earlier_studies.md",
    "codmoe/weights/MODEL_CARD.md": "zoo/small.md",
    "demo/photos.md": "demo/photos.md",
} | {f"demo/{path.name}": f"demo/{path.stem}.md" for path in ROOT.glob("demo/*.ipynb")}
"""Files of the repository that are pages of the site, and where."""
API = ["codmoe", *(path.parent.name for path in ROOT.glob("codmoe/*/__init__.py"))]
"""Packages, each a page; ``codmoe`` are the files beside them."""
KINDS = {
    "MODELS": ("Parts of the model", "`model` and below"),
    "DATASETS": ("Data sets", "`train_dataloader.dataset`, `val_…`, `test_…`"),
    "TRANSFORMS": ("Transforms", "entries of a `pipeline`"),
    "FUNCTIONS": ("Collation", "`train_dataloader.collate_fn`"),
    "DATA_SAMPLERS": ("Samplers", "`train_dataloader.sampler`"),
    "METRICS": ("Metrics", "`val_evaluator`, `test_evaluator`"),
    "HOOKS": ("Hooks", "`default_hooks`, `custom_hooks`"),
    "OPTIM_WRAPPER_CONSTRUCTORS": ("Parameter groups", "`optim_wrapper.constructor`"),
    "MODEL_WRAPPERS": ("Wrappers for several GPUs", "`model_wrapper_cfg`"),
}
"""Registries, in the order of the reference: title, and the keys where their types stand."""
FILLED_IN = ("self", "in_channels", "expert_names")
"""Arguments that no config gives."""
BASES = ("default_runtime", "schedules/adamw_cosine", "datasets/loaders")


def load() -> griffe.Module:
    """The package as griffe reads it: nothing of it is imported."""
    package = griffe.load("codmoe", search_paths=[ROOT], docstring_parser="google")
    assert isinstance(package, griffe.Module)
    return package


def classes_of(module: griffe.Module) -> Iterator[griffe.Class | griffe.Function]:
    """Public classes and functions of a module and those below it, each where it is defined."""
    for member in module.members.values():
        if member.is_alias or member.name.startswith("_"):
            continue
        if isinstance(member, griffe.Module):
            yield from classes_of(member)
        elif isinstance(member, (griffe.Class, griffe.Function)):
            yield member


# --- Docstrings ---------------------------------------------------------------------------------

ROLE = re.compile(r":\w+:`~?\.?([^`]+)`")


class Roles(griffe.Extension):
    """Turns Sphinx's roles into links of the site, where there is one thing of that name."""

    places: dict[str, str] | None = None

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = linked(obj.docstring.value, obj)


def linked(text: str, obj: griffe.Object | None = None) -> str:
    """A docstring's text with ``:class:`Name` `` as a link to the API."""
    return ROLE.sub(lambda match: _link(match[1], obj), text)


def _link(name: str, obj: griffe.Object | None) -> str:
    if Roles.places is None:
        found: dict[str, list[str]] = {}
        for member in classes_of(load()):
            if member.docstring:
                found.setdefault(member.name, []).append(member.path)
            for inner in member.members.values():
                if not inner.name.startswith("_") and not inner.is_alias and inner.docstring:
                    found.setdefault(f"{member.name}.{inner.name}", []).append(inner.path)
        Roles.places = {name: paths[0] for name, paths in found.items() if len(paths) == 1}
    owner = obj.parent if obj is not None and obj.is_function else obj
    places = [f"{owner.name}.{name}" if owner is not None else "", name, name.rpartition(".")[2]]
    path = next((Roles.places[place] for place in places if place in Roles.places), None)
    return f"[`{name}`][{path}]" if path else f"`{name}`"


# --- Config keys --------------------------------------------------------------------------------


def config_reference() -> str:
    """Markdown of all config keys: of the shipped bases, then of everything that is registered."""
    text = [
        "# Config keys\n",
        "Made from the docstrings, signatures and base configs of this version when the site was "
        "built. `--cfg-options KEY=VALUE` sets any key; a misspelt one is answered with the "
        "nearest valid name.\n",
        "## Whole runs\n",
        "What the shipped configs inherit, with their values. Stages change some of them "
        "([training](../training.md)). Keys without a note are mmengine's.\n",
        "| key | value | |\n| :-- | :-- | :-- |",
    ]
    for name in BASES:
        for key, value, note in base_keys(ROOT / f"configs/_base_/{name}.py"):
            key = _code(key).replace(".", ".<wbr>")  # where a line may end
            text.append(f"| {key} | {_code(value)} | {_cell(note)} |")
    package = load()
    sources = package["engine.sources.Sources"]
    text += ["", "### `init_from` { #init_from }\n", "What a stage starts from.\n"]
    text.append(_arguments(sources))
    split = package["datasets.splits.complete_split"].docstring.parsed[0].value
    text.append(f"### `split` of a data set {{ #split }}\n\n{linked(split)}\n")
    for registry, (title, keys) in KINDS.items():
        text += [f"## {title}\n", f"Keys: {keys}.\n"]
        text += map(type_reference, registered(package, registry))
    return "\n".join(text) + "\n"


def registered(package: griffe.Module, registry: str) -> list[griffe.Class | griffe.Function]:
    """What is registered there, by its decorator."""
    mark = re.compile(rf"(?:root\.)?{registry}\.register_module\(\)")
    found = [
        each
        for each in classes_of(package)
        if any(mark.fullmatch(str(d.value)) for d in each.decorators)
    ]
    return sorted(found, key=lambda each: (each.name != "ModelLevelMoE", each.path))


def type_reference(found: griffe.Class | griffe.Function) -> str:
    """Heading, first sentence and arguments of something registered."""
    docstring = found.docstring.value if found.docstring else ""
    if not docstring:
        raise PluginError(f"{found.path} is registered and has no docstring")
    first = linked(docstring.split("\n\n")[0].replace("\n", " "), found)
    return (
        f"### [`{found.name}`][{found.path}] {{ #{found.name} }}\n\n{first}\n\n{_arguments(found)}"
    )


def arguments(found: griffe.Class | griffe.Function) -> dict[str, tuple[object, object, str]]:
    """Type, default and description of each argument.

    Of a class that takes ``**kwargs`` those of its bases count too, as they do in the check of
    configs (:func:`codmoe.registry.accepted_arguments`); its own description goes first.
    """
    line = [found, *found.mro()] if isinstance(found, griffe.Class) else [found]
    notes: dict[str, str] = {}
    for each in line:
        for section in each.docstring.parse("google", warnings=False) if each.docstring else ():
            if section.kind is griffe.DocstringSectionKind.parameters:
                for p in section.value:
                    if notes.get(p.name, "See").startswith("See"):
                        notes[p.name] = linked(p.description, each)
    taken: dict[str, tuple[object, object, str]] = {}
    for each in line:
        init = each if each.is_function else each.members.get("__init__")
        parameters = list(init.parameters if init is not None else each.parameters)
        for p in parameters:
            if "variadic" not in p.kind.value and p.name not in FILLED_IN:
                taken.setdefault(p.name, (p.annotation, p.default, notes.get(p.name, "")))
        if parameters and griffe.ParameterKind.var_keyword not in {p.kind for p in parameters}:
            break
    for each in line:
        if "read_by_model" in each.members:
            attribute = each.members["read_by_model"]
            for keyword in attribute.value.arguments:
                note = linked(attribute.docstring.value, each)
                taken[keyword.name] = (f"{keyword.value}", "None", note)
    return taken


def _arguments(found: griffe.Class | griffe.Function) -> str:
    taken = arguments(found)
    if not taken:
        return "No arguments.\n"
    rows = ["| key | type | default | |", "| :-- | :-- | :-- | :-- |"]
    for name, (kind, default, note) in taken.items():
        if not note:
            raise PluginError(f"{found.path} takes {name!r}, of which its docstring says nothing")
        value = "required" if default is None else _code(default)
        rows.append(f"| `{name}` | {_code(kind)} | {value} | {_cell(note)} |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").replace("<", "&lt;").split())


def _code(value: object) -> str:
    text = html.escape(str(value), quote=False).replace("|", "&#124;")
    return f"<code>{' '.join(text.split())}</code>" if value is not None else ""


def base_keys(path: Path) -> Iterator[tuple[str, str, str]]:
    """Dotted key, value and comment of everything that a base config sets."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }

    def note(first: int) -> str:
        above, line = [], first - 1
        while line > 1 and lines[line - 1].lstrip().startswith("#"):  # line 1 is of the whole file
            above.insert(0, comments[line])
            line -= 1
        return " ".join([*above, comments.get(first, "")]).strip()

    def walk(key: str, node: ast.expr, first: int) -> Iterator[tuple[str, str, str]]:
        if not isinstance(node, ast.Call) or node.lineno == node.end_lineno:
            yield key, ast.unparse(node), note(first)
            return
        if note(first):  # said of the whole section
            yield key, "dict(…)", note(first)
        for keyword in node.keywords:
            yield from walk(f"{key}.{keyword.arg}", keyword.value, keyword.lineno)

    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            yield from walk(statement.targets[0].id, statement.value, statement.lineno)


def command_reference() -> str:
    """Markdown of what each command takes; its files are imported, which is light."""
    text = ["# Commands\n", "`codmoe COMMAND --help` says the same in a terminal.\n"]
    for title, group in COMMANDS.items():
        text.append(f"## {title}\n")
        for name in group:
            found = import_module(f"codmoe.commands.{name}_command")
            text += [f"### `codmoe {name}`\n", f"{html.escape(found.__doc__, quote=False)}\n"]
            text += ["| option | default | |", "| :-- | :-- | :-- |"]
            for names, settings in found.OPTIONS:
                if settings.get("help") == argparse.SUPPRESS:
                    continue
                default = settings.get("default")
                shown = "" if default in (None, []) else _code(default)
                note = (settings.get("help") or "").replace("%%", "%")
                text.append(f"| {', '.join(map(_code, names))} | {shown} | {_cell(note)} |")
            text.append("")
    return "\n".join(text)


# --- Pages --------------------------------------------------------------------------------------


def api_page(part: str) -> str:
    """A page for mkdocstrings: the modules of one package, in order."""
    if part == "codmoe":
        files = [p for p in sorted(ROOT.glob("codmoe/*.py")) if p.stem[0] != "_"]
        title = "Base files"
    else:
        files = [
            p for p in sorted(ROOT.glob(f"codmoe/{part}/**/*.py")) if not p.name.startswith("_")
        ]
        title = f"codmoe.{part}"
    modules = (".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files)
    return f"# {title}\n\n" + "\n\n".join(f"::: {module}" for module in modules) + "\n"


def notebook_page(path: Path) -> str:
    """A notebook as Markdown, its code as it stands, and the file for download."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"]).strip()
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.insert(1, f"[Download this notebook]({path.name})")
    return "\n\n".join(parts) + "\n"


def on_files(files, config):
    """Adds the pages that are made."""
    made = {
        "reference/config.md": config_reference(),
        "reference/cli.md": command_reference(),
    }
    made |= {f"reference/{part}.md": api_page(part) for part in API}
    for source, page in PAGES.items():
        path = ROOT / source
        if path.suffix == ".ipynb":
            made[page] = notebook_page(path)
            files.append(File.generated(config, f"demo/{path.name}", abs_src_path=str(path)))
        else:
            made[page] = path.read_text(encoding="utf-8")
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


LINK = re.compile(r"\]\(([^)#:\s]*)(#[\w-]+)?\)")


def on_page_markdown(markdown, page, config, files):
    """Links of the repository, as GitHub follows them, become links of the site."""
    at = {page: source for source, page in PAGES.items()}.get(page.file.src_uri)
    folder = posixpath.dirname(at or f"docs/{page.file.src_uri}")
    here = posixpath.dirname(page.file.src_uri)

    def site_link(match: re.Match) -> str:
        target, anchor = match[1], match[2] or ""
        if not target:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        uri = PAGES.get(path) or (path[5:] if path.startswith("docs/") else None)
        uri = uri or (path if files.get_file_from_path(path) else None)
        if uri is not None:
            return f"]({posixpath.relpath(uri, here or '.')}{anchor})"
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri}: {target} leads nowhere")
        return f"]{{{path}}}"

    markdown = LINK.sub(site_link, markdown)
    # What is no page, such as a source file, is named and not linked.
    return re.sub(r"\[((?:!\[[^\]]*\]\([^)]*\)|[^\]])+)\]\{[^}]*\}", r"\1", markdown)


def on_post_page(output, page, config):
    """No page loads anything from elsewhere."""
    tag = r"<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=[\"']?(https?:[^\"' >]+)"
    for url in re.findall(tag, output):
        if not url.startswith(config.site_url or "\0"):
            raise PluginError(f"{page.file.src_uri} loads {url} from elsewhere")
    return output
