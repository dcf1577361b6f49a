"""Where the base model and the pictures are that ship with the package."""

from pathlib import Path

BASE = Path(__file__).with_name("base")
REFERENCES = Path(__file__).with_name("references")  # reference_pictures.py made them


def base_or_bundled(base: str) -> str:
    """A base's name as it is given, or where the bundled base is.

    Raises:
        ValueError: no name is given, and this copy of the package has no bundled base.
    """
    if not base and not (BASE / "model_index.json").is_file():
        raise ValueError(
            "config.base is empty, and this copy of attrjax has no bundled base: give a directory in "
            "diffusers layout or a Hub id, --config.base=DIR"
        )
    return base or str(BASE)


def usual_guidance(base: str) -> float:
    """The strength of classifier-free guidance that suits a base, by the name that it is given.

    The bundled one ("") was measured at 4; more makes its pictures grainy. 7.5 is Stable Diffusion's.
    """
    return 7.5 if base else 4.0
