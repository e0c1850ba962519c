"""Names the packages; everything else stands in pyproject.toml.

``packages.find`` in pyproject.toml can't be combined with packages that lie elsewhere, as ``kernels/`` and
``benchmarks/`` do, which are imported as ``fastassign.kernels`` and ``fastassign.benchmarks``. So the search is
spelled out here.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["fastassign", "fastassign.*"]),
        "fastassign.benchmarks",
        *(f"fastassign.benchmarks.{package}" for package in find_packages("benchmarks", exclude=["questions"])),
        "fastassign.kernels",
        *(f"fastassign.kernels.{package}" for package in find_packages("kernels")),
    ],
)
