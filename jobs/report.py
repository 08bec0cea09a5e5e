"""Rebuilds a run's report from what the run stored: `python -m jobs.report --config FILE --run NAME`."""

import argparse
import sys
from pathlib import Path

from jobs.command_line import add_configuration
from trainer import UserError, config
from trainer.data.index import split
from trainer.data.pack import load_pack
from trainer.data.shards import open_rows
from trainer.formatting import one_line
from trainer.report.load import load
from trainer.report.summary import write
from trainer.storage import open_store, results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.report", description="Rebuilds a run's report from what it stored.")
    add_configuration(parser, "any configuration with the run's run.storage and s3")
    parser.add_argument("--run", required=True, metavar="NAME", help="name of the run, finished or not")
    arguments = parser.parse_args(argv)
    try:
        settings = config.load(arguments.config, arguments.set)
        storage = open_store(settings.run.storage, settings.s3)
        facts = results.get_run(storage, arguments.run)
        if facts is None:
            raise UserError(f"--run {arguments.run}: {storage.url} holds no run of that name")
        data = config.parse(facts["config"], f"run {arguments.run}").data
        packed = load_pack(storage, facts["manifest"], (*data.image_size, 3))
        if packed is None:
            raise UserError(f"--run {arguments.run}: its packed images are no longer in {storage.url}/shards")
        rows = open_rows(packed, storage, Path(settings.pipeline.cache_dir))
        sides = split(
            *(rows.keys, rows.labels, rows.groups, rows.contents, packed.classes),
            validation_fraction=data.validation_fraction,
            min_validation=data.min_validation,
        )
        folder = Path(settings.run.output, arguments.run)
        write(load(arguments.run, storage, packed, rows, sides), folder)
    except (UserError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"report: {folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
