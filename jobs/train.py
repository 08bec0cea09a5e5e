"""Trains a model: `python -m jobs.train --config jobs/configs/question.toml --set run.name=first`. Run it again to resume.

Exit codes: 0 success, 1 the run failed, 2 an error that the user can correct, 143 interrupted with a checkpoint saved; with
--retried, 75 for a failure after which a retry may succeed.
"""

import argparse
import os
import sys
import traceback

from jobs.command_line import add_configuration, find_module, print_warnings, report_error, say
from trainer import UserError, config
from trainer.formatting import printable
from trainer.run.console import Console


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description="Trains a model, or resumes the run of that name.")
    add_configuration(parser, "TOML file, for example jobs/configs/question.toml")
    parser.add_argument("--dry-run", action="store_true", help="print what the run would do, and write nothing")
    parser.add_argument(
        "--retried", action="store_true", help=f"exit with {os.EX_TEMPFAIL} after a failure after which a retry may succeed"
    )
    arguments = parser.parse_args(argv)
    print_warnings()
    try:
        settings = config.load(arguments.config, arguments.set)
        name = config.run_name(settings, arguments.config)
        module = find_module(settings, arguments.config)
        if arguments.dry_run:
            from trainer.run.plan import plan

            say(plan(settings, name, module))
            return 0
        from trainer.run.driver import launch

        with Console() as console:
            outcome = launch(settings, name, console, module)
    except UserError as error:
        report_error(error)
        return os.EX_TEMPFAIL if error.transient and arguments.retried else 2
    except Exception:  # an error of Ray, or a bug: another attempt costs little
        if not arguments.retried:
            raise
        print(printable(traceback.format_exc()), file=sys.stderr)
        return os.EX_TEMPFAIL
    if outcome.failed:
        report_error(f"run {outcome.run} {outcome.outcome}")
        return os.EX_TEMPFAIL if outcome.transient and arguments.retried else 1
    print(printable(f"run {outcome.run}: {outcome.outcome}"), file=sys.stdout if outcome.succeeded else sys.stderr)
    return 0 if outcome.succeeded else 143


if __name__ == "__main__":
    sys.exit(main())
