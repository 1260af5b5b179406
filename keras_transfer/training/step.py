"""The compiled steps: many updates, or one evaluation pass, per call."""

import contextlib
import time

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import objectives
from keras_transfer.devices import Pace
from keras_transfer.devices import jit_compile as jit_argument
from keras_transfer.models.logits import logits_model
from keras_transfer.models.weights import (
    assign_weights,
    named_weights,
    parameters,
)
from keras_transfer.training import optimizers


class Trainer:
    """One model, its optimizer and a strategy, as compiled functions.

    The loss is the mean over the batch's examples, of logits (a softmax at the
    model's end is left out), plus `model.losses`: regularizers, `add_loss`.

    Args:
        model: `keras.Model`, made under `strategy`.
        optimizer: any Keras optimizer, made under `strategy`.
        strategy: the `tf.distribute.Strategy`.
        multi_label: bool, which loss and metric (see `objectives`).
        batch_size: int, examples in a step over all replicas.
        jit_compile: bool or None, whether XLA compiles the forward and backward
            pass; see `devices.jit_compile`.
        finish: function, run inside the step, from an element of the training
            pipeline and `tensors` to (images, targets); None if elements are
            that already.
        label_smoothing: as `objectives.example_losses` takes it, in training.
        class_weights: likewise.
        rate_factors: what each trainable variable's learning rate is multiplied
            by, see `optimizers.scale_rates`; None for 1.

    Attributes:
        tensors: tuple of the tensors that `finish` reads.
    """

    def __init__(
        self,
        model,
        optimizer,
        strategy,
        multi_label,
        batch_size,
        jit_compile=None,
        finish=None,
        label_smoothing=0.0,
        class_weights=None,
        rate_factors=None,
    ):
        if strategy.num_replicas_in_sync > 1:
            optimizers.decide_across_replicas(optimizer)
        if rate_factors is not None:
            optimizers.scale_rates(optimizer, rate_factors)
        if model.dtype_policy.compute_dtype == "float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(model.trainable_variables)
        optimizers.expect_summed_gradients(optimizer)
        self.model = model
        self.optimizer = optimizer
        self.strategy = strategy
        self.multi_label = multi_label
        self.batch_size = batch_size
        self._logits_model = logits_model(model)
        self._statistics = _statistics(model)
        # Each trainable variable with its average, if the optimizer keeps any.
        self._averages = optimizers.averages(optimizer)
        self._label_smoothing = label_smoothing
        self._class_weights = class_weights
        self._finish = finish or (lambda batch, tensors: batch)
        self.tensors = ()
        self._gradients = tf.function(
            self._gradients,
            jit_compile=jit_argument(jit_compile),
            autograph=False,
        )
        self._pace = Pace()

    @property
    def learning_rate(self):
        """The rate of the next step, float."""
        return float(self.optimizer.learning_rate)

    def state(self):
        """Returns the weights and the optimizer's state, {path: array} each.

        Where the optimizer averages weights, the averages are the weights, and
        those that training goes on from are part of the optimizer's state.

        All workers of a cluster call it together: some kinds of variables are
        read with the help of all.
        """
        optimizer = named_weights(self.optimizer)
        for name, variable in self._unaveraged().items():
            optimizer[name] = keras.ops.convert_to_numpy(variable)
        with self._averaged():
            return named_weights(self.model), optimizer

    def begin(self, model, optimizer):
        """Begins another run, with what has been compiled for this one.

        Args:
            model: `keras.Model` of the same architecture, to start from.
            optimizer: {path: array}, the optimizer's state before its first
                step.

        Raises:
            UserError: if it is another model.
        """
        assign_weights(self.model, named_weights(model))
        assign_weights(self.optimizer, optimizer)
        for variable, average in self._averages:
            average.assign(variable)

    def restore(self, checkpoint):
        """Takes over what `state` gave.

        Args:
            checkpoint: a `runs.checkpoints.Checkpoint`.

        Raises:
            UserError: if it is another model's or optimizer's.
        """
        what = f"The checkpoint of epoch {checkpoint.epoch}"
        assign_weights(self.model, checkpoint.weights, what)
        unaveraged = self._unaveraged()
        optimizer = {
            name: value
            for name, value in checkpoint.optimizer.items()
            if name not in unaveraged
        }
        assign_weights(self.optimizer, optimizer, what)
        for name, variable in unaveraged.items():
            variable.assign(checkpoint.optimizer[name])

    def _unaveraged(self):
        """Returns {name: variable} of what is averaged."""
        return {
            f"unaveraged/{index}/{variable.path}": variable
            for index, (variable, _) in enumerate(self._averages)
        }

    @contextlib.contextmanager
    def _averaged(self):
        """Has the model hold the averages of its weights, if there are any."""
        own = [keras.ops.convert_to_numpy(v) for v, _ in self._averages]
        for variable, average in self._averages:
            variable.assign(average)
        try:
            yield
        finally:
            for (variable, _), value in zip(self._averages, own, strict=True):
                variable.assign(value)

    def distribute(self, make_batches, **arguments):
        """Returns a pipeline spread over the strategy's replicas.

        Args:
            make_batches: `Dataset.train_batches`, `train_parts` or
                `eval_batches`.
            **arguments: passed on to it.
        """
        replicas = self.strategy.num_replicas_in_sync

        def make(context):
            workers = context.num_input_pipelines
            return make_batches(
                num_replicas=replicas // workers,
                num_workers=workers,
                worker=context.input_pipeline_id,
                **arguments,
            )

        return self.strategy.distribute_datasets_from_function(make)

    def take_steps(self, iterator, most):
        """Takes as many steps as go well into one call.

        Args:
            iterator: yields what `finish` takes, one element per replica a
                step.
            most: int, steps to take at most.

        Returns:
            float32 array [steps taken, 2], loss and accuracy summed over each
            step's examples, as they were seen (augmented, under the weights of
            the moment), without `model.losses`.
        """
        count = min(self._pace.count(), most)
        began = time.perf_counter()
        sums = self._train_steps(
            iterator, tf.constant(count), self.tensors
        ).numpy()
        self._pace.note(count, time.perf_counter() - began)
        return sums

    def summarize(self, sums):
        """Returns the mean of what `take_steps` gave in an epoch.

        Args:
            sums: float32 array [steps, 2].

        Returns:
            dict: "loss", in nats, and "accuracy" unless multi-label.
        """
        # Summed at once, so that how steps were grouped does not show.
        total = sums.sum(0, dtype=np.float64)
        loss, accuracy = total / (len(sums) * self.batch_size)
        summary = {"loss": loss}
        return summary if self.multi_label else summary | {"accuracy": accuracy}

    def predict(self, batches, num_examples, after_batch=lambda: None):
        """Returns the logits of an evaluation pipeline.

        Where the optimizer averages weights, they are those of the averages.

        Args:
            batches: distributed dataset of (images, targets, weights), padded
                at the end.
            num_examples: int, examples before the padding.
            after_batch: called without arguments after each batch.

        Returns:
            float32 array [num_examples, K], in the pipeline's order.
        """
        logits = []
        with self._averaged():
            for batch in batches:
                logits.append(self._predict_step(batch).numpy())
                after_batch()
        return np.concatenate(logits)[:num_examples]

    @tf.function
    def _train_steps(self, iterator, steps, tensors):
        sums = tf.TensorArray(tf.float32, steps, element_shape=[2])
        for step in tf.range(steps):
            part = self.strategy.run(
                self._train_step, args=(next(iterator), tensors)
            )
            part = self.strategy.reduce(tf.distribute.ReduceOp.SUM, part, None)
            sums = sums.write(step, part)
        return sums.stack()

    @tf.autograph.experimental.do_not_convert
    def _train_step(self, element, tensors):
        gradients, sums = self._gradients(
            *self._finish(element, tensors=tensors)
        )
        self.optimizer.apply(optimizers.sum_over_replicas(gradients))
        self._average_statistics()
        return sums

    def _gradients(self, images, targets):
        with tf.GradientTape() as tape:
            logits = self._logits_model(images, training=True)
            losses = objectives.example_losses(
                targets,
                logits,
                self.multi_label,
                self._label_smoothing,
                self._class_weights,
            )
            loss = tf.reduce_sum(losses) / self.batch_size
            loss = self.optimizer.scale_loss(self._add_model_losses(loss))
        gradients = tape.gradient(loss, self._trainable())
        right = objectives.example_accuracy(targets, logits, self.multi_label)
        sums = tf.stack([tf.reduce_sum(losses), tf.reduce_sum(right)])
        return gradients, sums

    def _add_model_losses(self, loss):
        """Adds this replica's share of regularizers and `add_loss`."""
        for further in self.model.losses:
            further = tf.reduce_sum(tf.cast(further, loss.dtype))
            loss += further / self.strategy.num_replicas_in_sync
        return loss

    def _trainable(self):
        return [variable.value for variable in self.model.trainable_variables]

    def _average_statistics(self):
        """Has all replicas hold the same moving means, those of all data."""
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync == 1 or not self._statistics:
            return
        values = [tf.convert_to_tensor(v.value) for v in self._statistics]
        means = context.all_reduce(tf.distribute.ReduceOp.MEAN, values)
        for variable, mean in zip(self._statistics, means, strict=True):
            variable.assign(mean)

    @tf.function(autograph=False)
    def _predict_step(self, batch):
        images, _, _ = batch
        logits = self.strategy.run(self._logits, args=(images,))
        return self.strategy.gather(logits, axis=0)

    def _logits(self, images):
        return tf.cast(self._logits_model(images, training=False), tf.float32)


def _statistics(model):
    """Returns the weights that normalization layers estimate from batches.

    Those of frozen layers stay as they are.
    """
    frozen = {
        id(weight)
        for layer in model._flatten_layers()
        if not layer.trainable
        for weight in layer.weights
    }
    weights = zip(model.weights, parameters(model), strict=True)
    return [
        weight
        for weight, is_parameter in weights
        if not is_parameter
        and keras.backend.is_float_dtype(weight.dtype)
        and id(weight) not in frozen
    ]
