"""Writes the demo's images: `python -m jobs.demo.images --images 1600 --size 160 --seed 0 TARGET` (a folder or s3://bucket/prefix).

Owns the content of TARGET. Half of the keys are `authentic/<photograph>/<photograph>-0001.jpg` and so on, half
`fake/<photograph>/<photograph>-0001.jpg`, so that data.group_by = '^[^/]+/([^/]+)/' keeps a photograph on one side of the split.
forgeries.py makes the images.

The object `.demo-data.json` describes the set. It is written first, as incomplete, and again at the end, as complete. A complete
set is not written again, an incomplete or different one is replaced, and a TARGET that holds other objects but no `.demo-data.json`
is left alone.
"""

import argparse
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import PIL

from jobs.demo.forgeries import PHOTOGRAPHS, key, make_pair, photograph
from trainer import UserError, __version__, config
from trainer.formatting import printable
from trainer.run.console import Console
from trainer.storage import NotFound, Store, open_store

MARKER = ".demo-data.json"
OURS = re.compile(r"(authentic|fake)/([^/]+)/\2-\d+\.jpg")
BOUNDS = {"images": (2 * len(PHOTOGRAPHS), 100_000), "size": (32, 512), "seed": (0, 2**31 - 1)}


def write(store: Store, images: int, size: int, seed: int, console: Console) -> bool:
    """Writes the set of `images` images, `size` x `size` pixels, unless `store` has it already. Returns whether it was written.

    Raises UserError if the store holds other objects or a photograph is not installed, and StoreError.
    """
    versions = {"spikewise": __version__, "pillow": PIL.__version__, "numpy": np.__version__}
    wanted = {"images": images, "size": size, "seed": seed, "versions": versions}
    expected = {key(label, index) for label in ("authentic", "fake") for index in range(images // 2)}
    marker, found = _marker(store), _keys(store)
    if marker is None and found:
        raise UserError(f"{store.url} holds {len(found):,} other objects, such as {found[0]}. Fix: name an empty folder or prefix.")
    ours = {name for name in found if OURS.fullmatch(name)}
    if marker == {**wanted, "complete": True} and ours == expected:
        return False
    for name in PHOTOGRAPHS:
        photograph(name)  # fills the cache before the threads start, and raises before anything is written if one is missing

    def put_pair(index: int) -> None:
        for name, data in make_pair(seed, index, size).items():
            store.put(name, data, content_type="image/jpeg")

    store.put(MARKER, json.dumps({**wanted, "complete": False}).encode())
    with ThreadPoolExecutor(4, thread_name_prefix="demo-data") as pool:
        for done, _ in enumerate(pool.map(put_pair, range(images // 2)), start=1):
            console.progress("images", 2 * done, images)
    console.done("images")
    store.delete(ours - expected)
    store.put(MARKER, json.dumps({**wanted, "complete": True}).encode())
    return True


def _marker(store: Store) -> dict[str, Any] | None:
    try:
        return json.loads(store.get(MARKER))
    except NotFound:
        return None
    except ValueError:
        raise UserError(f"{store.url}/{MARKER} was not written by this program. Fix: name an empty folder or prefix.") from None


def _keys(store: Store) -> list[str]:
    try:
        return [entry.key for entry in store.list() if entry.key != MARKER]
    except NotFound:
        return []  # a folder that does not exist yet


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.demo.images", description="Writes crops of photographs, half of them forged."
    )
    parser.add_argument("target", metavar="TARGET", help="a folder, or s3://bucket/prefix")
    parser.add_argument("--images", type=int, default=1600, help="number of images, half of them forged (default: 1600)")
    parser.add_argument("--size", type=int, default=160, help="height and width in pixels (default: 160)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random crops and forgeries (default: 0)")
    arguments = parser.parse_args(argv)
    try:
        for name, (least, most) in BOUNDS.items():
            if not least <= getattr(arguments, name) <= most:
                raise UserError(f"--{name} {getattr(arguments, name)} is out of range. Fix: use {least} to {most}.")
        if arguments.images % 2:
            raise UserError(f"--images {arguments.images} is odd, and half of the images are forged. Fix: use an even number.")
        path_style = any(name in os.environ for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"))  # for servers other than AWS
        store = open_store(arguments.target, config.S3(path_style=path_style))
        with Console() as console:
            made = write(store, arguments.images, arguments.size, arguments.seed, console)
    except UserError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    count = f"{arguments.images:,} images of {len(PHOTOGRAPHS)} photographs, half of them forged"
    print(f"{store.url}: {count}" if made else f"{store.url}: {count} (already there)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
