"""Bad input, bad credentials and bad storage, as a user meets them: one line that says what to do, and nothing left behind."""

import io
import itertools
import json
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.support.faultproxy import FaultProxy
from benchmarks.support.job import DEADLINE, Job, read_report
from jobs import train
from jobs.demo.s3_server import S3Server
from tests.support import jobs
from tests.trainer.data.test_decode import png
from trainer import config
from trainer.data.pack import load_pack
from trainer.data.shards import open_rows
from trainer.run import driver
from trainer.storage import Store, open_store
from trainer.storage.checkpoint import Checkpoints

pytestmark = pytest.mark.integration

HOSTILE = [
    "..b.jpg",
    "line\nbreak\r.jpg",
    "ü 写真 \U0001f600.jpg",
    "\"quote' `$(id)`.jpg",
    "<img src=x onerror=alert(1)>.jpg",
    "&amp;%2e%2e {{ 7 * 7 }}.jpg",
    "[red]:dog:[ -rf.jpg",
]


def first(value: list[str] | str) -> str:
    """Name of a case: its first override."""
    return value[0] if isinstance(value, list) else ""


def store(url: str) -> Store:
    return open_store(url, config.S3(path_style=True))


@dataclass
class Place:
    """A bucket with images and storage for runs, and a configuration for them."""

    storage: str
    folder: Path
    configuration: Path
    runs: Store

    @classmethod
    def at(cls, storage: str, folder: Path, **changes: int) -> Self:
        """Writes the configuration, with `changes` in [data]. Call it while the credentials are the right ones."""
        configuration = jobs.write_config(folder, storage)
        lines = "".join(f"{key} = {value}\n" for key, value in changes.items())
        configuration.write_text(configuration.read_text().replace("[data]\n", f"[data]\n{lines}"))
        place = cls(storage, folder, configuration, store(f"{storage}/storage"))
        assert not place.objects()
        return place

    def objects(self) -> dict[str, str]:
        """ETags of all objects that runs have stored, packed images excluded."""
        return {entry.key: entry.etag for entry in self.runs.list("runs/")}


@pytest.fixture(scope="module")
def place(s3_server, tmp_path_factory) -> Place:  # noqa: ARG001
    storage, folder = "s3://spikewise/bad-input", tmp_path_factory.mktemp("bad-input")
    jobs.put_images(storage, 160)
    return Place.at(storage, folder, min_validation=10)


@dataclass
class Attempt:
    """Calls the job in this process: fast, and enough for errors before a worker starts."""

    place: Place
    output: Callable[[], tuple[str, str]]

    def fails(self, pattern: str, *overrides: str, configuration: Path | None = None) -> str:
        """Checks that the job ends with code 2 and one line that matches, stores nothing and releases its run name. Returns its
        standard output."""
        before = self.place.objects()
        settings = [word for override in ("run.name=refused", *overrides) for word in ("--set", override)]
        code = train.main(["--config", str(configuration or self.place.configuration), *settings])
        printed, complaint = self.output()
        assert code == 2
        assert re.fullmatch(r"error: [^\n]+\n", complaint), complaint
        assert re.search(pattern, complaint), complaint
        for key in dict(self.place.objects().items() - before.items()):
            assert key.startswith("runs/refused/lease-")
            assert json.loads(self.place.runs.get(key))["released"]
        return printed


@pytest.fixture
def attempt(place, capfd) -> Attempt:
    return Attempt(place, capfd.readouterr)


@pytest.fixture(autouse=True)
def _one_inspection(monkeypatch):
    """Each network is built in a process of its own once, not in each test: TensorFlow takes seconds to start."""
    monkeypatch.setattr(driver, "inspect", jobs.inspected_once(driver.inspect))


