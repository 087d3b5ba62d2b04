"""codmoe report, from a checkout."""

from codmoe.cli import tool

if __name__ == "__main__":
    tool("report")
