"""Where the base model is that ships with the package."""

from pathlib import Path

BASE = Path(__file__).with_name("base")
