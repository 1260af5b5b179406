#!/usr/bin/env python3
"""Time and memory of the singular values of every layer of a ResNet-50.

    python benchmarks/spectrum.py --image_size=224

Weights are random normal, so that no layer is 0. Beside the whole network, one
3x3 convolution is timed against NumPy's decomposition of one dense block per
frequency without the use of conjugate symmetry or threads.
"""

import argparse
import resource
import statistics
import time

import numpy as np

from keras_transfer import models
from keras_transfer.analysis.spectrum import conv_spectrum, model_spectra


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    size = args.image_size
    net = models.fixup_resnet50(1000, (size, size, 3))
    rng = np.random.default_rng(0)
    for variable in net.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) / 50)
    began = time.perf_counter()
    (spectra,) = model_spectra([net])
    seconds = time.perf_counter() - began
    values = sum(int(s.counts.sum()) for s in spectra.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"ResNet-50 at {size} px: {len(spectra)} layers, {values:,} singular "
        f"values, {seconds:.1f} s; peak memory of the process {peak:.1f} GiB"
    )

    kernel, side = rng.normal(size=(3, 3, 64, 64)), 28
    times = {plain: [], conv_spectrum: []}
    for _ in range(args.repeats):
        for measured, spent in times.items():
            began = time.perf_counter()
            measured(kernel, (side, side))
            spent.append(time.perf_counter() - began)
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    print(
        f"3x3, 64 to 64 channels, {side}x{side}: ratio to every block's "
        f"decomposition, median of {args.repeats}: "
        f"{statistics.median(ratios):.2f} (floor 1/2, by symmetry)"
    )


def plain(kernel, feature_map):
    """Sedghi, Gupta and Long's method as it stands in their paper."""
    blocks = np.fft.fft2(kernel, feature_map, axes=(0, 1))
    return np.linalg.svd(blocks, compute_uv=False)


if __name__ == "__main__":
    main()
