"""What a run needs before its first step."""

import contextlib
import dataclasses
import itertools
import math

import gin
import keras
from absl import logging

from keras_transfer import data, models, objectives
from keras_transfer.errors import UserError
from keras_transfer.models.weight_sources import open_source
from keras_transfer.runs import Run, architecture, configuration
from keras_transfer.training.optimizers import MULTI_OPTIMIZER

# Test images of at most so many bytes, as float32, are made only once.
_KEPT_BYTES = 2**28


@contextlib.contextmanager
def dtype_policy(name):
    """Has models made in the block under a Keras dtype policy.

    Raises:
        UserError: if there is none of that name.
    """
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(name)
    except (TypeError, ValueError) as error:
        raise UserError(f"train.dtype_policy: {error}") from error
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def pretrained_source(path, epoch):
    """Opens P.

    Args:
        path: `train.pretrained`: None, a run directory, or another source that
            `models.read_weights` takes.
        epoch: `train.pretrained_epoch`.

    Returns:
        P's `Run`, or what `models.initialize_from` takes; None if `path` is.

    Raises:
        UserError: if nothing is there, or it is none of these.
    """
    if path is None:
        return None
    run = Run(path)
    if run.exists:
        return run
    if not run.path.expanduser().exists():
        raise UserError(
            "train.pretrained must name the run directory of P, or a file of "
            f"weights, and there is no run at {path}. Train P first (for "
            "example with gin/p_mnist.gin), or pass its directory with "
            "--gin_bindings='train.pretrained=\"DIR\"'."
        )
    if epoch != "last":
        raise UserError(
            "train.pretrained_epoch is for run directories, which hold several "
            f"epochs; {path} is none. Received: {epoch!r}; leave it out."
        )
    return open_source(path)


def make_dataset(factory):
    """Calls the factory of a dataset and notes what it was.

    Args:
        factory: `train.dataset`.

    Returns:
        The `data.Dataset`, which tells how to make it again.

    Raises:
        UserError: if it is of another kind.
    """
    dataset = factory()
    if not isinstance(dataset, data.Dataset):
        raise UserError(
            "train.dataset must make a keras_transfer.data.Dataset, as "
            "data.load and data.from_arrays do. Received: "
            f"{type(dataset).__name__}."
        )
    if dataset.factory is not None:
        return dataset
    name, arguments = data.describe(factory)
    return dataclasses.replace(dataset, factory=name, arguments=arguments)


def normalized_as(dataset, source):
    """Returns a P-T's dataset with images normalized as P saw them.

    What the configuration says of the mean and the standard deviation stands;
    if that is not P's, a warning says so.

    Args:
        dataset: the `data.Dataset`.
        source: P's `Run`, or another source, see `pretrained_source`: of what
            does not tell how its images were normalized, nothing is taken.
    """
    own = dataset.info
    if isinstance(source, Run):
        expected = source.info()
    elif getattr(source, "mean", None) is not None:
        expected = dataclasses.replace(
            own, name=source.source, mean=source.mean, std=source.std
        )
    else:
        return dataset
    if (own.mean, own.std) == (expected.mean, expected.std):
        return dataset
    if not dataset.has_own_normalization:
        print(
            f"Images are normalized as P's: mean {expected.mean}, standard "
            f"deviation {expected.std}."
        )
        return dataset.normalized_as(expected)
    logging.warning(
        "P was trained on images normalized by mean %s and standard deviation "
        "%s, and this run's are by %s and %s: P's features may be of little "
        "use. Leave mean and std of the data out to have P's.",
        expected.mean,
        expected.std,
        own.mean,
        own.std,
    )
    return dataset


def start_model(model, info, seed, source, epoch):
    """Makes the model that training starts from; call in the strategy's scope.

    Args:
        model: the factory.
        info: the dataset's `data.Info`.
        seed: int.
        source: P's `Run` or another source of weights, see
            `pretrained_source`; None to start from scratch.
        epoch: which checkpoint of a `Run`.

    Returns:
        The `keras.Model`.
    """
    num_classes = len(info.class_names)
    net = model(
        num_classes=num_classes, input_shape=info.image_shape, seed=seed
    )
    architecture.check_model(net, num_classes)
    if source is None:
        return net
    if isinstance(source, Run):
        found = models.initialize_from(net, source.load_model(epoch))
        found = dataclasses.replace(found, source=str(source.path))
    else:
        found = models.initialize_from(net, source)
    # Of a run, all but the head goes without saying.
    fits = found.fresh == found.unused and not found.reshaped
    if not (fits and isinstance(source, Run)):
        print(found)
    return net


def freeze_others(model, names):
    """Has training leave all modules as they are, save those of some names.

    Layers are frozen as Keras freezes them: no optimizer sees their weights, no
    weight decay, and batch normalization uses its moving statistics and leaves
    them alone.

    Args:
        model: the `keras.Model`, changed in place, before the optimizer is
            built.
        names: names of modules, see `models.module_chain`, or of stages:
            "layer4" is "layer4.0", "layer4.1" and so on.

    Raises:
        UserError: if there is no module of such a name, or none of them has
            weights to train.
    """
    chain = models.module_chain(models.logits_model(model))
    # By its name or by that of its stage.
    members = {
        name: [m for m in chain if name in (m.name, m.name.rpartition(".")[0])]
        for name in names
    }
    if unknown := [name for name, found in members.items() if not found]:
        raise UserError(
            "train.trained_modules must name modules of the model, which has "
            f"{', '.join(module.name for module in chain)}. Received: "
            f"{', '.join(unknown)}."
        )
    chosen = [*itertools.chain(*members.values())]
    if not any(module.trainable_variables for module in chosen):
        raise UserError(
            "train.trained_modules must name a module that has weights to "
            f"train. Received: {', '.join(names)}."
        )
    # Only this private method finds the layers that other layers hold. One that
    # is of several modules has no weight of its own.
    left = {id(weight) for module in chosen for weight in module.variables}
    for layer in model._flatten_layers(include_self=False):
        own = {id(weight) for weight in layer.weights}
        if own and not own & left:
            layer.trainable = False


