from benchmarks.spike_causes.injections.common import HOT
from benchmarks.spike_causes.runs import Injection, Run


class FlippedBatches(Injection):
    """A few consecutive batches have wrong labels."""

    name, cause = "batches with wrong labels", "bad_batch"
    decoy = True
    tune, report = (3, 4, 6), (3, 5, 6)
    needs = HOT

    def begin(self, run: Run) -> None:
        first = len(run.batches) - 1 - int(self.strength)
        for number in range(first, first + int(self.strength)):
            pixels, labels = run.batches[number]
            run.batches[number] = pixels, (labels + 1) % run.classes
