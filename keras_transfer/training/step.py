"""The compiled steps: many updates, or one evaluation pass, per call."""

import time

import keras
import numpy as np
import tensorflow as tf

from keras_transfer import objectives
from keras_transfer.devices import Pace
from keras_transfer.devices import jit_compile as jit_argument
from keras_transfer.errors import UserError
from keras_transfer.training import optimizers


class Trainer:
    """One model, its optimizer and a strategy, as compiled functions.

    Args:
        model: `keras.Model` giving logits, made under `strategy`.
        optimizer: Keras optimizer, built under `strategy`, that expects
            gradients summed over replicas.
        strategy: the `tf.distribute.Strategy`.
        multi_label: bool, which loss and metric (see `objectives`).
        batch_size: int, examples in a step over all replicas.
        jit_compile: bool or None, whether XLA compiles the forward and backward
            pass; see `devices.jit_compile`.
        finish: function, run inside the step, from an element of the training
            pipeline to (images, targets); None if elements are that already.
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
    ):
        if model.dtype_policy.compute_dtype == "float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(model.trainable_variables)
        self.model = model
        self.optimizer = optimizer
        self.strategy = strategy
        self.multi_label = multi_label
        self.batch_size = batch_size
        self._finish = finish or (lambda batch: batch)
        self.checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
        if strategy.num_replicas_in_sync == 1:
            self.checkpoint = _TracedCheckpoint(self.checkpoint)
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

    def train_epoch(self, iterator, first_step, steps, after_call, taken=None):
        """Takes the steps of an epoch that are not yet taken.

        Args:
            iterator: yields what `finish` takes, one element per replica a
                step.
            first_step: int, steps taken before the epoch, to name a bad one.
            steps: int, steps in the epoch.
            after_call: called with the number of steps just taken; what it
                raises leaves the epoch at a place from which it can go on.
            taken: list of float32 arrays [n, 2], loss and hits summed over the
                examples of each step already taken; it grows in place.

        Returns:
            dict: "loss", mean in nats, and "accuracy" unless multi-label, over
            the examples seen, as they were seen (augmented, under the weights
            of the moment).

        Raises:
            UserError: naming the step at which the loss ceased to be finite.
        """
        taken = [] if taken is None else taken
        done = sum(map(len, taken))
        while done < steps:
            count = min(self._pace.count(), steps - done)
            began = time.perf_counter()
            part = self._train_steps(iterator, tf.constant(count)).numpy()
            bad = np.flatnonzero(~np.isfinite(part[:, 0]))
            if bad.size:
                _raise_not_finite(first_step + done + bad[0] + 1)
            self._pace.note(count, time.perf_counter() - began)
            taken.append(part)
            done += count
            after_call(count)
        # Summed at once, so that how steps were grouped does not show.
        sums = np.concatenate(taken).sum(0, dtype=np.float64)
        loss, hits = sums / (steps * self.batch_size)
        return {"loss": loss} | ({} if self.multi_label else {"accuracy": hits})

    def predict(self, batches, num_examples, after_batch=lambda: None):
        """Returns the logits of an evaluation pipeline.

        Args:
            batches: distributed dataset of (images, targets, weights), padded
                at the end.
            num_examples: int, examples before the padding.
            after_batch: called without arguments after each batch.

        Returns:
            float32 array [num_examples, K], in the pipeline's order.
        """
        logits = []
        for batch in batches:
            logits.append(self._predict_step(batch).numpy())
            after_batch()
        return np.concatenate(logits)[:num_examples]

    @tf.function
    def _train_steps(self, iterator, steps):
        sums = tf.TensorArray(tf.float32, steps, element_shape=[2])
        for step in tf.range(steps):
            part = self.strategy.run(self._train_step, args=(next(iterator),))
            part = self.strategy.reduce(tf.distribute.ReduceOp.SUM, part, None)
            sums = sums.write(step, part)
        return sums.stack()

    @tf.autograph.experimental.do_not_convert
    def _train_step(self, element):
        gradients, sums = self._gradients(*self._finish(element))
        self.optimizer.apply(optimizers.sum_over_replicas(gradients))
        return sums

    def _gradients(self, images, targets):
        with tf.GradientTape() as tape:
            logits = self.model(images, training=True)
            losses = objectives.example_losses(
                targets, logits, self.multi_label
            )
            loss = self._scale(tf.reduce_sum(losses) / self.batch_size)
        gradients = tape.gradient(loss, self._trainable())
        hits = objectives.example_hits(targets, logits, self.multi_label)
        return gradients, tf.stack([tf.reduce_sum(losses), tf.reduce_sum(hits)])

    def _scale(self, loss):
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            return self.optimizer.scale_loss(loss)
        return loss

    def _trainable(self):
        return [variable.value for variable in self.model.trainable_variables]

    @tf.function(autograph=False)
    def _predict_step(self, batch):
        images, _, _ = batch
        logits = self.strategy.run(self._logits, args=(images,))
        return self.strategy.gather(logits, axis=0)

    def _logits(self, images):
        return tf.cast(self.model(images, training=False), tf.float32)


class _TracedCheckpoint:
    """Writes the files of a `tf.train.Checkpoint` in a fraction of its time.

    That one gathers its objects and their variables anew each time; traced,
    this is done once. For objects on one device that do not change.

    Args:
        checkpoint: the `tf.train.Checkpoint`.
    """

    def __init__(self, checkpoint):
        self.read = checkpoint.read
        self._checkpoint = checkpoint
        with tf.device("CPU:0"):
            self._host = tf.constant(0).device  # In full, as files name it.

    def write(self, prefix):
        """Writes files whose paths begin with `prefix`, a str.

        Raises:
            tf.errors.OpError: saying what the plain checkpoint would.
        """
        try:
            self._write(tf.constant(prefix))
        except tf.errors.OpError:
            # A graph's error is a traceback; this one is a sentence.
            self._checkpoint.write(prefix)

    @tf.function(autograph=False)
    def _write(self, prefix):
        with tf.device(self._host):
            return self._checkpoint.write(prefix)


def _raise_not_finite(step):
    raise UserError(
        f"The loss is no longer finite at step {step}. Most likely the "
        "learning rate is too high: lower schedule's base_rate, lengthen its "
        "warmup_epochs, or bound the gradient with SGD.global_clipnorm. The "
        "checkpoints of the epochs before are kept."
    )
