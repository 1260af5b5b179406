"""Training one model, from a configuration to a run directory."""

import contextlib
import functools
import math
import os
import time
from typing import Annotated, Literal

import gin
import numpy as np
from absl import logging
from tqdm import tqdm

from keras_transfer import files, objectives, progress
from keras_transfer.config import schema
from keras_transfer.devices import has_accelerator
from keras_transfer.devices import strategy as default_strategy
from keras_transfer.errors import UserError
from keras_transfer.runs import Run, architecture, metrics
from keras_transfer.runs.checkpoints import check_finite
from keras_transfer.training import cluster, factories, setup
from keras_transfer.training.interruption import DeferredSignals, Stop
from keras_transfer.training.optimizers import SGD
from keras_transfer.training.step import Trainer

# Images on which a model read back is compared with the one in memory.
_NUM_COMPARED = 4

# What may have to be done again, of epochs whose checkpoints are not kept.
_SECONDS_UNSAVED = 10.0

TrainedModules = Annotated[tuple[str, ...], schema.NotEmpty()]

_DIVERGED = (
    "Most likely the learning rate is too high: lower schedule's base_rate, "
    "lengthen its warmup_epochs, or bound the gradient with "
    "SGD.global_clipnorm. The checkpoints of the epochs before are kept."
)


