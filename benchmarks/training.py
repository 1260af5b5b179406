"""Images per second of the training loop against the bare compiled step.

    python benchmarks/training.py                  # the network of p_mnist
    python benchmarks/training.py --model=resnet50 # 224 px, a folder of JPEGs

Both are measured in this process, alternately: the *bare step* is forward pass,
gradients and optimizer on one batch already in memory, many steps in one
tf.function; the *loop* is the same with the input pipeline (shuffling,
augmentation, normalization), metrics and what is written each epoch to
metrics.csv and TensorBoard. Evaluation and checkpoints are work of their own
and are timed apart.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_transfer import data, models, objectives
from keras_transfer.runs import Run
from keras_transfer.training import SGD, constant
from keras_transfer.training.step import Trainer


def write_jpegs(root, count, size=256):
    """Writes `count` JPEGs of noise blurred to photograph-like sizes."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("a", "b"):
            folder = pathlib.Path(root, split, label)
            folder.mkdir(parents=True)
            for i in range(count // 2 if split == "train" else 4):
                coarse = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize((size, size))
                image.save(folder / f"{i}.jpg", quality=90)


def make(name, scratch):
    """Returns (model, dataset, batch size, augmentation, steps an epoch)."""
    if name == "p_mnist":
        dataset = data.load("mnist", image_size=16)
        model = models.fixup_resnet(10, (16, 16, 1))
        return model, dataset, 64, [data.random_crop(padding=2)], 70
    write_jpegs(scratch, count=64)
    dataset = data.load("folder", data_dir=scratch, image_size=224, resize=256)
    augmentation = [data.random_resized_crop(), data.random_flip()]
    return models.fixup_resnet50(2), dataset, 16, augmentation, 4


def bare_steps(trainer, images, targets):
    """Returns a function that takes n bare steps on one batch."""
    model, optimizer = trainer.model, trainer.optimizer

    @tf.function
    def steps(count):
        for _ in tf.range(count):
            with tf.GradientTape() as tape:
                logits = model(images, training=True)
                losses = objectives.example_losses(targets, logits, False)
                loss = tf.reduce_mean(losses)
            variables = model.trainable_variables
            optimizer.apply(tape.gradient(loss, variables))

    return steps


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["p_mnist", "resnet50"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.set_defaults(model="p_mnist")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measure(options, scratch)


def measure(options, scratch):
    """Prints the ratios."""
    model, dataset, batch_size, augmentation, steps = make(
        options.model, f"{scratch}/images"
    )
    strategy = tf.distribute.get_strategy()
    # The rate is tiny, so that noise images cannot make the loss diverge.
    optimizer = SGD(constant(steps, 1, base_rate=1e-6))
    trainer = Trainer(
        model,
        optimizer,
        strategy,
        multi_label=False,
        batch_size=batch_size,
        finish=lambda part, tensors: dataset.finish(
            part, augmentation, tensors
        ),
    )
    drawn = {"batch_size": batch_size, "seed": 0, "augmentation": augmentation}
    images, targets = next(iter(dataset.train_batches(**drawn)))
    bare = bare_steps(trainer, images, targets)
    iterator = iter(trainer.distribute(dataset.train_parts, **drawn))
    test = trainer.distribute(
        dataset.eval_batches, split="test", batch_size=min(256, batch_size * 4)
    )
    run = Run(f"{scratch}/run")
    run.begin("", model, dataset)
    seconds = {"bare": [], "loop": [], "evaluation": [], "checkpoint": []}

    def timed(name, function, *arguments):
        began = time.perf_counter()
        result = function(*arguments)
        seconds[name].append(time.perf_counter() - began)
        return result

    def one_epoch(epoch):
        taken = np.empty((0, 2), np.float32)
        while len(taken) < steps:
            sums = trainer.take_steps(iterator, steps - len(taken))
            taken = np.concatenate([taken, sums])
        summaries = {"train": trainer.summarize(taken)}
        run.add_metrics(epoch, steps * epoch, summaries)
        run.summaries.write_scalars(epoch, summaries, {"rate": 1.0})

    count = tf.constant(steps)
    for epoch in range(options.repeats + 2):
        timed("bare", lambda: (bare(count), optimizer.iterations.numpy()))
        timed("loop", one_epoch, epoch)
        timed("evaluation", trainer.predict, test, dataset.info.num_test)
        timed("checkpoint", lambda: run.save(epoch, *trainer.state()))  # noqa: B023
    # The first two rounds trace, compile and settle the steps per call.
    median = {k: statistics.median(v[2:]) for k, v in seconds.items()}
    rate = steps * batch_size / median["bare"]
    ratios = [
        b / w for b, w in zip(seconds["bare"], seconds["loop"], strict=True)
    ][2:]
    print(f"{options.model}: bare step {rate:.1f} images/s")
    print(
        f"loop / bare: {statistics.median(ratios):.3f} "
        f"(of {len(ratios)}: {min(ratios):.3f} to {max(ratios):.3f})"
    )
    for name in ("evaluation", "checkpoint"):
        share = median[name] / median["bare"]
        print(f"{name}, once an epoch of {steps} steps: {share:.3f} of bare")


if __name__ == "__main__":
    main()
