"""Training one model, from a configuration to a run directory."""

import math
import time

import gin
import keras
import numpy as np
from tqdm import tqdm

from keras_transfer import models, objectives, runs
from keras_transfer.devices import has_accelerator
from keras_transfer.devices import strategy as default_strategy
from keras_transfer.errors import UserError
from keras_transfer.runs.record import Record
from keras_transfer.training import cluster, factories
from keras_transfer.training.interruption import DeferredSignals, Stop
from keras_transfer.training.optimizers import SGD
from keras_transfer.training.step import Trainer

# Test images of at most so many bytes, as float32, are made only once.
_KEPT_BYTES = 2**28


@gin.configurable
def train(
    work_dir,
    model: factories.MakesModel = gin.REQUIRED,
    dataset: factories.MakesDataset = gin.REQUIRED,
    epochs: int = gin.REQUIRED,
    batch_size: int = gin.REQUIRED,
    schedule: factories.MakesSchedule = gin.REQUIRED,
    optimizer: factories.MakesOptimizer = SGD,
    augmentation: tuple = (),
    mixup_alpha: float = 0.0,
    pretrained: str | None = None,
    pretrained_epoch: str | int = "last",
    seed: int = 0,
    strategy: factories.MakesStrategy = default_strategy,
    eval_batch_size: int = 256,
    keep_epochs: str | tuple[int, ...] = "all",
    dtype_policy: str = "float32",
    jit_compile: bool | None = None,
):
    """Trains one model and leaves a run directory.

    The same call on the same directory resumes after the last checkpoint and
    ends with the same weights as an uninterrupted run; on a finished run it
    returns at once. On SIGTERM or Ctrl-C, what has been done of an epoch is
    saved first, and the next call goes on from there; with several workers,
    which would have to stop at the same step, only whole epochs count.

    Args:
        work_dir: the run directory, made if need be.
        model: factory called with `num_classes`, `input_shape` and `seed`;
            returns a Keras model that gives logits.
        dataset: factory of a `data.Dataset`, such as `data.load` with its
            arguments bound; called once the strategy is there.
        epochs: int, passes over the training split.
        batch_size: int, examples in an optimizer step, over all replicas.
        schedule: factory called with `steps_per_epoch` and `epochs`; returns
            the learning rate (see `training.schedules`).
        optimizer: factory called with the learning rate; returns a Keras
            optimizer that expects gradients summed over replicas.
        augmentation: sequence of the operations in `data.augment`.
        mixup_alpha: float, parameter of mixup's Beta distribution; 0 is none.
        pretrained: run directory of P, or None. With it the model starts from
            P's weights and a fresh head (P-T); without, from scratch.
        pretrained_epoch: which checkpoint of P: "best", "last" or int.
        seed: int; initialization, order, augmentation and mixup follow from it.
        strategy: factory of a `tf.distribute.Strategy`.
        eval_batch_size: int, examples in an evaluation batch, at most.
        keep_epochs: "all", or the epochs whose checkpoints are kept; the
            initialization, the best and the last always are.
        dtype_policy: Keras dtype policy: "float32", "mixed_bfloat16" or
            "mixed_float16" (with dynamic loss scaling).
        jit_compile: bool, whether XLA compiles the forward and backward pass;
            None: yes on GPU and TPU, no on CPU, where it is slower.

    Returns:
        The `runs.Run`.

    Raises:
        UserError: if the directory holds another configuration's run, P does
            not fit, or the loss is no longer finite.
    """
    _check_arguments(epochs, eval_batch_size, mixup_alpha, keep_epochs)
    run = runs.Run(work_dir)
    with cluster.joining():
        strategy = strategy()
    dataset = dataset()
    steps = dataset.steps_per_epoch(batch_size, strategy.num_replicas_in_sync)
    augmentation = tuple(augmentation)
    # On the CPU the step finishes its batches itself; see `train_parts`.
    in_step = dataset.in_memory and not has_accelerator()
    _set_dtype_policy(dtype_policy)
    with strategy.scope():
        net = model(
            num_classes=len(dataset.info.class_names),
            input_shape=dataset.info.image_shape,
            seed=seed,
        )
        if pretrained is not None:
            source = _pretrained_run(pretrained).load_model(pretrained_epoch)
            models.initialize_from(net, source)
        trainer = Trainer(
            net,
            optimizer(schedule(steps_per_epoch=steps, epochs=epochs)),
            strategy,
            dataset.info.multi_label,
            batch_size,
            jit_compile,
            (lambda part: dataset.finish(part, augmentation))
            if in_step
            else None,
        )

    record = Record(
        run,
        objectives.metric_name(dataset.info.multi_label),
        keep_epochs,
        cluster.is_chief(strategy),
    )
    done, sums = _begin_or_resume(run, record, trainer, dataset)
    if done == epochs:
        print(f"{run.path} is finished: all {epochs} epochs are trained.")
        return run

    signals = DeferredSignals(active=cluster.num_workers(strategy) == 1)
    evaluate = _evaluation(trainer, dataset, eval_batch_size, signals.check)
    if done is None:
        record.end_epoch(0, 0, {"test": evaluate()}, trainer.checkpoint)
        done = 0
    drawn = {
        "batch_size": batch_size,
        "seed": seed,
        "augmentation": augmentation,
        "mixup_alpha": mixup_alpha,
    }
    if done == 0 and record.is_chief:
        images, _ = next(iter(dataset.train_batches(**drawn)))
        record.show_inputs(images.numpy(), dataset.info)
    batches = trainer.distribute(
        dataset.train_parts if in_step else dataset.train_batches,
        first_epoch=done,
        first_step=len(sums),
        **drawn,
    )
    with signals, cluster.working(strategy):
        _train_epochs(
            trainer,
            record,
            evaluate,
            batches,
            signals,
            done,
            sums,
            epochs,
            steps,
        )
    return run


