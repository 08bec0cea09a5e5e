"""`make demo`: a local S3 server, real photographs in a bucket, a training run, a report.

`python -m jobs.demo [--config F] [--images N] [--set ...]`: other settings on as many of the same photographs' crops.
"""

import argparse
import os
import sys
from pathlib import Path

from jobs import train
from jobs.demo import GROUPS, SOURCE, images
from jobs.demo.s3_server import local_s3_server
from trainer import UserError

FOLDER = Path(".cache/demo")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description="Trains on photographs in a local object store.")
    parser.add_argument("--config", default="jobs/configs/demo.toml", help="of the run; where its data are is set here")
    parser.add_argument("--images", type=int, default=2000)
    arguments, rest = parser.parse_known_args()
    places = {"data.source": SOURCE, "data.group_by": f"'{GROUPS}'", "run.storage": "s3://spikewise/demo", "s3.path_style": "true"}
    alone = {"metrics.host": "127.0.0.1", "metrics.linger": "0.0"}
    settings = [argument for key, value in (places | alone).items() for argument in ("--set", f"{key}={value}")]
    try:
        with local_s3_server(FOLDER / str(arguments.images), buckets=["spikewise"]) as server:
            os.environ |= server.environment
            code = images.main(["--images", str(arguments.images), "--size", "128", SOURCE])
            return code or train.main(["--config", arguments.config, *settings, *rest])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
