"""Writes a run's report from its stored results, at any time: `python -m jobs.report --config FILE --run NAME`."""

import argparse
import sys
from pathlib import Path

from jobs.command_line import add_configuration, report_error, say
from trainer import UserError, config
from trainer.report.load import load, open_images
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
        packed, rows, sides = open_images(storage, arguments.run, facts, settings.pipeline)
        folder = Path(settings.run.output, arguments.run)
        write(load(arguments.run, storage, packed, rows, sides), folder)
    except (UserError, OSError) as error:
        report_error(error)
        return 2
    say(f"report: {folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
