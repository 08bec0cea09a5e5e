"""benchmarks.hostile_objects: a small part of the fuzz of every object read from a bucket."""

import random

from benchmarks.hostile_objects import Bucket, fuzz, mutated


def test_no_object_of_the_bucket_harms_the_job():
    """One damaged or hostile object would end the job with a traceback, or write into the terminal or outside the cache."""
    counts = fuzz(300)
    assert counts.total() == 300
    assert {name.partition(":")[0] for name in counts} >= {
        "pack.json",
        "part",
        "commit.json",
        "state.safetensors",
        "lease",
        "run.json",
        "labels.csv",
        "labels.parquet",
        "start.weights.h5",
        "start.keras",
    }
    assert sum(number for name, number in counts.items() if name.endswith("refused")) > 30


def test_the_fuzz_reads_what_it_mutates(tmp_path):
    """A fuzz that mutates nothing, or never reads the object, would find nothing."""
    bucket = Bucket(tmp_path)
    changed = 0
    for number, (key, content) in enumerate(bucket.sound.items()):
        before = bucket.store.requests["get"]
        bucket.read(key)
        assert bucket.store.requests["get"] > before, key
        changed += mutated(content, random.Random(number)) != content
    assert changed > len(bucket.sound) / 2
    (tmp_path / "job/elsewhere").write_bytes(b"")
    assert not bucket.is_safe()
