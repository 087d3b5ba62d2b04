"""``python -m codmoe`` is the command ``codmoe``."""

from codmoe.cli import command

if __name__ == "__main__":
    command()
