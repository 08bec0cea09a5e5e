"""A case for each cause, in which it is the verdict."""

from dataclasses import replace

from spikewise.records import Case, Event, Hyperparameters, Overfitting, Probe, Spike, Training

SPIKE = Spike(9, 0.9, 0.5, 0.02, 0.16, 0.4, 0.35, 0.45, 0.025, 300)
QUIET = Training(straightness=0.9, train_rise=0.39, train_loss=0.3, ordinary_gradient=2.34)
ONLY_VALIDATION = replace(QUIET, train_rise=0.01)
HYPERPARAMETERS = Hyperparameters(
    learning_rate=1e-3, batch_size=32, steps=50, momentum=0.99, dropout=0.5, validation_fraction=0.2, beta_2=0.999
)
RATE = Event("learning_rate", 9, 10, 1e-4, 1e-3)
IMAGES = [{"image": i, "before": 0.3, "now": 20.0} for i in (3, 8)]


def probe(name, fraction, spread=0.05, **facts):
    return Probe(name, fraction, fraction - spread, fraction + spread, 0.01, 1, facts)


def case(probes=(), spike=SPIKE, training=QUIET, **more):
    return Case(spike, {one.name: one for one in probes}, training, HYPERPARAMETERS, **more)


FEW = probe("few_examples", 0.95, images=IMAGES, left=0.02, of=300)
AGAIN = probe("repetition", 0.9, difference=0.3)
STABLE = probe("repetition", 0.0, difference=0.0)
THEN = probe("earlier_weights", 0.9, recorded=0.5, today=0.86)
EVENT = probe("before_event", 0.97, **RATE.as_dict())
BATCH = probe("bad_batches", 0.9, batches=[30], losses=[3.0], usual=0.4, odd=[], each=[[3.0]])
SHIFT = probe("variance_shift", 0.8, without=0.55, with_dropout=0.88, before=0.5)
LINE = probe("line", 0.9, at=0.25, times=4.0, losses={0.0: 0.5, 0.25: 0.52, 1.0: 0.88})
MEAN = probe("averaged", 0.85, now=0.54, before=0.5)
STATISTICS = probe("statistics", 0.9, now=0.54, before=0.5)
LOWER = probe("lower_momentum", 0.9, momentum=0.9, now=0.54, before=0.5, movers=[])
SAME = probe("higher_momentum", 0.1, momentum=0.999, now=0.86, before=0.5, movers=[])
WORSE = probe("lower_momentum", -0.3, momentum=0.9, now=1.02, before=0.5, movers=[])
HIGHER = probe("higher_momentum", 1.1, momentum=0.999, now=0.46, before=0.5, movers=[{"step": 36, "units": 5}])
FLOAT32 = probe("precision", 0.95, now=0.52, before=0.5)
COOLED = probe(
    "temperature",
    0.8,
    now=0.56,
    before=0.48,
    temperature=2.1,
    temperature_before=1.2,
    accuracy=0.85,
    accuracy_before=0.855,
    accuracy_error=0.02,
)
CHANGED = probe(
    "training_data", 0.9, first=24, loss=3.1, usual_loss=0.4, loss_limit=0.9, shift=0.1, factor=1.0, shifted=False, clustering=0.8
)
FULL_STEPS = Training(
    straightness=0.9, train_rise=0.39, train_loss=0.3, length=6.0, stride=1.8, usual_stride=0.2, stride_at=11, raised=1.0
)
CHANCE = replace(SPIKE, error=0.3, low=-0.2, high=1.0)
LONG = replace(QUIET, length=4.0, length_after=(4.0,), jumps=(1.0,))

WINS = {
    "divergence": case(spike=replace(SPIKE, outcome="divergence")),
    "nondeterministic_evaluation": case([AGAIN, THEN]),
    "few_examples": case([STABLE, FEW], training=ONLY_VALIDATION),
    "training_data_changed": case([STABLE, CHANGED]),
    "stale_optimizer_state": case([STABLE, LINE], training=FULL_STEPS),
    "overconfidence": case([STABLE, COOLED]),
    "precision": case([STABLE, FLOAT32]),
    "sampling_noise": case([STABLE], spike=CHANCE, training=ONLY_VALIDATION),
    "run_event": case([STABLE, EVENT], training=LONG, events=(RATE,)),
    "bad_batch": case([STABLE, BATCH]),
    "batchnorm_shock": case([STABLE, STATISTICS, WORSE, HIGHER]),
    "batchnorm_lag": case([STABLE, STATISTICS, LOWER, SAME]),
    "batchnorm_statistics": case([STABLE, STATISTICS]),
    "variance_shift": case([STABLE, SHIFT]),
    "overshoot": case([STABLE, LINE], training=LONG),
    "gradient_noise": case([STABLE, MEAN], training=replace(QUIET, gradient=2.5)),
    "distribution_shift": case([STABLE], training=replace(QUIET, train_rise=-0.01)),
    "overfitting": case([STABLE], training=replace(QUIET, train_rise=-0.01), overfitting=Overfitting(3, 0.4, 0.01, 0.2)),
    "unexplained": case([STABLE]),
}
