"""The page about a list of references: what was learned of each of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from attrjax.attributes.report import base_flags
from attrjax.checkpoints.attribute import OTHER
from attrjax.data.pictures import png_bytes, to_uint8
from attrjax.data.references import Reference
from attrjax.report import page
from attrjax.runs import RECORD, peak_memory, versions, write_whole

CARD = "card.png"  # a concept's reference and pictures with what was learned, side by side
SHOWN = 2  # pictures beside the reference


def save_card(directory: Path, reference: Reference, after: UInt8[np.ndarray, "n h w 3"]) -> None:
    """Write the pictures that the list's page shows of a concept to its directory."""
    size = after.shape[2], after.shape[1]
    first = Image.fromarray(to_uint8(reference.picture[None])[0]).resize(size, Image.Resampling.LANCZOS)
    # Of different prompts, where there are several.
    chosen = after[:: max(1, len(after) // SHOWN)][:SHOWN]
    write_whole(directory / CARD, png_bytes(np.concatenate([np.asarray(first), *chosen], axis=1)))


def write_list_report(
    directory: Path, config: Mapping[str, Any], places: Sequence[Path], seconds: float
) -> dict[str, Any]:
    """Write ``index.html`` and give the list's results.

    Args:
        directory: of the run.
        config: of the list.
        places: the concepts' directories.
        seconds: that this call of the program took.
    """
    records = {place.name: json.loads((place / RECORD).read_text()) for place in sorted(places)}
    chosen = {name: record["results"]["chosen"] for name, record in records.items()}
    learned = {name: record["config"]["attribute"] for name, record in records.items()}
    cards = [Image.open(directory / name / CARD).convert("RGB") for name in records]
    rows = [
        [
            *(name, learned[name], record["config"]["reference"]),
            *(round(of["gain"], 3), round(of["leakage"], 3), of["step"]),
        ]
        for (name, record), of in zip(records.items(), chosen.values(), strict=True)
    ]
    facts: dict[str, Any] = {"References": len(rows)}
    for attribute in sorted(set(learned.values())):
        own = [of for name, of in chosen.items() if learned[name] == attribute]
        facts[f"Mean gain in {attribute}"] = float(np.mean([of["gain"] for of in own]))
        facts[f"Mean leakage of {OTHER[attribute]}"] = float(np.mean([of["leakage"] for of in own]))
    facts |= {"Peak memory": f"{peak_memory() / 1e9:.1f} GB", "Computed on": versions()["device"]}
    what = " or the ".join(sorted(set(learned.values()), reverse=True))
    word = next(iter(records.values()))["config"]["placeholder"]
    text = page.page(
        f"The {what} of {len(rows)} pictures",
        [
            page.paragraph(
                f"attrjax learned the {what} of each picture in {config['references']}, and no more of "
                "it. On the left what was learned from, beside it what its word then makes."
            ),
            page.picture_table(
                [[card] for card in cards], list(records), ["reference, and made with it"],
                caption="All of them", cell=96 * cards[0].width // cards[0].height,
            ),
            page.data_table(
                ("Name", "Attribute", "Reference", "Gain", "Leakage of the other one", "Step"),
                rows, "What was measured at the step that was kept",
            ),
            page.section("Each by itself", page.links({name: f"{name}/index.html" for name in records})),
            page.section(
                "With your own words",
                page.code_block(
                    f"python -m attrjax.main --config=configs/sample.py {base_flags(config)}\\\n"
                    f"    --config.attributes='(\"{directory / rows[0][0]}\",)' \\\n"
                    f"    --config.prompts='(\"a red {word}\",)' --workdir=runs/mine"
                ),
            ),
            page.section("Results", page.facts_table(facts, "Of all together")),
        ],
        footer="Made with attrjax. This file holds all that it shows, and fetches nothing.",
    )  # fmt: skip
    write_whole(directory / "index.html", text.encode())
    return {"chosen": chosen, "seconds": seconds}
