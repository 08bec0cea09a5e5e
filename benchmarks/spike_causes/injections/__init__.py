"""The injected faults, and the cause that the diagnosis should name for each. One module each.

To add your own, write a file that defines `INJECTIONS`, a list of classes like those in the modules beside this one, and run
`python -m benchmarks.spike_causes --injections my_file.py`. The base class, `Injection`, describes fields and hooks.
"""

from benchmarks.spike_causes.injections.announced_rate import AnnouncedRate
from benchmarks.spike_causes.injections.augmented_evaluation import AugmentedEvaluation
from benchmarks.spike_causes.injections.corrupt_batch import CorruptBatch
from benchmarks.spike_causes.injections.damaged_images import DamagedImages
from benchmarks.spike_causes.injections.explosion import Explosion
from benchmarks.spike_causes.injections.flipped_batches import FlippedBatches
from benchmarks.spike_causes.injections.giant_step import GiantStep
from benchmarks.spike_causes.injections.learning_rate import LearningRate
from benchmarks.spike_causes.injections.lost_optimizer import LostOptimizer
from benchmarks.spike_causes.injections.lost_second_moments import LostSecondMoments
from benchmarks.spike_causes.injections.lost_statistics import LostStatistics
from benchmarks.spike_causes.injections.low_precision import LowPrecision
from benchmarks.spike_causes.injections.more_dropout import MoreDropout
from benchmarks.spike_causes.injections.other_camera import OtherCamera
from benchmarks.spike_causes.injections.other_loss import OtherLoss
from benchmarks.spike_causes.injections.other_preparation import OtherPreparation
from benchmarks.spike_causes.injections.other_scaling import OtherScaling
from benchmarks.spike_causes.injections.other_weights import OtherWeights
from benchmarks.spike_causes.injections.random_labels import RandomLabels
from benchmarks.spike_causes.injections.silently_lost_statistics import SilentlyLostStatistics
from benchmarks.spike_causes.injections.skipped_step import SkippedStep
from benchmarks.spike_causes.injections.sorted_classes import SortedClasses
from benchmarks.spike_causes.injections.stale_statistics import StaleStatistics
from benchmarks.spike_causes.injections.tiny_batches import TinyBatches
from benchmarks.spike_causes.injections.training_mode_evaluation import TrainingModeEvaluation
from benchmarks.spike_causes.injections.unlucky_draw import UnluckyDraw
from benchmarks.spike_causes.injections.wrong_labels import WrongLabels
from benchmarks.spike_causes.injections.wrong_way import WrongWay
from benchmarks.spike_causes.runs import Injection

INJECTIONS: list[type[Injection]] = [
    *(AugmentedEvaluation, TrainingModeEvaluation, WrongLabels, DamagedImages, UnluckyDraw, OtherCamera, OtherScaling),
    *(AnnouncedRate, LostOptimizer, LostStatistics, OtherWeights, FlippedBatches, CorruptBatch, LearningRate, GiantStep),
    *(SilentlyLostStatistics, StaleStatistics, MoreDropout, TinyBatches, WrongWay, Explosion),
    *(LowPrecision, OtherPreparation, RandomLabels, SortedClasses, LostSecondMoments, OtherLoss, SkippedStep),
]
