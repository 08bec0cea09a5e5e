"""A configuration file to test with."""

from pathlib import Path

from trainer import config

MINIMAL = '[data]\nsource = "images"\nclasses = { authentic = "Au/", fake = "Tp/" }\n'
"""The smallest file that is valid."""


def load(folder: Path, text: str, *overrides: str) -> config.Settings:
    """Writes `text` to job.toml in `folder` and loads it."""
    path = folder / "job.toml"
    path.write_text(text)
    return config.load(path, overrides)
