"""Images per second of the input pipelines, as ratios within one run.

    python benchmarks/input_pipeline.py                # both parts
    python benchmarks/input_pipeline.py --threads=2 --part=decode

decode: a folder of JPEGs at ImageNet settings (random resized crop to 224,
flip, normalization), decoded in every epoch, against `tf.io.decode_jpeg`, crop
and resize alone; and what an image costs in CPU time.

shuffle: what moving blocks adds, in each epoch, to a pipeline of decoded 224 px
images, in memory and in a cache file, with and without augmentation. Without,
they are moved before the first epoch, which is not measured here.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_transfer import data

BATCH_SIZE = 64
BLOCK_SIZES = (1, 2, 4, 8, 16, 32, 112)


def write_jpegs(root, count):
    """Writes JPEGs of ImageNet's usual 500x375 and, about, 110 KB."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("test", 4)):
        folder = pathlib.Path(root, split, "class")
        folder.mkdir(parents=True)
        for i in range(number):
            image = rng.normal(0, 12, (375, 500, 3))
            for size in (8, 32, 128):
                coarse = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                image += np.array(Image.fromarray(coarse).resize((500, 375)))
            image = np.clip(image / 3, 0, 255).astype(np.uint8)
            path = folder / f"{i:05d}.jpg"
            Image.fromarray(image).save(path, quality=92)
    return sorted(map(str, pathlib.Path(root, "train").glob("*/*")))


def plain_pipeline(paths, threads):
    """Reads, decodes, crops and resizes, and nothing else."""

    def load(path, uniforms):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
        # 54% of the area: the mean of the random resized crop's.
        box = tf.cast(sides * 0.735, tf.int32)
        top, left = tf.unstack(tf.cast(sides * 0.265 * uniforms, tf.int32))
        image = image[top : top + box[0], left : left + box[1]]
        return tf.image.resize(image, (224, 224), antialias=True)

    uniforms = np.random.default_rng(0).random((len(paths), 2), np.float32)
    dataset = tf.data.Dataset.from_tensor_slices((paths, uniforms)).repeat()
    dataset = dataset.map(load, num_parallel_calls=threads)
    return dataset.batch(BATCH_SIZE, drop_remainder=True).prefetch(2)


def compare(pipelines, threads, batches, rounds=3):
    """Measures pipelines in turn.

    Args:
        pipelines: Dict from name to an endless `tf.data.Dataset`.
        threads: Threads each may use.
        batches: Batches to take in each round.
        rounds: Rounds.

    Returns:
        Dict from name to (images/s, CPU seconds an image), medians over rounds.
    """
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    rates = {name: [] for name in pipelines}
    for _ in range(rounds):
        for name, dataset in pipelines.items():
            # A new one each time: what is prefetched meanwhile would be free.
            iterator = iter(dataset.with_options(options))
            for _ in range(4):
                next(iterator)
            began, cpu = time.perf_counter(), time.process_time()
            for _ in range(batches):
                next(iterator)
            images = batches * BATCH_SIZE
            rates[name].append(
                (
                    images / (time.perf_counter() - began),
                    (time.process_time() - cpu) / images,
                )
            )
            del iterator
    return {
        name: tuple(statistics.median(x) for x in zip(*r, strict=True))
        for name, r in rates.items()
    }


def measure_decode(scratch, threads):
    """Prints the rate from a folder of JPEGs against decoding alone."""
    paths = write_jpegs(f"{scratch}/images", count=256)
    size = statistics.mean(pathlib.Path(path).stat().st_size for path in paths)
    dataset = data.load(
        "folder",
        data_dir=f"{scratch}/images",
        image_size=224,
        resize=256,
        keep="encoded",
        cache_dir=f"{scratch}/cache",
    )
    augmentation = [data.random_resized_crop(), data.random_flip()]
    rates = compare(
        {
            "plain": plain_pipeline(paths, threads),
            "ours": dataset.train_batches(BATCH_SIZE, 0, augmentation),
        },
        threads,
        batches=10,
        rounds=5,
    )
    print(f"JPEGs of 500x375, {size / 1e3:.0f} KB, {threads} threads:")
    for name, (rate, cpu) in rates.items():
        print(
            f"  {name}: {rate:.0f} images/s, {1e3 * cpu:.2f} ms of CPU each "
            f"({1 / cpu:.0f} images/s and core)"
        )
    (plain, plain_cpu), (ours, ours_cpu) = rates["plain"], rates["ours"]
    print(f"  ours / plain: {ours / plain:.2f} in images/s, ", end="")
    print(f"{plain_cpu / ours_cpu:.2f} in images per CPU second")


def measure_shuffle(scratch, threads):
    """Prints what moving blocks adds to decoded 224 px images."""
    write_jpegs(f"{scratch}/few", count=128)
    places = {"memory": 4.0, "file": 0.0}
    augmentations = {
        "none": (),
        "crop, flip": (data.random_resized_crop(), data.random_flip()),
    }
    print(f"Moving blocks, decoded 224 px images, {threads} threads, CPU time:")
    for place, budget in places.items():
        for kind, augmentation in augmentations.items():
            pipelines = {}
            for block_size in (None, *BLOCK_SIZES):
                dataset = data.load(
                    "folder",
                    data_dir=f"{scratch}/few",
                    image_size=224,
                    memory_budget=budget,
                    cache_dir=f"{scratch}/cache",
                    shuffle=block_size and "blocks",
                    block_size=block_size,
                )
                pipelines[block_size] = dataset.train_batches(
                    BATCH_SIZE, 0, augmentation
                )
            rates = compare(pipelines, threads, batches=8)
            _, plain = rates.pop(None)
            added = ", ".join(
                f"{size}: {cpu / plain - 1:+.0%}"
                for size, (_, cpu) in rates.items()
            )
            print(
                f"  in {place}, augmentation {kind}: {1e3 * plain:.2f} ms an "
                f"image; block size: added  {added}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["decode", "shuffle"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    parts = {"decode": measure_decode, "shuffle": measure_shuffle}
    for name, measure in parts.items():
        if options.part in (None, name):
            with tempfile.TemporaryDirectory() as scratch:
                measure(scratch, options.threads)


if __name__ == "__main__":
    main()
