"""The tokenizer of the bundled base, trained on the world's captions and common English.

python -m attrjax.main --config=configs/attrworld/tokenizer.py --workdir=runs/tokenizer

Writes runs/tokenizer/tokenizer in CLIP's format. It takes 3 s on one core of a CPU and needs no data. The
result is the same everywhere: 1840 tokens, which attrjax/attrworld/base/tokenizer holds.
"""

from ml_collections import ConfigDict

from attrjax.arguments import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """All that can be set, with ``--config.NAME=VALUE``."""
    parse_arg(arg)
    config = ConfigDict()
    config.task = "tokenizer"
    config.vocab_size = 4096  # at most; fewer where no two symbols are left that stand together twice
    config.captions = 4000  # drawn beside attrjax/attrworld/english.txt
    config.seed = 0  # of the captions
    return config
