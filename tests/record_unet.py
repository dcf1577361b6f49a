"""Record what torch diffusers' UNet answers, for tests without torch: ``python -m tests.record_unet``."""

from pathlib import Path

import numpy as np

from attrjax.models.unet import cross_attention_names
from tests import cases, unet_reference, unets

# Gradients of larger parameters are compared live only, to keep the files small.
LARGEST = 2048


def main() -> None:
    """Write ``tests/recorded/unet_FAMILY.npz``."""
    for family in cases.UNET:
        recorded = unet_reference.answers(family)
        recorded = {k: v for k, v in recorded.items() if k == "out" or v.size <= LARGEST}
        contexts = unet_reference.layer_contexts(family, len(cross_attention_names(unets.small_unet(family))))
        recorded["layers"] = unet_reference.layer_answers(family, contexts)
        np.savez_compressed(Path(__file__).parent / "recorded" / f"unet_{family}.npz", **recorded)


if __name__ == "__main__":
    main()
