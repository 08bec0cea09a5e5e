"""The report of a real run in a real browser: Chromium lays the page out, and a script in it says what a reader would see."""

import json
import re
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest

from benchmarks.support.job import read_report
from tests.conftest import browser

pytestmark = [pytest.mark.integration, pytest.mark.browser]

SCRIPT = (Path(__file__).parent / "seen.js").read_text()
"""Writes what is visible into the attribute `data-seen` of the page around it."""
PHONE, WIDE = 390, 1280


def look(page: Path, folder: Path, width: int, *, dark: bool = False) -> dict:
    """What seen.js reports about `page`, `width` pixels wide. A window has a least width, a frame has none."""
    watched = page.read_text().replace("</body>", f"<script>{SCRIPT}</script></body>")
    wrapper = folder / "wrapper.html"
    wrapper.write_text(f'<iframe style="border: 0; width: {width}px; height: 4200px" srcdoc="{escape(watched)}"></iframe>')
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/profile"]
    options += [f"--window-size={WIDE + 100},4300", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command = [str(browser()), *options, "--dump-dom", f"file://{wrapper}"]
    dump = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'data-seen="([^"]*)"', dump)
    assert found, dump[-2000:]
    seen: dict = json.loads(unescape(found[1]))
    assert seen["width"] == width
    return seen


@pytest.fixture(scope="module")
def page(workplace, spiked):  # noqa: ARG001
    """The report.html of the run, and its report.json."""
    return workplace.folder / "reports/spiked/report.html", read_report(workplace.folder / "reports", "spiked")


def test_a_reader_sees_the_sum_the_spike_and_the_proof(page, tmp_path):
    """A chart without height, lines of one color, or a section that a change of the template lost would go unnoticed."""
    path, document = page
    spike = document["spikes"][0]
    seen = look(path, tmp_path, WIDE)
    answers = [row["question"] for row in seen["answers"]]
    assert answers == ["What the validation loss is made of", "Why it jumped", "What to change", "What trying it showed"]
    made_of, why, change, tried = (row["answer"] for row in seen["answers"])
    assert made_of.startswith("Of the validation loss of ")
    assert spike["name"] in why
    assert f"--set {spike['causes'][0]['settings'][0]}" in change
    assert tried.startswith(
        f"Proven: with {spike['replay']['proofs'][0]['settings']} the loss of epoch {spike['spike']['epoch']} is "
    )
    assert {"fit", "generalization", "statistics"} <= {area["part"] for area in seen["areas"] if area["height"] > 5}
    assert seen["zero"] == pytest.approx(seen["zero_label"], abs=2)
    assert spike["name"] in seen["spikes"][0]["title"]
    assert seen["spikes"][0]["proofs"][0] == spike["replay"]["sentences"][0]
    curves = seen["spikes"][0]["replayed"]
    assert len({curve["color"] for curve in curves if curve["width"] > 50}) == 2
    assert max(row["bottom"] for row in seen["answers"]) < 800  # on the first screen


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(page, tmp_path, dark):
    """On a phone, the page would be cut off, or its text too small or too pale to read."""
    seen = look(page[0], tmp_path, PHONE, dark=dark)
    assert seen["scroll_width"] <= PHONE, seen["too_wide"]
    assert not seen["too_wide"]
    assert seen["smallest_text"] >= 11
    assert not seen["pale"]
    assert (seen["background"] < 0.2) == dark
