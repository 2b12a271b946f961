"""Lists the commands: `python -m otseg_jax --help`."""

import sys

from otseg_jax import cli


def main(argv: list[str]) -> None:
    """Print the list where it is asked for; it is an error that no command was named."""
    if argv[1:] not in (["--help"], ["-h"]):
        sys.exit(f"error: wanted a command: {cli.command_list()}")
    print(*(f"python -m {name:20}{does}" for name, does in cli.COMMANDS.items()), sep="\n")
    print("Each says more with --help. https://arxiv.org/abs/2403.14183 is the paper.")


if __name__ == "__main__":
    main(sys.argv)
