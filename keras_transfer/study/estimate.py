"""What a study will cost, before anything is run."""

import functools
import math

import gin
import keras

from keras_transfer import data
from keras_transfer.analysis.criticality import PATHS
from keras_transfer.errors import UserError
from keras_transfer.landscape.module_loss import END_POINTS
from keras_transfer.models import module_chain
from keras_transfer.study.runner import Runner, configure

# A step also runs backward, which costs about twice the forward pass.
_PASSES_PER_STEP = 3
# Passes over a split of n images, by analysis, for m models, under its
# configuration; good to a factor of two. Others take one for each model.
_PASSES = {
    "feature_reuse": lambda m: 0,
    "distance": lambda m: 0,
    "spectrum": lambda m: 0,
    "averaging": lambda m: 2 * m,
    "interpolation": lambda m: _interpolation(m),
    "basin": lambda m: _basin(m),
    "rewinding": lambda m: m * _rewound(),
    "criticality": lambda m: m * _grid_points(),
}
# These, for each module, from that module on: half of the network.
_BY_MODULE = ("rewinding", "criticality")


def _interpolation(models):
    points = _bound("interpolation", "num_points", 50)
    splits = _bound("interpolation", "splits", ("test", "train"))
    planes = 2 * _bound("plane", "num_points", 21) ** 2
    return points * math.comb(models, 2) * len(splits) + planes


def _basin(models):
    sets = 2 * (math.comb(max(models // 2, 1), 2) + 1)
    # The search for its boundary, then a dozen expectations.
    return sets * (40 + 12 * _bound("basin", "num_samples", 64))


def _rewound():
    epochs = _bound("rewinding", "epochs", None) or range(60)
    splits = _bound("rewinding", "splits", ("train", "test"))
    return len(END_POINTS) * len(epochs) * len(splits)


def _grid_points():
    draws = _bound("criticality", "num_draws", 4)
    noisy = draws * len(_bound("criticality", "sigmas", ()))
    grid = len(_bound("criticality", "positions", ())) * (1 + noisy)
    # A refinement looks at the eight points around the minimum.
    refined = 8 * draws * _bound("criticality", "refinements", 1)
    return len(PATHS) * len(END_POINTS) * (grid + refined)


def _bound(configurable, parameter, default):
    return gin.get_bindings(configurable).get(parameter, default)


def plan_text(study, work_dir):
    """Returns the plan of a study as text: what is to be run, and its cost.

    Cost is in floating-point operations of the networks' convolutions and dense
    layers, a multiplication and an addition counted as two; of a training run,
    all its epochs with their evaluations. What is finished costs nothing.

    Args:
        study: `Study`.
        work_dir: str, where it would be, or is, carried out.

    Raises:
        UserError: if a task's configuration cannot be used.
    """
    runner = Runner(work_dir, study.tasks())
    rows, total, unknown = [], 0.0, 0
    for task in runner.tasks:
        cost = _cost(task, study)
        done = runner.is_current(task)
        if cost is None:
            unknown += not done
        elif not done:
            total += cost
        shown = "?" if cost is None else f"{cost:.1e}"
        state = "finished" if done else shown
        needs = ", ".join(_shorter(task.needs)) or "-"
        rows.append(f"{task.name:<44}{state:>10}  {needs}")
    runs = sum(task.command == "train" for task in runner.tasks)
    lines = [
        study.title,
        "",
        f"{'run or analysis':<44}{'operations':>10}  needs",
        *rows,
        "",
        f"{runs} runs and {len(rows) - runs} analyses; {total:.1e} operations "
        f"to do: {_duration(total / 1e11)} at 100 gigaflops a second (two CPU "
        f"cores), {_duration(total / 3e13)} at 30 teraflops (a GPU).",
    ]
    if unknown:
        lines.append(
            f"Of {unknown}, marked ?, the data are not there to be counted; "
            "Study.num_images may tell."
        )
    return "\n".join(lines)


def _shorter(names, shown=3):
    """Returns the first few of many names."""
    rest = len(names) - shown
    return names if rest <= 1 else (*names[:shown], f"{rest} more")


def _duration(seconds):
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _cost(task, study):
    """Returns a task's floating-point operations; None if not known."""
    if task.command == "train":
        configure(task, lambda place: place.name)
        sizes = _sizes(task.target, study)
        if sizes is None:
            return None
        (train, test), classes = sizes
        forward, _ = _network(classes)
        epochs = gin.query_parameter("train.epochs")
        return epochs * forward * (_PASSES_PER_STEP * train + test)
    models = sum(map(len, task.bindings["Subjects.runs"].values()))
    configure(task, lambda place: place.name)
    drawn = _bound("dataset_suffixes", "num_examples", None)
    name = task.name.rsplit("/", 1)[1]
    passes = _PASSES.get(name, lambda m: m)(models)
    run = next(t for t in study.tasks() if t.name == task.needs[-1])
    configure(run, lambda place: place.name)
    sizes = _sizes(task.target, study)
    if sizes is None:
        return None
    (train, test), classes = sizes
    forward, modules = _network(classes)
    if name in _BY_MODULE:
        passes *= modules / 2
    images = (train + test) / 2
    if name == "criticality":
        images = min(train, drawn or train)
    return passes * images * forward


def _sizes(target, study):
    """Returns ((training, test images), classes) under the configuration."""
    arguments = gin.get_bindings("load")
    try:
        return _count(tuple(sorted(arguments.items())))
    except (UserError, TypeError):
        sizes = study.num_images.get(target)
        return sizes and (sizes, 1000)


@functools.cache
def _count(arguments):
    classes, train, test = data.count(**dict(arguments))
    return (train, test), classes


def _network(classes):
    """Returns operations of one forward pass and the number of modules."""
    load, model = gin.get_bindings("load"), gin.query_parameter("train.model")
    gray = load["name"] in ("mnist", "digits")
    channels = load.get("channels") or (1 if gray else 3)
    size = load["image_size"]
    # What tells one network from another.
    key = model.selector, str(gin.get_bindings(model.selector))
    return _measured(key, model, classes, (size, size, channels))


_KNOWN = {}


def _measured(key, model, classes, input_shape):
    key = (*key, classes, input_shape)
    if key not in _KNOWN:
        network = model.scoped_configurable_fn(
            num_classes=classes, input_shape=input_shape, seed=0
        )
        operations = sum(map(_operations, network.layers))
        _KNOWN[key] = operations, len(module_chain(network))
    return _KNOWN[key]


def _operations(layer):
    if not hasattr(layer, "kernel"):
        return 0
    positions = 1
    if isinstance(layer, keras.layers.Conv2D):
        positions = math.prod(layer.output.shape[1:3])
    return 2 * positions * math.prod(layer.kernel.shape)
