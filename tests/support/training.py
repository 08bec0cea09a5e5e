"""The configurations of tests that train, and what a worker builds from one."""

from typing import Any

from benchmarks.support.training import feed, learner
from trainer import config

__all__ = ["feed", "learner", "settings"]


def settings(**sections: Any) -> config.Settings:
    """A configuration of two classes, with these sections changed."""
    return config.parse({"data": {"source": "x", "classes": {"a": "a/", "b": "b/"}}, **sections})