@gin.configurable
def train(
    work_dir,
    model: factories.MakesModel = gin.REQUIRED,
    dataset: factories.MakesDataset = gin.REQUIRED,
    epochs: schema.Count = gin.REQUIRED,
    batch_size: schema.Count = gin.REQUIRED,
    schedule: factories.MakesSchedule = gin.REQUIRED,
    optimizer: factories.MakesOptimizer = SGD,
    augmentation: tuple = (),
    mixup_alpha: schema.NotNegative = 0.0,
    pretrained: str | os.PathLike | None = None,
    pretrained_epoch: str | int = "last",
    seed: schema.Seed = 0,
    strategy: factories.MakesStrategy = default_strategy,
    eval_batch_size: schema.Count = 256,
    keep_epochs: Literal["all"] | tuple[int, ...] = "all",
    dtype_policy: str = "float32",
    jit_compile: bool | None = None,
    trained_modules: TrainedModules | None = None,
    layer_decay: schema.Share | None = None,
    label_smoothing: schema.Share = 0.0,
    class_weights: Literal["balanced"] | dict | None = None,
    patience: schema.Count | None = None,
    logger: factories.MakesLogger | None = None,
    trainers=None,
):
    """Trains one model and leaves a run directory.

    The same call on the same directory resumes after the last checkpoint and
    ends with the same weights as an uninterrupted run; on a finished run it
    returns at once. On SIGTERM or Ctrl-C, what has been done of an epoch is
    saved first, and the next call goes on from there; with several workers,
    which would have to stop at the same step, only whole epochs count.

    The best epoch is chosen on the dataset's validation split, where it has
    one, else on test images, as in the paper.

    Args:
        work_dir: the run directory, made if need be.
        model: factory called with `num_classes`, `input_shape` and `seed`;
            returns a functional or Sequential Keras model, ending in logits or
            in a softmax or sigmoid.
        dataset: factory of a `data.Dataset`, such as `data.load` with its
            arguments bound, or a function of the user's own (see
            `data.from_arrays`); called once the strategy is there.
        epochs: int, passes over the training split.
        batch_size: int, examples in an optimizer step, over all replicas.
        schedule: factory called with `steps_per_epoch` and `epochs`; returns
            the learning rate (see `training.schedules`).
        optimizer: factory called with the learning rate; returns a Keras
            optimizer: `SGD`, or any of Keras' by its name, such as AdamW. Where
            it keeps averages of weights (`use_ema`), these are evaluated and
            saved.
        augmentation: sequence of the operations in `data.augment`.
        mixup_alpha: float, parameter of mixup's Beta distribution; 0 is none.
        pretrained: P, or None: its run directory, or a file or directory of
            weights of any kind that `models.read_weights` reads. With it the
            model starts from P's weights and a fresh head (P-T), on images
            normalized as a run's P's unless the dataset says otherwise;
            without, from scratch.
        pretrained_epoch: which checkpoint of a run: "best", "last" or int.
        seed: int; initialization, order, augmentation and mixup follow from it.
        strategy: factory of a `tf.distribute.Strategy`.
        eval_batch_size: int, examples in an evaluation batch, at most.
        keep_epochs: "all", or the epochs whose checkpoints are kept; the
            initialization, the best and the last always are.
        dtype_policy: Keras dtype policy: "float32", "mixed_bfloat16" or
            "mixed_float16" (with dynamic loss scaling).
        jit_compile: bool, whether XLA compiles the forward and backward pass;
            None: yes on GPU and TPU, no on CPU, where it is slower.
        trained_modules: names of the modules that are trained (see
            `models.module_chain`), such as ("fc",), a P-T of frozen features,
            or of whole stages ("layer4", "fc"); all others stay as they were,
            with the batch statistics of P. None: all are trained.
        layer_decay: layer-wise learning-rate decay: the head has the schedule's
            rate, and each module so many times that of the module after it.
            None: all have the schedule's.
        label_smoothing: share of each target that is spread over all classes,
            in training.
        class_weights: what losses in training are multiplied by: "balanced", in
            inverse proportion to how many images a class has, or {class name:
            weight}, 1 for those left out. None: 1.
        patience: early stopping: after so many epochs without a better metric
            on validation images training ends. None: never.
        logger: factory of a tracker of experiments that is told of the run
            besides TensorBoard, such as `MLflowLogger` (see `loggers`).
        trainers: `Trainers` of earlier runs in this process, to use again what
            was compiled for them; None to compile all anew.

    Returns:
        The `runs.Run`.

    Raises:
        UserError: if the directory holds another configuration's run, P does
            not fit, the model would not be read back as it is, or the loss is
            no longer finite.
    """
    schema.check_arguments(train, locals())
    run = Run(work_dir)
    source = setup.pretrained_source(pretrained, pretrained_epoch)
    with cluster.joining():
        strategy = strategy()
    is_chief = cluster.is_chief(strategy)
    dataset = setup.normalized_as(setup.make_dataset(dataset), source)
    setup.check_patience(patience, dataset)
    if class_weights is not None:
        class_weights = objectives.weights_of_classes(
            class_weights, dataset.train.labels, dataset.info
        )
    augmentation = tuple(augmentation)
    drawn = {
        "batch_size": batch_size,
        "seed": seed,
        "augmentation": augmentation,
        "mixup_alpha": mixup_alpha,
    }
    steps = dataset.steps_per_epoch(batch_size, strategy.num_replicas_in_sync)
    # On the CPU the step finishes its batches itself; see `train_parts`.
    in_step = dataset.in_memory and not has_accelerator()
    with (
        setup.dtype_policy(dtype_policy),
        strategy.scope(),
        architecture.within_memory("train.model"),
    ):
        net = setup.start_model(
            model, dataset.info, seed, source, pretrained_epoch
        )
        if trained_modules is not None:
            setup.freeze_others(net, trained_modules)
        # What gin has not given to anything would be missing in config.gin.
        rate = schedule(steps_per_epoch=steps, epochs=epochs)
        made = setup.make_optimizer(optimizer, rate)
        make = functools.partial(
            Trainer,
            net,
            made,
            strategy,
            dataset.info.multi_label,
            batch_size,
            jit_compile,
            finish=functools.partial(dataset.finish, augmentation=augmentation)
            if in_step
            else None,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            rate_factors=setup.decayed_rates(net, layer_decay),
        )
        if trainers is None:
            trainer, is_known = make(), False
        else:
            trainer, is_known = trainers.trainer(
                net,
                (strategy, dataset.info, repr(class_weights), in_step),
                make,
            )
        if in_step:
            trainer.tensors = dataset.train_tensors(augmentation)

    # Other workers write nothing.
    alone = (
        files.hold(work_dir, again=True)
        if is_chief
        else contextlib.nullcontext()
    )
    with alone:
        metric = objectives.metric_name(dataset.info.multi_label)
        checkpoint = setup.resume(run, metric, dataset, source)
        # What the best epoch is chosen by, {epoch: value}.
        values = setup.values_so_far(run, metric, checkpoint)
        if metrics.has_stopped(values, patience):
            print(f"{run.path} is finished: training has stopped early.")
            return run
        if checkpoint is not None and checkpoint.epoch == epochs:
            print(f"{run.path} is finished: all {epochs} epochs are trained.")
            return run
        signals = DeferredSignals(active=cluster.num_workers(strategy) == 1)
        evaluate = setup.evaluation(
            trainer, dataset, eval_batch_size, signals.check
        )

        saved_at, tracker = -math.inf, None

        def is_saved(epoch):
            is_kept = keep_epochs == "all" or epoch in {*keep_epochs, epochs}
            # Of several workers each has a clock of its own.
            is_due = time.monotonic() - saved_at > _SECONDS_UNSAVED
            is_due |= cluster.num_workers(strategy) > 1
            is_last = metrics.has_stopped(values, patience)
            is_best = metrics.best_epoch(values) == epoch
            return is_kept or is_due or is_last or is_best

        def finish_epoch(epoch, summaries, scalars):
            nonlocal saved_at
            for split in summaries.keys() - {"train"}:
                _check_loss(summaries[split]["loss"], split, epoch)
            values[epoch] = metrics.choosing_value(summaries, metric)
            state = trainer.state() if is_saved(epoch) else None
            if state:
                check_finite(state[0], f"The model after epoch {epoch}")
                saved_at = time.monotonic()
            if is_chief:
                run.summaries.write_scalars(epoch, summaries, scalars)
                if tracker:
                    tracker.log(epoch, metrics.flat(summaries) | scalars)
                run.add_metrics(epoch, epoch * steps, summaries)
            if is_chief and state:
                # The checkpoint says that all the others are there.
                run.save(epoch, *state)
                run.keep(epoch, metric, keep_epochs)

        if checkpoint is None:
            images, _ = next(iter(dataset.train_batches(**drawn)))
            if not is_known:
                architecture.check_read_back(net, images[:_NUM_COMPARED])
            if is_chief:
                _begin(run, net, dataset, images, source)
                tracker = setup.tracker(logger, run)
            finish_epoch(0, evaluate(), {})
            done, taken = 0, np.empty((0, 2), np.float32)
        else:
            trainer.restore(checkpoint)
            done, taken = checkpoint.epoch, checkpoint.steps
            if is_chief:
                run.keep(done, metric, keep_epochs)
                tracker = setup.tracker(logger, run)

        batches = trainer.distribute(
            dataset.train_parts if in_step else dataset.train_batches,
            first_epoch=done,
            first_step=len(taken),
            **drawn,
        )
        batches = iter(batches)
        bar = tqdm(
            desc=run.path.name,
            total=epochs * steps,
            initial=done * steps + len(taken),
            unit="step",
            leave=None,  # When it is the only one, not within a study's.
            disable=None if is_chief else True,
        )
        with signals, cluster.working(strategy), bar:
            for epoch in range(done + 1, epochs + 1):
                rate, began = trainer.learning_rate, time.perf_counter()
                missing = steps - len(taken)
                try:
                    while len(taken) < steps:
                        sums = trainer.take_steps(batches, steps - len(taken))
                        _check_finite(sums, (epoch - 1) * steps + len(taken))
                        taken = np.concatenate([taken, sums])
                        bar.update(len(sums))
                        signals.check()
                    seconds = time.perf_counter() - began
                    evaluated = evaluate()
                except Stop:
                    _save_partial(run, epoch, trainer.state(), taken)
                    raise
                finish_epoch(
                    epoch,
                    {"train": trainer.summarize(taken)} | evaluated,
                    {
                        "learning_rate": rate,
                        "images_per_second": missing * batch_size / seconds,
                    },
                )
                taken = taken[:0]
                split = metrics.choosing_split(evaluated)
                reached = f"{split} {metric} {evaluated[split][metric]:.4f}"
                reached = f"epoch {epoch}/{epochs}, {reached}"
                bar.set_postfix_str(reached)
                if is_chief:
                    progress.tell(f"{run.path.name}: {reached}")
                if metrics.has_stopped(values, patience):
                    print(
                        f"{run.path} has stopped early: {patience} epochs "
                        f"without a better {split} {metric}."
                    )
                    break
        if tracker:
            tracker.finish()
    return run


def _begin(run, net, dataset, images, source):
    config = gin.operative_config_str()
    run.begin(config, net, dataset, source)
    run.summaries.write_config(config)
    run.summaries.write_images(images.numpy(), dataset.info)


def _save_partial(run, epoch, state, taken):
    """Keeps what has been done of an epoch that a signal stopped."""
    try:
        run.save_partial(epoch, *state, taken)
    except UserError as error:
        logging.warning("The steps of epoch %d are lost: %s", epoch, error)


def _check_loss(loss, split, epoch):
    """Raises a `UserError` if training has led to a model of no loss."""
    if epoch and not np.isfinite(loss):
        raise UserError(
            f"The {split} loss after epoch {epoch} is not finite: {loss}. "
            f"{_DIVERGED}"
        )


def _check_finite(sums, first_step):
    bad = np.flatnonzero(~np.isfinite(sums[:, 0]))
    if bad.size:
        raise UserError(
            "The loss is no longer finite at step "
            f"{first_step + bad[0] + 1}. {_DIVERGED}"
        )
