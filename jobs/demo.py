"""`make demo`: a local S3 server, real photographs in a bucket, a training run, a report."""

import os
import sys
from pathlib import Path

from jobs import demo_data, train
from jobs.object_store import local_object_store
from trainer import UserError

FOLDER = Path(".cache/demo")


def main() -> int:
    try:
        with local_object_store(FOLDER, buckets=["spikewise"]) as server:
            os.environ |= server.environment
            code = demo_data.main(["--images", "2000", "--size", "128", "s3://spikewise/photographs"])
            return code or train.main(["--config", "jobs/configs/demo.toml", *sys.argv[1:]])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
