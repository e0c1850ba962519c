"""Names the packages; everything else stands in pyproject.toml.

``packages.find`` in pyproject.toml can't be combined with a package that lies elsewhere, as ``kernels/`` does, which
is imported as ``fastassign.kernels``. So the search is spelled out here.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["fastassign", "fastassign.*"]),
        "fastassign.kernels",
        *(f"fastassign.kernels.{package}" for package in find_packages("kernels")),
    ],
)
