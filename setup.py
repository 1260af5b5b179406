"""Packaging of keras_transfer."""

import pathlib
import re

from setuptools import find_packages, setup

VERSION = re.search(
    r'__version__ = "(.+)"',
    pathlib.Path(__file__)
    .with_name("keras_transfer")
    .joinpath("__init__.py")
    .read_text(encoding="utf-8"),
)[1]
RAY = "ray>=2.40"
HUB = "keras-hub>=0.21"

setup(
    name="keras_transfer",
    version=VERSION,
    description=(
        "What did transfer learning give me, and where in the network is it?"
    ),
    long_description=pathlib.Path(__file__)
    .with_name("README.md")
    .read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["keras_transfer", "keras_transfer.*"]),
    package_data={"keras_transfer.study": ["report.html.jinja"]},
    install_requires=[
        # Keras' optimizer internals are overridden in one place
        # (training/optimizers.py), so its minor version is pinned.
        "keras>=3.12,<3.16",
        "tensorflow>=2.20,<2.22",
        "tensorboard",
        "tensorflow-datasets>=4.9.9",
        "tensorflow-probability>=0.25,<0.26",
        "tf-keras>=2.20,<2.22",
        "absl-py",
        "filelock>=3.30",
        "gin-config>=0.5",
        # tensorflow-datasets needs it to prepare data, and does not say so.
        "importlib_resources",
        "jinja2",
        "matplotlib",
        "mlxtend",
        "numpy",
        "pandas",
        "pydantic>=2",
        "safetensors",
        "scikit-learn",
        "scipy",
        "threadpoolctl",
        "tqdm",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.20,<2.22"],
        # Many runs side by side: bin/reproduce --executor=ray.
        "ray": [RAY],
        # KerasHub's models.
        "hub": [HUB],
        "test": [
            HUB,
            "hypothesis",
            "opencv-python-headless",
            "pillow",
            "pytest",
            "pytest-xdist",
            RAY,
            "ruff",
            "scipy",
        ],
        # A reference implementation for some tests, skipped without it.
        "torch": ["torch==2.13.0"],
    },
)
