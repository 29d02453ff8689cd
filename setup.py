# SPDX-License-Identifier: Apache-2.0
from setuptools import find_packages, setup

# torchrec's own requirement (fbgemm-gpu, CUDA) would overwrite the CPU build, so torch, fbgemm and torchrec
# are installed by `make setup`, which picks the build for the machine; here stands all the rest.
setup(
    name="deltarec",
    version="0.1.0",
    description="Trains multi-task, multi-scenario ranking models with large sharded embedding tables",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages("pipeline") + find_packages("kernels"),
    package_dir={"deltarec": "pipeline/deltarec", "deltarec_kernels": "kernels/deltarec_kernels"},
    install_requires=[
        "filelock",
        "fsspec",
        "numpy",
        "omegaconf>=2.3",
        "pandas",
        "psutil",
        "pyarrow>=17",
        "pydantic>=2.7",
        "pyre-extensions",
        "pyvers",
        "tensorboard",
        "tensordict",
        "torchmetrics==1.0.3",
        "torchx==0.7.0",
        "tqdm",
    ],
    extras_require={
        "dev": ["hypothesis", "pyright", "pytest", "pytest-timeout", "ruff", "scikit-learn"],
    },
    entry_points={"console_scripts": ["deltarec = deltarec.cli:main"]},
)
