"""Pictures with several sets of attributes, by one command."""

import json

import pytest
from PIL import Image

from attrjax.checkpoints.attribute import save_attribute, weights_digest
from attrjax.checkpoints.pipeline import load_pipeline
from attrjax.sample import sample
from attrjax.sample_parts import attribute_sets, name_of, prompts_with
from configs import sample as sample_config
from tests.attribute_cases import learned


@pytest.fixture(scope="module")
def files(small_base, tmp_path_factory):
    """Two attributes with one word, and one with another, in directories of runs."""
    directory, base = (
        tmp_path_factory.mktemp("learned"),
        (load_pipeline(small_base), weights_digest(small_base)),
    )
    for name, word, seed in (("mug", "<shape>", 1), ("star", "<shape>", 2), ("delft", "<look>", 3)):
        save_attribute(directory / name, learned(*base, word, "encoder", "lora:2", seed))
    return {name: str(directory / name) for name in ("mug", "star", "delft")}


def config_of(small_base, **changes):
    config = sample_config.get_config()
    config.update({"base": str(small_base), "steps": 2, "seeds": (0, 1), "cache_dir": "", "guidance": 2.0})
    config.update(changes)
    return config


def test_each_set_makes_the_pictures_that_it_makes_alone(files, small_base, tmp_path):
    sets = ((files["mug"],), (files["star"],), (files["mug"], files["delft"]), ())
    prompts = ("a red <shape>", "a <shape> of <look>", "a cat")
    strengths = ((), (0.5,), (1.0, 0.7), ())
    config = config_of(small_base, prompts=prompts, attributes=sets, attribute_strengths=strengths)
    sample(config, str(tmp_path / "all"))
    made = {path.relative_to(tmp_path / "all/samples") for path in (tmp_path / "all").rglob("*-?.png")}
    alone = {
        "mug": ((files["mug"],), (), prompts[:1]),
        "star": ((files["star"],), (0.5,), prompts[:1]),
        "mug+delft": ((files["mug"], files["delft"]), (1.0, 0.7), prompts[:2]),
        "none": ((), (), prompts[2:]),
    }
    for name, (attributes, strength, own) in alone.items():
        changes = {"attributes": attributes, "attribute_strengths": strength, "prompts": own}
        sample(config_of(small_base, **changes), str(tmp_path / name))
        for path in (tmp_path / name / "samples").glob("*.png"):
            again = tmp_path / "all/samples" / name / path.name
            assert again.read_bytes() == path.read_bytes()
            made.remove(again.relative_to(tmp_path / "all/samples"))
    assert not made
    record = json.loads((tmp_path / "all/run.json").read_text())
    assert len(record["chosen"]["pictures"]) == 10
    assert Image.open(tmp_path / "all/grid.png").size[1] > 5 * 128
    first = [tmp_path / f"all/samples/{name}" for name in ("mug", "star", "mug+delft")]
    pictures = {next(path.glob("a-red-*-0.png")).read_bytes() for path in first}
    assert len(pictures) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attribute_strengths": ((1.0,),)}, "must have a list for each of the 2 sets of attributes"),
        ({"attribute_strengths": (0.0, 0.5)}, "attribute_strengths=.*must have a list for each"),
        ({"attribute_timesteps": ((300, 1000), (0, 700))}, "give one .low, high. each"),
        ({"attribute_timesteps": (300, 1000)}, "attribute_timesteps=.*must have a list for each"),
        ({"attributes": ((("x",),),)}, "must be a list of files"),
        ({"attributes": (("x",), 1)}, "must be a list of files"),
        (
            {"prompts": ("a <shape>", "a cat")},
            "no set of attributes makes 'a cat': a prompt has",
        ),
        (
            {"attributes": ("mug", ("delft",))},
            "no prompt is for delft: write one with <look>, and without",
        ),
    ],
)
def test_sets_fit_themselves(changes, message, files, small_base, tmp_path):
    config = config_of(small_base, attributes=((files["mug"],), (files["star"],)), prompts=("a <shape>",))
    sets = changes.get("attributes", ())
    if "mug" in sets:
        changes = {"attributes": (files["mug"], (files["delft"],))}
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        sample(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_files_in_one_list_are_one_set():
    config = sample_config.get_config()
    config.update({"attributes": ("a", "b"), "attribute_strengths": (1.0, 0.5)})
    ((name, one),) = attribute_sets(config).items()
    assert name == "" and one["attributes"] == ("a", "b") and one["attribute_strengths"] == (1.0, 0.5)
    config.update({"attributes": ("a", ("b",)), "attribute_strengths": ()})
    assert [one["attributes"] for one in attribute_sets(config).values()] == [("a",), ("b",)]


def test_sets_are_called_after_what_learned_them_and_never_alike():
    assert name_of(["runs/my_mug", "x/attribute.safetensors", "b c.safetensors"], ()) == "my_mug+x+b-c"
    assert name_of(["runs/lr0.1"], ()) == "lr0.1" and name_of([".."], ()) == "attribute"
    assert name_of(["runs/mug"], {"mug"}) == "mug-2"
    assert name_of(["runs/mug"], {"mug", "mug-2"}) == "mug-3"
    assert name_of([], ()) == "none"


def test_prompts_go_to_the_sets_that_know_their_words():
    prompts = ["a <s>", "a <t>", "a <s> of <t>", "a cat"]
    words = {"<s>", "<t>"}
    assert prompts_with({"<s>"}, words, prompts, "x") == ["a <s>"]
    assert prompts_with(words, words, prompts, "x") == prompts[:3]
    assert prompts_with(set(), words, prompts, "x") == ["a cat"]
    # A word may lie within another.
    assert prompts_with({"sks2"}, {"sks", "sks2"}, ["a sks", "a sks2"], "x") == ["a sks2"]
    assert prompts_with({"sks"}, {"sks", "sks2"}, ["a sks", "a sks2"], "x") == ["a sks"]
