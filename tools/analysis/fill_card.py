"""Write measured numbers into a model card: python tools/analysis/fill_card.py
codmoe/weights/MODEL_CARD.md ensemble.json [--zero-shot kvasir.json ...]"""

from __future__ import annotations

import argparse
import sys

from codmoe.inference.card import fill_card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("card", help="markdown with <!-- numbers --> and <!-- end of numbers -->")
    parser.add_argument("result", help="JSON of tools/test.py --experts")
    parser.add_argument("--zero-shot", nargs="+", default=[], help="JSONs of tools/eval_maps.py")
    args = parser.parse_args()
    try:
        fill_card(args.card, args.result, args.zero_shot)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(f"filled {args.card}")


if __name__ == "__main__":
    main()
