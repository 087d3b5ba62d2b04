"""A local page to try a model on your own images: codmoe demo [--checkpoint FILE]"""

from importlib.util import find_spec
from pathlib import Path

from codmoe.commands.options import MODEL, TRUST_CODE, WEIGHTS, inferencer, option, whole

OPTIONS = (
    WEIGHTS,
    *MODEL,
    option("--host", default="127.0.0.1", help="0.0.0.0: whoever reaches this machine may use it"),
    option("--port", type=whole(1, 65535), help="by default the first free one from 7860 on"),
    TRUST_CODE,
)


def run(args) -> None:
    if find_spec("gradio") is None:
        raise ValueError("the demo needs gradio, which is missing; pip install 'codmoe[demo]'")
    from codmoe.inference.demo import serving, wait

    infer = inferencer(args, batch_size=1)
    # Without its folder, which is nothing for whoever else may see the page.
    name = Path(args.checkpoint or args.config or "small, which ships with codmoe").name
    with serving(infer, name=name, host=args.host, port=args.port) as address:
        print(f"open {address} in a browser; Ctrl+C ends it", flush=True)
        wait()