def decayed_rates(model, decay):
    """Returns what each trainable variable's rate is multiplied by.

    The head's is 1, and each module's is `decay` times that of the module after
    it (layer-wise learning-rate decay; Howard and Ruder 2018, Clark et al.
    2020).

    Args:
        model: the `keras.Model`.
        decay: float in [0, 1], or None.

    Returns:
        List of float, in the order of `model.trainable_variables`; None for all
        1 where there is no decay.
    """
    if decay is None:
        return None
    chain = models.module_chain(models.logits_model(model))
    factors = {
        id(variable): decay**height
        for height, module in enumerate(reversed(chain))
        for variable in module.trainable_variables
    }
    return [factors[id(variable)] for variable in model.trainable_variables]


def make_optimizer(factory, learning_rate):
    """Returns the optimizer that `train.optimizer` makes.

    Args:
        factory: `train.optimizer`.
        learning_rate: number or Keras `LearningRateSchedule`.

    Raises:
        UserError: if it cannot be made so, or is of another kind.
    """
    try:
        optimizer = factory(learning_rate)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(
            f"train.optimizer cannot be made. Keras said: {error}"
        ) from error
    if not isinstance(optimizer, keras.optimizers.Optimizer) or isinstance(
        optimizer, MULTI_OPTIMIZER
    ):
        raise UserError(
            "train.optimizer must make one Keras optimizer for all weights. "
            f"Received: {type(optimizer).__name__}."
        )
    return optimizer


def tracker(factory, run):
    """Returns what `train.logger` makes for a run, None if there is none.

    Args:
        factory: `train.logger`.
        run: the `Run`, begun.

    Raises:
        UserError: if it cannot be made.
    """
    if factory is None:
        return None
    config = configuration.bindings(run.config_path.read_text())
    return factory(name=run.path.name, identity=run.identity, config=config)


def check_patience(patience, dataset):
    """Raises a `UserError` for early stopping without a validation split."""
    if patience is not None and dataset.validation is None:
        raise UserError(
            "Early stopping looks at validation images, never at test images, "
            f"and there are none. Received: train.patience={patience}; hold "
            "some out of training with load.validation_split = 0.1, or leave "
            "it out."
        )


def evaluation(trainer, dataset, batch_size, after_batch):
    """Returns a function that gives {split: loss and metrics}.

    Splits are "test" and, where there is one, "validation".
    """
    evaluations = {
        split: _evaluation(trainer, dataset, split, batch_size, after_batch)
        for split in dataset.splits
        if split != "train"
    }
    return lambda: {name: run() for name, run in evaluations.items()}


def _evaluation(trainer, dataset, split, batch_size, after_batch):
    """Returns a function that gives loss and metrics on one split."""
    targets = dataset.splits[split].targets(len(dataset.info.class_names))
    # As many batches as it takes, and no more padding than replicas need.
    replicas = trainer.strategy.num_replicas_in_sync
    count = -(-len(targets) // batch_size) * replicas
    batches = trainer.distribute(
        dataset.eval_batches,
        split=split,
        batch_size=min(batch_size, -(-len(targets) // count) * replicas),
    )
    shape = len(targets), *dataset.info.image_shape
    if 4 * math.prod(shape) <= _KEPT_BYTES:
        # Making the pipeline anew takes longer than a small split's forward
        # passes.
        batches = list(batches)

    def evaluate():
        logits = trainer.predict(batches, len(targets), after_batch)
        return objectives.summarize(targets, logits, dataset.info)

    return evaluate


def values_so_far(run, metric, checkpoint):
    """Returns {epoch: value} of the metric by which the best epoch is chosen.

    Args:
        run: the `Run`.
        metric: str, its column.
        checkpoint: what the run has come to, see `resume`.
    """
    if checkpoint is None:
        return {}
    values = run.choosing_values(metric).items()
    return {epoch: x for epoch, x in values if epoch <= checkpoint.epoch}


def resume(run, metric, dataset, source=None):
    """Returns the newest `Checkpoint` of a run, None if it is a new one.

    Args:
        run: the `Run`.
        metric: str, the column that ranks epochs.
        dataset: the `data.Dataset` to train it on.
        source: what it starts from, see `pretrained_source`.

    Raises:
        UserError: if the run is of another configuration than gin's or of other
            data, or is damaged.
    """
    if not run.exists:
        return None
    run.check_configuration(gin.operative_config_str(), source)
    changes = run.changes_of_data(dataset)
    if changes:
        raise UserError(
            f"{run.path} was begun on other data, which have changed: "
            f"there are {', '.join(changes)}. Put back what was there, or "
            "give another --work_dir to begin anew."
        )
    return run.newest(metric)
