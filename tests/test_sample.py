"""Pictures from prompts, as a user of the library makes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from PIL import Image, ImageFont

from attrjax.checkpoints.lora import save_lora
from attrjax.checkpoints.pipeline import load_pipeline
from attrjax.checkpoints.textual_inversion import load_textual_inversion, save_textual_inversion, with_words
from attrjax.data.pictures import load_picture, png_bytes, to_uint8
from attrjax.data.prompts import encode_negative, text_encoder, tokenize
from attrjax.generate import ENCODER_NOISE, Settings, conditions, generate, initial_noise, make_jobs
from attrjax.models.adapters import init_lora
from attrjax.report.grid import labelled_grid, wrap
from attrjax.runs import slug
from attrjax.sample_parts import load_adapters
from tests.tiny import tiny_pipeline

FAST = Settings(steps=2, guidance=3.0)


@pytest.fixture(scope="module")
def pipeline(small_base):
    return load_pipeline(small_base)


@pytest.fixture(scope="module")
def cat(pipeline):
    """Two seeds of one prompt, one by one."""
    return generate(pipeline, ["a cat"], [3, 4], FAST)


def difference(a, b):
    """Largest difference of two pictures in grey levels."""
    return np.abs(np.int32(a) - np.int32(b)).max()


def test_pictures_have_the_bases_size_and_differ_by_seed(cat):
    assert cat.shape == (2, 64, 64, 3) and cat.dtype == np.uint8
    assert difference(*cat) > 20


def test_same_seed_is_the_same_picture_to_the_last_bit(pipeline, cat):
    assert np.array_equal(generate(pipeline, ["a cat"], [3, 4], FAST), cat)


def test_looking_on_changes_nothing(pipeline, cat):
    seen = []
    assert np.array_equal(generate(pipeline, ["a cat"], [3, 4], FAST, on_step=seen.append), cat)
    assert seen == [0, 1] * 2


def test_a_picture_does_not_depend_on_its_batch(pipeline, cat):
    # Three jobs in batches of two: the last batch is filled up.
    batched = generate(pipeline, ["a cat"], [4, 9, 3], FAST._replace(batch_size=2))
    assert difference(batched[[2, 0]], cat) <= 1
    assert difference(batched[1], cat[0]) > 20


def test_given_latents_are_the_initial_noise(pipeline, cat):
    noise = np.stack([initial_noise(job, (8, 8, 4)) for job in make_jobs(["a cat"], [3, 4])])
    swapped = generate(pipeline, ["a cat"], [3, 4], FAST, latents=noise[::-1])
    assert np.array_equal(swapped, cat[::-1])


def test_prompts_matter(pipeline, cat):
    assert difference(generate(pipeline, ["a teapot"], [3], FAST)[0], cat[0]) > 2


def test_negative_prompts_matter_with_guidance_only(pipeline, cat):
    guided = generate(pipeline, ["a cat"], [3], FAST._replace(negative_prompt="a teapot"))
    assert difference(guided[0], cat[0]) > 2
    plain = FAST._replace(guidance=1.0)
    with_negative = generate(pipeline, ["a cat"], [3], plain._replace(negative_prompt="a teapot"))
    assert np.array_equal(with_negative, generate(pipeline, ["a cat"], [3], plain))


def test_guidance_leads_nowhere_outside_of_its_interval(pipeline, cat):
    never = FAST._replace(guidance_interval=(900, 901))  # between two steps
    plain, away = (
        generate(pipeline, ["a cat"], [3], never._replace(negative_prompt=text)) for text in ("", "a teapot")
    )
    assert np.array_equal(plain, away)
    assert difference(plain[0], cat[0]) > 2


def test_stochastic_samplers_draw_a_pictures_noise_from_its_seed(pipeline):
    settings = FAST._replace(sampler="euler_ancestral", guidance=1.0, batch_size=2)
    forward = generate(pipeline, ["a cat"], [3, 4], settings)
    backward = generate(pipeline, ["a cat"], [4, 3], settings)
    assert np.array_equal(forward, backward[::-1])
    assert difference(*forward) > 20


def test_a_weak_redraw_keeps_the_initial_picture(pipeline, cat):
    rows, columns = np.mgrid[0:64, 0:64] / 32 - 1
    picture = np.stack([rows, columns, rows * columns], axis=-1).astype(np.float32)
    vae = pipeline.vae

    @jax.jit
    def there_and_back(params, picture):
        moments = vae.module.apply({"params": params}, picture, method="encode")
        latents = moments.sample(jax.random.fold_in(jax.random.key(3), ENCODER_NOISE))
        return vae.module.apply({"params": params}, latents, method="decode")

    kept = to_uint8(there_and_back(vae.params, picture[None]))[0]
    settings = Settings(steps=50, strength=0.02, guidance=1.0)
    redrawn = generate(pipeline, ["a cat"], [3], settings, init_picture=picture)[0]
    mean = [np.abs(kept.astype(float) - other).mean() for other in (redrawn, cat[0])]
    assert mean[0] < mean[1] / 3


def test_a_lora_changes_the_picture_by_its_strength(pipeline, cat, tmp_path):
    adapter = init_lora(jax.random.key(0), pipeline.unet.params, [(r".*attn[12]/to_[qkv]/kernel", 2)])
    adapter = jax.tree.map(lambda leaf: leaf + 0.3, adapter)
    path = save_lora(tmp_path / "lora.safetensors", {"unet": adapter})
    pictures = [
        generate(pipeline, ["a cat"], [3], FAST, adapters=load_adapters(pipeline, [path], [strength]))[0]
        for strength in (0.0, 1.0, {"down": 0.0, "mid": 0.0, "up": 1.0})
    ]
    assert difference(pictures[0], cat[0]) == 0
    assert difference(pictures[1], cat[0]) > 2
    assert difference(pictures[2], pictures[1]) > 0 and difference(pictures[2], cat[0]) > 0


def test_lora_strengths_are_one_for_each_file(pipeline):
    with pytest.raises(ValueError, match="2 lora_strengths for 1 loras"):
        load_adapters(pipeline, ["a.safetensors"], [1.0, 0.5])


def test_a_learned_word_is_what_its_vectors_are(pipeline, tmp_path):
    embeddings = pipeline.text_encoder.params["text_model"]["embeddings"]
    table = np.asarray(embeddings["token_embedding"]["embedding"])
    rows = table[pipeline.tokenizer("a cat")["input_ids"][1:-1]]
    path = save_textual_inversion(tmp_path, "<thing>", {"text_encoder": rows})
    learned = with_words(pipeline, load_textual_inversion(path))
    expected = text_encoder(pipeline)(["a photo of a cat"]).context
    assert np.allclose(text_encoder(learned)(["a photo of <thing>"]).context, expected, atol=1e-5)


def test_long_prompts_are_cut_where_the_tokenizer_cuts_them(pipeline, caplog):
    prompt = " ".join(f"word{i}" for i in range(60))
    logging.use_absl_handler()
    with caplog.at_level("WARNING", logger="absl"):
        ids = tokenize(pipeline.tokenizer, [prompt, "a cat"])
    reference = pipeline.tokenizer([prompt, "a cat"], padding="max_length", truncation=True, max_length=77)[
        "input_ids"
    ]
    assert np.array_equal(ids, reference)
    assert len(caplog.records) == 1
    lost = caplog.records[0].getMessage().replace(" ", "")
    assert "cutat77" in lost and "word59" in lost and "word1w" not in lost


def test_sdxl_reads_both_towers_sizes_and_zeros_for_no_negative_prompt():
    pipeline = tiny_pipeline("tiny", "sdxl")
    encode = text_encoder(pipeline)
    text, negative = encode(["a cat"]), encode_negative(encode, "", pipeline.model_index)
    assert text.context.shape == (1, 77, 8 + 16) and text.pooled.shape == (1, 16)
    assert not negative.context.any() and not negative.pooled.any()
    assert encode_negative(encode, "dog", pipeline.model_index).context.any()
    context, added = conditions(pipeline, text, negative, FAST, (8, 12))
    assert np.array_equal(context, jnp.concatenate([negative.context, text.context]))
    assert np.array_equal(added["time_ids"], [[64, 96, 0, 0, 64, 96]] * 2)
    assert np.array_equal(added["text_embeds"], jnp.concatenate([negative.pooled, text.pooled]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 60}, "height=60 must be a multiple of 8; the nearest is 64"),
        ({"width": -8}, "width=-8 must be"),
        ({"sampler": "eulr"}, "unknown sampler 'eulr'"),
        ({"steps": 0}, "steps=0"),
        ({"guidance_interval": (500, 200)}, r"guidance_interval=\(500, 200\) must be \(low, high\)"),
        ({"guidance_rescale": 1.5}, r"guidance_rescale=1.5 must be from 0 to 1"),
    ],
)
def test_bad_settings_are_named(pipeline, change, message):
    with pytest.raises(ValueError, match=message):
        generate(pipeline, ["a cat"], [0], FAST._replace(**change))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 8, 4), "must be .n, height, width, channels. with n = 4 .* or 2"),
        ((3, 8, 8, 4), "n = 4"),
        ((2, 4, 8, 8), "channels last"),
    ],
)
def test_latents_of_another_shape_are_refused(pipeline, shape, message):
    with pytest.raises(ValueError, match=message):
        generate(pipeline, ["a", "b"], [0, 1], FAST, latents=np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("prompts", "seeds", "message"),
    [((), (0,), "prompts"), ((1,), (0,), "prompts"), (("a",), (-1,), "seeds"), (("a", "a"), (0,), "twice")],
)
def test_jobs_need_prompts_and_seeds(prompts, seeds, message):
    with pytest.raises(ValueError, match=message):
        make_jobs(prompts, seeds)


def test_a_picture_that_is_not_finite_is_an_error(pipeline):
    params = jax.tree.map(lambda leaf: leaf, pipeline.vae.params)
    params["decoder"]["conv_out"]["bias"] = jnp.full((3,), jnp.nan)
    broken = pipeline._replace(vae=pipeline.vae._replace(params=params))
    with pytest.raises(ValueError, match="'a cat', seed 3, is not finite"):
        generate(broken, ["a cat"], [3], FAST)


def test_grey_levels_are_rounded_to_even_and_clipped():
    # 0 is 127.5 of 255, and the even neighbour of that is 128.
    values = np.float32([-2, -1, 0, 1, 2, 1 / 255])
    assert to_uint8(values).tolist() == [0, 0, 128, 255, 255, 128]


def test_a_picture_is_cut_to_shape_and_resized(tmp_path):
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 10:30] = 255  # more than is kept, so that resizing sees no edge
    path = tmp_path / "wide.png"
    path.write_bytes(png_bytes(wide))
    assert np.array_equal(load_picture(path, 16, 16), np.ones((16, 16, 3), np.float32))
    Image.new("RGBA", (20, 20), (90, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.array_equal(load_picture(tmp_path / "clear.png", 16, 16), np.ones((16, 16, 3), np.float32))
    with pytest.raises(ValueError, match="is no picture of a format that can be read"):
        path.write_text("no picture")
        load_picture(path, 16, 16)
    with pytest.raises(FileNotFoundError, match="there is no picture"):
        load_picture(tmp_path / "none.png", 16, 16)


def test_grid_holds_every_picture_unchanged():
    pictures = [[np.full((128, 96, 3), 20 * (2 * r + c + 1), np.uint8) for c in range(2)] for r in range(3)]
    page = np.asarray(labelled_grid(pictures, ["a cat", "a very long prompt " * 9, ""], ["seed 0", "seed 1"]))
    for row in pictures:
        for picture in row:
            assert (page == picture[0, 0]).all(-1).sum() >= 128 * 96
    with pytest.raises(ValueError, match="1 row and 2 column labels"):
        labelled_grid(pictures, ["a cat"], ["seed 0", "seed 1"])


def test_labels_are_wrapped_to_their_width():
    font = ImageFont.load_default(16)
    lines = wrap("a cat and Donaudampfschifffahrtsgesellschaft on it", font, 90)
    assert all(font.getlength(line) <= 90 for line in lines) and len(lines) > 3
    assert "".join(lines).replace(" ", "") == "acatandDonaudampfschifffahrtsgesellschaftonit"


def test_file_names_of_prompts_are_safe_and_distinct():
    prompts = [
        "a cat",
        "A cat",
        "a  cat",
        "a-cat",
        "a cat!",
        "猫",
        "狗",
        "",
        "../../etc/passwd",
        "x" * 300,
        "x" * 301,
    ]
    names = [slug(prompt) for prompt in prompts]
    assert names[0] == "a-cat"
    assert len(set(names)) == len(names)
    assert all(name and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names)
    assert max(map(len, names)) < 80
