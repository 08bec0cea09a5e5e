"""Writes a run's report from its stored results, at any time: `python -m jobs.report --config FILE --run NAME`."""

import argparse
import sys
from pathlib import Path

from jobs.command_line import add_configuration
from trainer import UserError, config
from trainer.data.pack import load_pack
from trainer.data.shards import open_rows
from trainer.data.split import split_rows
from trainer.formatting import one_line
from trainer.report.load import load
from trainer.report.write import write
from trainer.storage import open_store, results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.report", description="Writes a run's report from its stored results.")
    add_configuration(parser, "a configuration with the run's [s3] section and run.storage")
    parser.add_argument("--run", required=True, metavar="NAME", help="name of the run, which may still be in progress")
    arguments = parser.parse_args(argv)
    try:
        settings = config.load(arguments.config, arguments.set)
        storage = open_store(settings.run.storage, settings.s3)
        facts = results.get_run(storage, arguments.run)
        if facts is None:
            raise UserError(f"No run {arguments.run} in {storage.url}. Fix: correct --run or run.storage.")
        data = config.parse(facts["config"], f"run {arguments.run}").data
        packed = load_pack(storage, facts["manifest"], (*data.image_size, 3))
        if packed is None:
            raise UserError(
                f"The packed images of run {arguments.run} are no longer in {storage.url}/shards. "
                "Fix: start a run on the same data, which packs them again."
            )
        rows = open_rows(packed, storage, Path(settings.pipeline.cache_dir), settings.pipeline.cache_max_bytes)
        sides = split_rows(rows, packed.classes, data)
        folder = Path(settings.run.output, arguments.run)
        write(load(arguments.run, storage, packed, rows, sides), folder)
    except (UserError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"report: {folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
