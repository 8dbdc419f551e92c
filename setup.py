"""What pyproject.toml cannot say: `configs/`, on top here, is within the package once it is installed."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=["csd_nerf*"]),
        "csd_nerf.configs",
        "csd_nerf.configs.shared",
    ],
    package_dir={"csd_nerf.configs": "configs"},
)