# Errors that are found before anything is started


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        (["training.epoch=3"], r"--set training\.epoch=3: unknown key\. Fix: use one of epochs, "),
        (["nonsense"], r"--set nonsense: not an override\. Fix: write section\.key=value, such as"),
        (["model.network=resnet"], r"model\.network = 'resnet' names no network\. Fix: use \"question\", .* \"MODULE:FUNCTION\""),
        (["model.network=nowhere:build"], r"model\.network = 'nowhere:build': no nowhere\.py in .* or .*\. Fix: put it beside"),
        (["training.epochs=many"], r"--set training\.epochs=many: should be a valid integer"),
        (["training.epochs=1979-05-27"], r"--set training\.epochs=1979-05-27: should be a valid integer"),
        (["metrics.linger=inf"], r"--set metrics\.linger=inf: should be less than or equal to 1000000"),
        (["run.name=Not a name"], r"--set run\.name=Not a name: .*lower-case letters, digits and dashes"),
        (
            ["training.batch_size=33", "launch.workers=2"],
            r"training\.batch_size = 33 .* launch\.workers = 2\. Fix: use 32 or 34",
        ),
        (["data.classes={ authentic = 'authentic/' }"], r"classes has only authentic, at least two are needed"),
        (
            ["run.storage=http://host/bucket"],
            r"'http://host/bucket' is not a storage URL\. Fix: write s3://bucket/prefix",
        ),
    ],
    ids=first,
)
def test_a_wrong_configuration(attempt, overrides, pattern):
    """A typo would end in a traceback, or show up hours later as a run with other settings."""
    attempt.fails(pattern, *overrides)


def test_no_configuration(attempt, tmp_path):
    """A wrong path or a broken file would end in a traceback."""
    attempt.fails(r"none\.toml: cannot be read: No such file or directory", configuration=tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[run\n")
    attempt.fails(r"bad\.toml: is not valid TOML: .*\(at line 1, column 5\)", configuration=tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        (
            ["run.storage=s3://no-such-bucket/runs"],
            r"s3://no-such-bucket/runs/.*: no such bucket \(.*\)\. Fix: create it",
        ),
        (["data.source=s3://no-such-bucket/images"], r"s3://no-such-bucket/images/\*: no such bucket \(.*\)\. Fix: create it or"),
        (
            ["data.source=s3://spikewise/nothing-here"],
            r"data\.source = s3://spikewise/nothing-here holds no objects\. Fix: ",
        ),
        (["data.test=s3://spikewise/nothing-here"], r"data\.test = s3://spikewise/nothing-here holds no objects\. Fix: "),
        (
            ["data.classes={}", "data.labels=s3://spikewise/none.csv"],
            r"data\.labels = s3://spikewise/none\.csv does not exist\. Fix: correct the path",
        ),
        (
            ["data.test=s3://spikewise/bad-input/images"],
            r"data\.source and data\.test overlap: 160 images are in both, such as 's3://spikewise/bad-input/images/.*'\. Fix: ",
        ),
        (["data.source=/no/such/folder"], r"/no/such/folder: no such folder\. Fix: correct the path or create the folder"),
        (
            ["data.classes.fake=forged/"],
            r"Class 'fake': no key .* starts with 'forged/' \(found: 'authentic/' \(80\), 'fake/' \(80\)\)\. Fix: ",
        ),
        (["data.classes={}", "data.class_pattern=(?P<class>authentic)"], r"finds only the class 'authentic' \(80 images\)"),
        (
            ["run.output=/proc/none"],
            r"run\.output = '/proc/none' cannot be written \(No such file .*\)\. Fix: set it to a",
        ),
        (
            ["s3.endpoint_url=http://127.0.0.1:9", "s3.max_attempts=1"],
            r"http://127\.0\.0\.1:9 cannot be reached \(1 attempt; .* s3\.endpoint_url",
        ),
    ],
    ids=first,
)
def test_wrong_places(attempt, overrides, pattern):
    """A mistyped bucket, prefix or address would end in a traceback, or in an empty data set."""
    attempt.fails(pattern, *overrides)


def test_wrong_credentials(attempt, s3_server: S3Server, monkeypatch):
    """The user would not know which of two keys is wrong, or that the permission to write is missing."""
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        attempt.fails(r"the secret key is wrong \(.*\)\. Fix: check AWS_SECRET_ACCESS_KEY")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "unknown")
        attempt.fails(r"the server does not know this access key \(.*\)\. Fix: check AWS_ACCESS_KEY_ID")
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        attempt.fails(r"no AWS credentials found\. Fix: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", s3_server.reader_access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader_secret_key)
        attempt.fails(r"runs/refused/lease-\d+\.json: these credentials lack the permission \(.* for PutObject\)\. Fix: grant")


