"""The command line: explains two sets of losses.

    python -m spikewise before.npy now.npy --keys names.txt

Exit codes: 0, explained; 2, the arguments cannot be used.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spikewise import describe
from spikewise.compare import explain
from spikewise.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m spikewise",
        description="Explains why a validation loss rose, from the losses of the same examples before and after.",
        epilog="The losses alone reveal chance and single examples. For all causes, use spikewise.SpikeDiagnosis in model.fit, or "
        "pass the model to spikewise.explain.",
    )
    parser.add_argument("before", type=Path, help=".npy file: one loss for each validation example, before the rise")
    parser.add_argument("now", type=Path, help=".npy file: losses of the same examples, in the same order, after the rise")
    parser.add_argument("--keys", type=Path, metavar="FILE", help="text file: the name of each example, one per line")
    parser.add_argument("--groups", type=Path, metavar="FILE", help="text file: the source of each example, one per line")
    parser.add_argument("--epoch", type=int, default=1, metavar="N", help="epoch number to print (default: 1)")
    given = parser.parse_args(arguments)
    try:
        diagnosis = explain(
            _losses(given.before), _losses(given.now), keys=_lines(given.keys), groups=_lines(given.groups), epoch=given.epoch
        )
    except UserError as error:
        sys.stderr.write(f"error: {describe.printable(str(error))}\n")
        return 2
    sys.stdout.write(f"{describe.block(diagnosis)}\n")
    return 0


def _losses(path: Path) -> np.ndarray:
    """The array in a .npy file; raises UserError."""
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"it holds {array.dtype}, not numbers")
        return array
    except (OSError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read: {reason}. Fix: write it with numpy.save(path, losses).") from None


def _lines(path: Path | None) -> list[str] | None:
    """The lines of a text file; raises UserError."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text"
        raise UserError(f"{path} cannot be read: {reason}. Fix: pass a text file with one line per example.") from None


if __name__ == "__main__":
    sys.exit(main())
