"""What setup.cfg cannot say: the bundle, at the top level of a clone, is inside the package that is installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["monai_lcs*"]), "monai_lcs.bundles"],
    package_dir={"monai_lcs.bundles": "bundles"},
)
