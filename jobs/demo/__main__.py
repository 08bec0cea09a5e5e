"""The demo, `make demo`: starts a local S3 server, makes images from real photographs, trains, and writes a report.

`python -m jobs.demo [--config FILE] [--images N] [--set SECTION.KEY=VALUE]` trains with other settings on N of these images.
"""

import argparse
import os
import sys
from pathlib import Path

from jobs import train
from jobs.command_line import report_error
from jobs.demo import GROUPS, SOURCE, images
from jobs.demo.s3_server import local_s3_server
from trainer import UserError

CONFIG = Path(__file__).parents[1] / "configs/demo.toml"
FOLDER = Path(".cache/demo")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.demo",
        description="Trains on photographs in a local S3 server. Further arguments go to python -m jobs.train.",
    )
    parser.add_argument("--config", default=str(CONFIG), help="TOML file; the demo sets data.source and run.storage itself")
    parser.add_argument("--images", type=int, default=2000, help="number of images, half of them forged (default: 2000)")
    arguments, rest = parser.parse_known_args()
    places = {"data.source": SOURCE, "data.group_by": f"'{GROUPS}'", "run.storage": "s3://spikewise/demo", "s3.path_style": "true"}
    local = {"metrics.host": "127.0.0.1", "metrics.linger": "0.0"}
    overrides = [argument for key, value in (places | local).items() for argument in ("--set", f"{key}={value}")]
    try:
        with local_s3_server(FOLDER / str(arguments.images), buckets=["spikewise"]) as server:
            os.environ |= server.environment
            code = images.main(["--images", str(arguments.images), "--size", "128", SOURCE])
            return code or train.main(["--config", arguments.config, *overrides, *rest])
    except UserError as error:
        report_error(error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