def test_as_a_command(place):
    """A shell would see another exit code than the tests above, output on another stream, or a traceback at exit."""
    command = [sys.executable, "-m", "jobs.train", "--config", str(place.configuration), "--set", "data.source=s3://spikewise/none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: data.source = s3://spikewise/none holds no objects. Fix: correct it or upload the images.\n"
    assert re.fullmatch(r"run job-\d{8}-\d{6}: metrics at http://127\.0\.0\.1:\d+/metrics\n", done.stdout)


def test_a_damaged_description_of_the_run(attempt):
    """A foreign object under the run's name would end in a traceback, or silently start the run anew."""
    place = attempt.place
    place.runs.put("runs/refused/run.json", b'{"config": ')
    attempt.fails(
        r"runs/refused/run\.json is damaged \(no JSON: .*\)\. Fix: delete it to resume from the run's checkpoints, or choose"
    )
    place.runs.delete(["runs/refused/run.json"])


# Errors that need a cluster to be found


@pytest.fixture
def on_cluster(attempt, cluster, monkeypatch) -> Attempt:
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    return attempt


def test_no_cluster(attempt, monkeypatch):
    """The job would wait for minutes for a cluster that is gone, with warnings that name no setting."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    attempt.fails(r"No Ray cluster answers at RAY_ADDRESS = 127\.0\.0\.1:9 \(.*\)\. Fix: start .*, correct RAY_ADDRESS, or")


def test_a_cluster_too_small(on_cluster):
    """The job would pack for an hour, and then wait for machines that never come."""
    cores = r"Not enough cores: launch\.workers = 4 needs 4 \(1 for each worker\), the cluster has 2\. Fix: lower launch\.workers"
    gpus = r"Not enough GPUs: launch\.workers = 1 needs 1, the cluster has 0\. Fix: lower launch\.workers, add GPU nodes, or set"
    printed = on_cluster.fails(cores, "launch.workers=4") + on_cluster.fails(gpus, "launch.gpu=true")
    assert "data:" not in printed


@pytest.mark.parametrize(
    ("override", "pattern"),
    [
        (
            "training.batch_size=150",
            r"training\.batch_size = 150 is larger than the training set of \d+ images\. Fix: lower it or add images",
        ),
        (
            "data.min_validation=60",
            r"has \d+ validation images .*below data\.min_validation = 60\. Fix: add images, raise data\.validation_",
        ),
    ],
)
def test_too_few_images(on_cluster, override, pattern):
    """The job would train on nothing, or report the mean loss of three images."""
    on_cluster.fails(pattern, override)


def test_a_full_disk(on_cluster, tmp_path):
    """A full disk would end in a traceback, or leave half a file that the next run takes for a whole one."""
    on_cluster.fails("below data.min_validation", "data.min_validation=60")  # packed, if it was not yet
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        on_cluster.fails(
            r"cache/.*: the disk is full \(\d+ bytes are needed, .* or set pipeline\.cache_dir to a folder on a larger disk",
            f"pipeline.cache_dir={tmp_path}/cache",
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["lock"]


# Whole runs


def image(number: int) -> bytes:
    generator, buffer = np.random.default_rng(number), io.BytesIO()
    pixels = generator.normal(120, 30, (48, 48, 3))
    if number % 2:
        pixels[10:30, 10:30] += 80
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def hostile(place) -> tuple[Place, set[str], set[str]]:
    """Images with hostile names, sizes and contents, and a configuration for them; the keys of good and of bad images."""
    storage = f"{place.storage}/hostile"
    images = store(f"{storage}/images")
    small, huge = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(small, "PNG")
    Image.new("L", (10_000, 9_000), 128).save(huge, "JPEG")
    good = {f"{'fake' if n % 2 else 'authentic'}/{n:02} {name}": image(n) for n, name in enumerate(HOSTILE * 10)}
    good |= {"authentic/one pixel.png": small.getvalue(), "fake/huge.jpg": huge.getvalue()}
    bad = {
        "authentic/..\nempty.jpg": b"",
        "authentic/<b>text</b>.jpg": b"<script>alert(1)</script>",
        "fake/cut ü.jpg": image(1)[:-100],
        'fake/"bomb".png': png(60_000, 60_000, 8, 2, b""),  # it has no pixels: its header alone decides
    }
    for key, content in (good | bad).items():
        images.put(key, content)
    folder = place.folder / "hostile"
    folder.mkdir()
    return Place.at(storage, folder, min_validation=2), set(good), set(bad)


def test_too_many_broken_images(hostile, cluster, capfd, monkeypatch):
    """The job would train on a data set although a tenth of its images was not uploaded completely."""
    place, good, bad = hostile
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    fraction = f"{len(bad) / len(good | bad):.2%}"
    Attempt(place, capfd.readouterr).fails(
        rf"{len(bad)} of {len(good | bad)} images \({fraction}\) cannot be used, above data\.max_quarantined = 1\.00%: "
        r"'authentic/\.\.\\nempty\.jpg' is empty \(0 bytes\); .*quarantine\.json lists all\), or raise data\.max_quarantined\.$"
    )


@pytest.fixture(scope="module")
def trained(hostile) -> tuple[Place, set[str], set[str], Job]:
    """A finished run `hostile` of two epochs."""
    place, good, bad = hostile
    job = Job(place.configuration, "hostile", "data.max_quarantined=0.1", "training.epochs=2", "training.batch_size=16")
    job.await_line("^epoch 1/2")
    started = psutil.Process(job.process.pid).children(recursive=True)
    job.succeed()
    assert not psutil.wait_procs(started, DEADLINE)[1]
    return place, good, bad, job


def test_hostile_names_reach_the_report_unharmed(trained):
    """A file name could run a script in the reader's browser, break the page, or be shown for another image."""
    place, good, bad, job = trained
    document = read_report(place.folder / "runs", "hostile")
    quarantined = {entry["key"]: entry["reason"] for entry in document["data"]["quarantined"]}
    assert set(quarantined) == bad
    assert quarantined['fake/"bomb".png'] == "has 60000 x 60000 pixels, above data.max_pixels = 100000000"
    assert document["data"]["images"] == len(good)
    hardest = {row["key"] for row in document["hardest"]}
    assert hardest <= good
    assert all(any(key.endswith(name) for key in hardest) for name in HOSTILE), hardest
    page = (place.folder / "runs/hostile/report.html").read_text()
    for raw in ("<img src=x", "<b>text", "49.jpg", "<script>alert"):
        assert raw not in page
    for shown in ("&lt;img src=x onerror=alert(1)&gt;.jpg", "&amp;amp;%2e%2e {{ 7 * 7 }}.jpg", "[red]:dog:[ -rf.jpg", "写真"):
        assert shown in page
    assert r"4 images cannot be decoded and are skipped, such as 'authentic/..\nempty.jpg' (is empty (0 bytes))" in job.output


def test_odd_sizes_are_trained_on(trained):
    """A single huge or tiny photograph would end the job, or be skipped silently."""
    place, good, *_ = trained
    storage = place.runs
    facts = json.loads(storage.get("runs/hostile/run.json"))
    rows = open_rows(load_pack(storage, facts["manifest"], (32, 32, 3)), storage, place.folder / "cache")
    assert set(rows.keys) == good
    pixels = rows.images.take(np.array([rows.keys.index("authentic/one pixel.png"), rows.keys.index("fake/huge.jpg")]))
    assert (pixels[0] == [255, 0, 0]).all()
    assert (abs(pixels[1].astype(int) - 128) <= 1).all()


def shaky(every: int, method: str = "") -> Callable[[str, str], bool]:
    """Matches every n-th request of a method, n = `every`."""
    numbers = itertools.count(1)
    return lambda asked, path: asked.startswith(method) and next(numbers) % every == 0  # noqa: ARG005


def test_a_damaged_checkpoint_and_a_shaky_server(trained, s3_server: S3Server):
    """One damaged object or unreliable storage would end the run, or let it continue from garbage."""
    place, *_ = trained
    storage = place.runs
    checkpoints = Checkpoints(storage, "hostile", 1)
    newest, first = checkpoints.latest().step, jobs.history(place.storage, "hostile")[0].step
    (key,) = (entry.key for entry in storage.list("runs/hostile/checkpoints/") if f"/{newest:09d}/state" in entry.key)
    content = bytearray(storage.get(key))
    content[len(content) // 2] ^= 1
    storage.put(key, bytes(content))
    shutil.rmtree(place.folder / "cache")
    with FaultProxy(s3_server.endpoint_url) as proxy, socket.create_server(("127.0.0.1", 0)) as taken:
        proxy.inject("status", 8, status=503, matches=shaky(7))
        proxy.inject("status", 6, status=500, matches=shaky(11))
        proxy.inject("cut", 8, matches=shaky(5, "GET"))
        for kind in ("hang", "stall"):
            proxy.inject(kind, 1, matches=shaky(13, "GET"))
        proxy.inject("lose", 2, matches=shaky(4, "PUT"))
        job = Job(
            place.configuration,
            "hostile",
            f"s3.endpoint_url={proxy.url}",
            "s3.read_timeout=1.0",
            "s3.max_attempts=10",
            "training.epochs=3",
            "training.batch_size=16",
            "data.max_quarantined=0.1",
            f"metrics.port={taken.getsockname()[1]}",
        )
        job.succeed()
    assert f"checkpoint of step {newest} is damaged and skipped: {key}" in job.output
    assert f"resumed from the checkpoint of step {first}, in epoch 2" in job.output
    assert re.search(r"warning: no metrics: .*Address already in use.*Fix: set another metrics\.port", job.output)
    assert "Traceback" not in job.output
    assert [report.epoch for report in jobs.history(place.storage, "hostile")] == [1, 2, 3]
    assert checkpoints.latest().step == 3 * first


def test_storage_that_goes_away_for_good(place, s3_server: S3Server):
    """Hours of training would be lost to an outage that may end before training does; or the job would report success."""
    gone = threading.Event()

    def outage(method: str, path: str) -> bool:
        if method == "PUT" and (path.endswith("/state.safetensors") or "/epochs/0002" in path):
            gone.set()
        return gone.is_set()

    with FaultProxy(s3_server.endpoint_url) as proxy:
        proxy.inject("cut", 1, matches=lambda _, path: path.endswith("/run.json"))  # even the answer that there is none
        proxy.inject("status", 10**9, status=503, matches=outage)
        overrides = [f"s3.endpoint_url={proxy.url}", "s3.max_attempts=2", "training.epochs=2"]
        job = Job(place.configuration, "outage", *overrides)
        job.await_line("^epoch 2/2")
        started = psutil.Process(job.process.pid).children(recursive=True)
        assert job.wait() == 1
    assert not psutil.wait_procs(started, DEADLINE)[1]
    assert "Traceback" not in job.output
    assert re.search(r"warning: saving the checkpoint of step \d+ failed; training continues: .*( with 503|lease)", job.output)
    assert re.search(r"warning: the results of epoch 2 were not stored: .*( with 503|lease)", job.output)
    assert re.search(
        r"warning: the report is incomplete \(python -m jobs\.report --config FILE --run outage rebuilds it\): .*(503|lease)",
        job.output,
    )
    last = job.lines[-1]
    assert last.startswith("error: run outage failed: All 2 epochs are trained, but the model is not stored. Fix: run again under")
    assert "model.keras" in last or "The lease on the run's name has not been renewed" in last
    assert Checkpoints(place.runs, "outage", 1).latest() is None
