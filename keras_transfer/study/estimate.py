"""What a study will cost, before anything is run."""

import dataclasses
import functools
import inspect
import math

import gin

from keras_transfer import data
from keras_transfer.data import sources
from keras_transfer.data.preprocessing import both_sides
from keras_transfer.errors import UserError
from keras_transfer.models import module_chain
from keras_transfer.study.runner import Runner, bound_analyses

# A step also runs backward, which costs about twice the forward pass.
_PASSES_PER_STEP = 3


def plan_text(study, work_dir):
    """Returns the plan of a study as text: what is to be run, and its cost.

    Cost is in floating-point operations of the networks' convolutions and dense
    layers, a multiplication and an addition counted as two; of a training run,
    all its epochs with their evaluations. What is finished costs nothing.

    Args:
        study: `Study`.
        work_dir: str, where it would be, or is, run.

    Raises:
        UserError: if a task's configuration cannot be used.
    """
    estimate = Estimate(study.num_images)
    runner = Runner(
        work_dir, study.tasks(), study.threads, on_read=estimate.add
    )
    plans = [_Plan(task, runner, estimate) for task in runner.tasks]
    first = [plan for plan in plans if plan.task.replication == 0]
    runs = sum(plan.task.command == "train" for plan in plans)
    total = sum(plan.cost for plan in plans)
    lines = [
        study.title,
        "",
        f"{'run or analysis':<50}{'operations':>10}  needs",
        *map(str, first),
    ]
    if study.replications > 1:
        lines += [
            "",
            f"All {study.replications} replications are like this one.",
        ]
    lines += [
        "",
        f"{runs} runs and {len(plans) - runs} analyses; {total:.1e} operations "
        f"to do: {_duration(total / 1e11)} at 100 gigaflops a second (two CPU "
        f"cores), {_duration(total / 3e13)} at 30 teraflops (a GPU).",
    ]
    if done := sum(plan.state == "finished" for plan in plans):
        lines.append(f"{done} of them are finished.")
    if unknown := sum(plan.state == "?" for plan in plans):
        lines.append(
            f"Of {unknown}, marked ?, the data are not there to be counted; "
            "Study.num_images may tell."
        )
    return "\n".join(lines)


class _Plan:
    """What is to be told of a task.

    Attributes:
        task: the `Task`.
        cost: float, operations to do.
        state: str, "finished", the cost, or "?" if it is not known.
    """

    def __init__(self, task, runner, estimate):
        self.task = task
        cost = estimate.costs[task.name]
        done = runner.is_current(task)
        self.cost = 0.0 if done or cost is None else cost
        known = "?" if cost is None else f"{cost:.1e}"
        self.state = "finished" if done else known

    def __str__(self):
        needs = ", ".join(_shorter(self.task.needs)) or "-"
        return f"{self.task.name:<50}{self.state:>10}  {needs}"


def _shorter(names, shown=3):
    """Returns the first few of many names."""
    rest = len(names) - shown
    return names if rest <= 1 else (*names[:shown], f"{rest} more")


def _duration(seconds):
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


@dataclasses.dataclass(frozen=True)
class _Setting:
    """What a run's network and its data cost.

    Attributes:
        images: {split: how many there are}.
        operations: float, of a forward pass of one image.
        modules: int.
    """

    images: dict
    operations: float
    modules: int


class Estimate:
    """Costs of tasks, each added while its configuration is gin's.

    Args:
        num_images: see `Study`.

    Attributes:
        costs: {task: floating-point operations, None if not known}.
    """

    def __init__(self, num_images):
        self.costs = {}
        self._num_images = num_images
        self._settings = {}

    def add(self, task):
        """Adds a task, after those it needs."""
        if task.command == "train":
            setting = _setting(self._num_images.get(task.target))
            self._settings[task.name] = setting
            cost = setting and _training(setting)
        else:
            setting = self._settings[task.needs[-1]]
            kinds = task.bindings["Models.models"].values()
            cost = setting and _analysing(setting, sum(map(len, kinds)))
        self.costs[task.name] = cost


def _training(setting):
    images = _PASSES_PER_STEP * setting.images["train"] + setting.images["test"]
    epochs = gin.query_parameter("train.epochs")
    return epochs * images * setting.operations


def _analysing(setting, models):
    passes = sum(_images(a, setting, models) for a in bound_analyses())
    return passes * setting.operations


def _images(analysis, setting, models):
    """Returns through how many images' forward passes an analysis goes."""
    options, images = analysis.options(), setting.images
    passes = analysis.cost(options, models)
    if not analysis.by_module:
        return passes * sum(images.values()) / len(images)
    # Half of the network for each module; some images of each split are drawn.
    splits = options.get("splits", ["train"]) or list(images)
    drawn = gin.get_bindings("examples_modules").get("num_examples") or math.inf
    number = sum(min(images[s], drawn) for s in splits) / len(splits)
    return passes * number * setting.modules / 2


def _setting(num_images):
    """Returns the `_Setting` of the run that gin configures, None if unknown.

    Args:
        num_images: (training, test) images if the data are not there to be
            counted, or None.
    """
    dataset = gin.query_parameter("train.dataset")
    if dataset.configurable.wrapped is not inspect.unwrap(data.load):
        # One of the user's own; only making it would tell.
        return None
    arguments = {
        # To be counted once, by what they are.
        name: tuple(value) if isinstance(value, list) else value
        for name, value in gin.get_bindings(dataset.scoped_selector).items()
    }
    try:
        classes, *counts = _count(tuple(sorted(arguments.items())))
    except (UserError, TypeError):
        classes, counts = 1000, num_images
    if counts is None or not {"name", "image_size"} <= set(arguments):
        return None
    channels = arguments.get("channels")
    channels = channels or sources.find(arguments["name"]).channels
    shape = *both_sides(arguments["image_size"]), channels
    network = _network(classes, shape)
    return _Setting(dict(zip(("train", "test"), counts, strict=True)), *network)


@functools.cache
def _count(arguments):
    return data.count(**dict(arguments))


_KNOWN = {}


def _network(classes, input_shape):
    """Returns operations of one forward pass and the number of modules."""
    model = gin.query_parameter("train.model")
    # What tells one network from another.
    bindings = str(gin.get_bindings(model.scoped_selector))
    key = model.scoped_selector, bindings, classes, input_shape
    if key not in _KNOWN:
        network = model.scoped_configurable_fn(
            num_classes=classes, input_shape=input_shape, seed=0
        )
        _KNOWN[key] = forward_operations(network), len(module_chain(network))
    return _KNOWN[key]


def forward_operations(network):
    """Counts operations of a forward pass of one example, roughly.

    Args:
        network: `keras.Model`.

    Returns:
        int, of all layers that have a kernel; of those hidden within layers of
        the user's own, as if each were applied at one position.
    """
    return sum(map(_operations, network._flatten_layers(include_self=False)))


def _operations(layer):
    if not hasattr(layer, "kernel"):
        return 0
    try:
        # Dense layers, too, are applied at each of the positions before them.
        positions = math.prod(n or 1 for n in layer.output.shape[1:-1])
    except AttributeError:  # It was never called with a symbolic tensor.
        positions = 1
    return 2 * positions * math.prod(layer.kernel.shape)
