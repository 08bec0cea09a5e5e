"""Owns the arguments and the output that several commands share."""

import argparse
import logging
import sys
from pathlib import Path

from trainer import UserError, config
from trainer.formatting import LogFormatter, one_line, printable
from trainer.model import module


def add_configuration(parser: argparse.ArgumentParser, about: str) -> None:
    """Adds --config and --set, as `config.load` takes them. `about`: the help text of --config."""
    parser.add_argument("--config", required=True, metavar="FILE", help=about)
    add_overrides(parser, "override one value")


def add_overrides(parser: argparse.ArgumentParser, about: str) -> None:
    """Adds --set. `about`: the beginning of its help text, what one override does."""
    parser.add_argument(
        "--set",
        action="extend",
        type=config.split_overrides,
        default=[],
        metavar="SECTION.KEY=VALUE",
        help=f"{about}, or several with spaces in between; may be repeated",
    )


def find_module(settings: config.Settings, path: str) -> module.Module | None:
    """The module of the user's own network, from the folder of the configuration file `path` or the current directory.

    None for a built-in network. Raises NetworkError.
    """
    return module.find(settings.model.network, [Path(path).parent, Path.cwd()])


def add_namespace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--namespace", metavar="NAME", help="Kubernetes namespace (default: that of the kubeconfig's context)")


def print_warnings() -> None:
    """Prints what libraries and this project log as warnings, in the form of the other lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("warning: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def say(line: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(printable(line), flush=True)


def report_error(error: Exception | str) -> None:
    """Prints the line of an error that ends the command."""
    print(printable(f"error: {error if isinstance(error, str | UserError) else one_line(error)}"), file=sys.stderr)
