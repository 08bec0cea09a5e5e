"""trainer.config.sections: the keys, their defaults, and data that cannot be labelled."""

import pytest

from tests.trainer.config.files import MINIMAL, load
from trainer import config


def test_every_key_has_a_default_but_the_data(tmp_path):
    """The smallest useful file would not be enough to start a run."""
    settings = load(tmp_path, MINIMAL)
    assert (settings.training.epochs, settings.training.batch_size, settings.optimizer.learning_rate) == (100, 32, 1e-4)
    assert (settings.model.network, settings.model.dropout) == ("question", None)
    assert settings.data.image_size == (64, 64)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('source = "x"\n', "exactly one of classes, class_pattern and labels is needed"),
        ('source = "x"\nclasses = { one = "One/" }\n', "classes has only one, at least two are needed"),
        ('source = "x"\nclasses = { a = "A/", b = "A/B/" }\n', 'prefix "A/B/" of class b is inside "A/" of class a'),
        ('source = "x"\nclass_pattern = "(["\n', "not a regular expression"),
        ('source = "x"\nclass_pattern = "^([^/]+)/"\n', "has no group `class`. Fix: add (?P<class>...)"),
        ('source = "x"\nclasses = { a = "A/", b = "B/" }\ngroup_by = "abc"\n', "group_by = 'abc' has no group. Fix: "),
        ('classes = { a = "A/", b = "B/" }\n', "data.source: missing. Fix: set it"),
    ],
)
def test_data_that_cannot_be_labelled_is_refused(tmp_path, data, said):
    """The job would list a million objects before it finds that it cannot label them."""
    with pytest.raises(config.ConfigError) as caught:
        load(tmp_path, f"[data]\n{data}")
    assert said in str(caught.value)
