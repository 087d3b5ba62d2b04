"""Print a config resolved, with where each value comes from:

codmoe config ensemble/stage3 model.router --cfg-options model.top_k=1
"""

from codmoe.commands.options import CFG_OPTIONS, CONFIG, option

OPTIONS = (
    CONFIG,
    option("keys", nargs="*", metavar="KEY", help="only what is below, such as model.router"),
    option("--out", help="also write the whole config to this file (*.py), which inherits nothing"),
    CFG_OPTIONS,
)


def run(args) -> None:
    from rich.console import Console
    from rich.text import Text

    from codmoe.engine.config import parse_options
    from codmoe.engine.origins import resolve
    from codmoe.files import save_text
    from codmoe.messages import printable

    if args.out and not args.out.endswith(".py"):
        raise ValueError(f"--out {args.out}: a config's name ends in .py")
    cfg, settings = resolve(args.config, parse_options(args.cfg_options), args.keys)
    lines = [printable(f"{setting.key} = {setting.value!r}") for setting in settings]
    width = min(max(map(len, lines), default=0), 72)
    console = Console(soft_wrap=True, highlight=False)
    for line, setting in zip(lines, settings, strict=True):
        origin = f"  # {printable(setting.origin)}"
        console.print(Text(line.ljust(width)).append(origin, "cyan"))
    if args.out:
        print(f"wrote {save_text(args.out, cfg.pretty_text)}")
