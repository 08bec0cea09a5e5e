"""The benchmark of a GPU, tiny, on this machine."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks.gpu import Part, parts, run, summarize


@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_the_benchmark_measures_what_is_installed(tmp_path):
    """The few minutes on a GPU machine would be lost to a mistake in the benchmark."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--output", str(tmp_path / "gpu.json"), "--minutes", "29"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    result = json.loads(done.stdout)
    assert json.loads((tmp_path / "gpu.json").read_text()) == result, done.stderr
    assert list(result["parts"]) == ["engine-32-bf16", "torch-32", "jax-32", "job"]
    ours, jax, job = (result["parts"][name] for name in ("engine-32-bf16", "jax-32", "job"))
    assert all(value > 0 for way in ("engine", "a call a step", "evaluation") for value in ours[way]), done.stderr
    assert len(ours["digest"]) == 64
    assert min(*jax["scan"], *jax["fit"]) > 0
    assert (job["epochs"], job["steps"] > 0, job["whole_epoch_to_training"] > 1) == (2, True, True)
    assert 0 < job["again"]["to_training"] < job["again"]["to_first_epoch"]
    assert result["summary"]["batch 32, bf16"]["times_a_call_a_step"] > 0
    assert result["summary"]["whole_epoch_to_training"] == job["whole_epoch_to_training"]
    assert {"tensorflow", "keras", "numpy"} <= result["versions"].keys()


def test_a_part_that_hangs_or_fails_costs_only_itself():
    """One peer that hangs would take the whole time on the GPU, and no number would come back."""
    late = run(Part("late", ["timeit", "-n1", "-r1", "-s", "import time", "time.sleep(60)"], 1), 1)
    assert (late["error"].startswith("not finished after 1 s"), late["seconds"] < 30) == (True, True)
    broken = run(Part("broken", ["timeit", "1 +"], 30), 30)
    assert broken["error"].startswith("exit code 1")


def test_a_part_that_is_late_keeps_what_it_has_measured():
    """A few seconds too little would cost the number that the GPU was lent for, because another one came too late."""
    script = """import time; print('{"engine": [1.0]}'); print('{"engine": [2.0], "evaluation": []}', flush=True); time.sleep(60)"""
    late = run(Part("late", ["timeit", "-n1", "-r1", script], 5), 5)
    assert (late["engine"], late["error"]) == ([2.0], "not finished after 5 s")
    assert summarize({"engine-32-bf16": late})["batch 32, bf16"]["images_per_second"] == 2


def test_failed_tests_are_named(tmp_path):
    """One would only know that some test fails on a GPU, and would need the GPU again to learn which."""
    (tmp_path / "test_some.py").write_text(
        "import os\n"
        "def test_good(): pass\n"
        "def test_bad(): assert os.environ['NVIDIA_TF32_OVERRIDE'] == '1'\n"
        "def test_broken(missing): pass\n"
    )
    (tests,) = (part for part in parts(quick=False, gpu=True, folder=tmp_path) if part.name == "tests")
    options = ["-p", "no:cacheprovider", "-c", os.devnull, str(tmp_path)]
    found = run(replace(tests, command=[*tests.command[:-2], *options]), 60)
    assert "1 failed, 1 passed, 1 error" in found["summary"]
    assert [line.split(" - ")[0].split("::")[1] for line in found["failed"]] == ["test_bad", "test_broken"]


def test_the_summary_says_what_is_known(tmp_path):
    """The goals would be compared with the wrong numbers, or a part without time would hide those of all others."""
    assert [part.name for part in parts(quick=False, gpu=True, folder=tmp_path)][:4] == [
        "engine-32-bf16",
        "torch-32",
        "jax-32",
        "job",
    ]
    found = {
        "engine-32-bf16": {"engine": [100.0, 300.0, 200.0], "a call a step": [20.0], "digest": "a"},
        "again": {"engine": [200.0], "digest": "a"},
        "deterministic": {"engine": [50.0], "digest": "b"},
        "torch-32": {"eager": [10.0], "CUDA graph": "RuntimeError: no", "compile + CUDA graph": [50.0]},
        "job": {"whole_epoch_to_training": 1.25, "first": {"after_first_epoch": 30.0}},
    }
    summary = summarize(found)
    batch = summary["batch 32, bf16"]
    assert (batch["images_per_second"], batch["times_a_call_a_step"], batch["times_the_best_of_pytorch"]) == (200, 10, 4)
    assert summary["equal_bit_for_bit"] is True
    assert summary["deterministic"] == {"equal_bit_for_bit": None, "times_slower": 4}
    assert (summary["whole_epoch_to_training"], summary["seconds_after_the_first_epoch"]) == (1.25, 30)
    assert summary["seconds_to_training_with_caches"] is None
