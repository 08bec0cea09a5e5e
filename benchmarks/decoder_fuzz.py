"""Decodes files that are damaged at random, and counts what becomes of them. Prints JSON.

    python -m benchmarks.decoder_fuzz [--mutations 100000] [--seconds 7200] [--formats JPEG PNG ...] [--kind any|bit] [--seed 0]

It stops after --mutations files of each format, or when --seconds have passed. `any`: up to four changes of any kind, to headers
too, for what kills, stalls or bloats the decoder. `bit`: one flipped bit, as failing disks and networks leave it. Of each format:
refused      files that were refused with a reason
same         files with the pixels of the undamaged file
close, far   files whose pixels differ by less than FAR on average (of 255), and by more
died         decoder processes that ended; the file is tried again, and refused when it ends another one
ms, MB       time of the slowest file, and the largest memory of a decoder process beyond that of an idle one
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.support.image_files import flip, mutated, seeds
from benchmarks.support.resumable import circumstances
from trainer.data.dataset import DecodeError
from trainer.data.decoder import Decoder

SHAPE, MAX_PIXELS = (32, 32, 3), 1_000_000
FAR = 2.0


def fuzz(form: str, *, mutations: int, seconds: float, kind: str = "any", seed: int = 0) -> dict[str, object]:
    """The counts of one format, a key of `seeds()`."""
    random, variants = np.random.default_rng([seed, *form.encode()]), list(seeds()[form].items())
    everything = [data for each in seeds().values() for data in each.values()]
    counts = dict.fromkeys(("files", "refused", "same", "close", "far", "died"), 0)
    worst = {"far": 0.0, "ms": 0.0, "MB": 0.0}
    accepted: dict[str, int] = {}
    ends = time.monotonic() + seconds
    with Decoder(SHAPE, MAX_PIXELS) as decoder:
        whole = {name: decoder.decode(data).astype(float) for name, data in variants}
        idle = _memory(decoder)
        while counts["files"] < mutations and time.monotonic() < ends:
            name, data = variants[counts["files"] % len(variants)]
            if kind == "bit":
                changed = bytearray(data)
                flip(changed, int(random.integers(len(data))), 0, b"", random)
                damaged = bytes(changed)
            else:
                damaged = mutated(data, everything[random.integers(len(everything))], random)
            counts["files"] += 1
            before, process = time.perf_counter(), decoder.process
            try:
                error = float(np.abs(decoder.decode(damaged) - whole[name]).mean())
            except DecodeError:
                counts["refused"] += 1
            else:
                found = "far" if error >= FAR else "close" if error else "same"
                counts[found] += 1
                accepted[f"{name}: {found}"] = accepted.get(f"{name}: {found}", 0) + 1
                worst["far"] = max(worst["far"], error)
            counts["died"] += decoder.process is not process
            worst["ms"] = max(worst["ms"], 1000 * (time.perf_counter() - before))
            worst["MB"] = max(worst["MB"], _memory(decoder) - idle)
    return counts | {"worst": {key: round(value, 1) for key, value in worst.items()}, "accepted": dict(sorted(accepted.items()))}


def _memory(decoder: Decoder) -> float:
    """Peak memory of the decoder's process in MB; 0 without one."""
    if decoder.process is None:
        return 0.0
    status = Path(f"/proc/{decoder.process.pid}/status").read_text(encoding="ascii")
    return float(status.split("VmHWM:")[1].split()[0]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=100_000, help="files of each format")
    parser.add_argument("--seconds", type=float, default=7200, help="longest time of all formats together")
    parser.add_argument("--formats", nargs="+", default=list(seeds()), choices=list(seeds()))
    parser.add_argument("--kind", choices=("any", "bit"), default="any")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    each = given.seconds / len(given.formats)
    found = {form: fuzz(form, mutations=given.mutations, seconds=each, kind=given.kind, seed=given.seed) for form in given.formats}
    print(json.dumps({**circumstances("benchmarks.decoder_fuzz"), "settings": vars(given), "formats": found}, indent=1))


if __name__ == "__main__":
    main()
