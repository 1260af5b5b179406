"""Which files are installed; pyproject.toml says all else."""

from setuptools import find_packages, setup

# The configurations lie beside the package here and within it when installed.
CONFIGS = "keras_transfer.gin"

setup(
    packages=[
        *find_packages(include=["keras_transfer", "keras_transfer.*"]),
        CONFIGS,
    ],
    package_dir={CONFIGS: "gin"},
    package_data={
        CONFIGS: ["*.gin"],
        "": ["*.jinja", "*.css", "*.js"],
        "keras_transfer": ["py.typed", "*.pyi"],
    },
)