def _train_epochs(
    trainer, record, evaluate, batches, signals, done, sums, epochs, steps
):
    """Trains the epochs after `done`, of the first what is not in `sums`."""
    taken = [sums]
    iterator = iter(batches)
    with tqdm(
        desc=record.run.path.name,
        total=epochs * steps,
        initial=done * steps + len(sums),
        unit="step",
        leave=None,  # When it is the only one, not within a study's.
        disable=not record.is_chief,
    ) as bar:

        def after_call(count):
            bar.update(count)
            signals.check()

        for epoch in range(done + 1, epochs + 1):
            try:
                summaries, scalars = _train_epoch(
                    trainer, evaluate, iterator, epoch, steps, taken, after_call
                )
            except Stop:
                record.save_partial(epoch, trainer.checkpoint, taken)
                raise
            record.end_epoch(
                epoch, epoch * steps, summaries, trainer.checkpoint, scalars
            )
            taken = []
            bar.set_postfix_str(
                f"epoch {epoch}/{epochs}, test {record.metric} "
                f"{summaries['test'][record.metric]:.4f}"
            )


def _train_epoch(trainer, evaluate, iterator, epoch, steps, taken, after_call):
    """Returns an epoch's summaries, and further scalars for TensorBoard."""
    missing = steps - sum(map(len, taken))
    rate, began = trainer.learning_rate, time.perf_counter()
    summary = trainer.train_epoch(
        iterator, (epoch - 1) * steps, steps, after_call, taken
    )
    seconds = time.perf_counter() - began
    speed = missing * trainer.batch_size / seconds
    return (
        {"train": summary, "test": evaluate()},
        {"learning_rate": rate, "images_per_second": speed},
    )


def _check_arguments(epochs, eval_batch_size, mixup_alpha, keep_epochs):
    counts = {"epochs": epochs, "eval_batch_size": eval_batch_size}
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise UserError(
                f"train.{name} must be a whole number of at least 1. "
                f"Received: {value!r}"
            )
    if not 0 <= mixup_alpha < math.inf:
        raise UserError(
            "train.mixup_alpha must be 0 (no mixup) or positive, and finite. "
            f"Received: {mixup_alpha!r}"
        )
    if keep_epochs != "all" and not isinstance(keep_epochs, list | tuple):
        raise UserError(
            'train.keep_epochs must be "all" or a list of epochs. '
            f"Received: {keep_epochs!r}"
        )


def _set_dtype_policy(name):
    try:
        keras.config.set_dtype_policy(name)
    except (TypeError, ValueError) as error:
        raise UserError(f"train.dtype_policy: {error}") from error


def _evaluation(trainer, dataset, batch_size, after_batch):
    """Returns a function that gives loss and metrics on the test split."""
    targets = dataset.test.targets(len(dataset.info.class_names))
    # As many batches as it takes, and no more padding than replicas need.
    replicas = trainer.strategy.num_replicas_in_sync
    count = -(-len(targets) // batch_size) * replicas
    batches = trainer.distribute(
        dataset.eval_batches,
        split="test",
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


def _begin_or_resume(run, record, trainer, dataset):
    """Returns what `Record.resume` does; (None, no sums) for a new run."""
    config = gin.operative_config_str()
    if run.exists:
        _check_same(config, run)
        return record.resume(trainer.checkpoint)
    if record.is_chief:
        run.describe(config, trainer.model, dataset)
        record.show_config(config)
    return None, np.empty((0, 2), np.float32)


def _check_same(config, run):
    old = set(run.config_path.read_text(encoding="utf-8").splitlines())
    new = set(config.splitlines())
    if old != new:
        changes = "\n".join(
            [f"  there: {line}" for line in sorted(old - new)]
            + [f"  now:   {line}" for line in sorted(new - old)]
        )
        raise UserError(
            f"{run.path} holds a run of another configuration; give another "
            "--work_dir, or the configuration it was begun with, "
            f"{run.config_path}. They differ in:\n{changes}"
        )


def _pretrained_run(path):
    run = runs.Run(path)
    if not run.exists:
        raise UserError(
            "train.pretrained must name the run directory of P, and there is "
            f"no run at {path}. Train P first (for example with "
            "gin/p_mnist.gin), or pass its directory with "
            "--gin_bindings='train.pretrained=\"DIR\"'."
        )
    return run
