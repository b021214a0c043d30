"""ModelScope's text to video (ZeroScope's, too) against diffusers: the whole pipeline, in, out again, and what is not
whole. Its U-Net with gradients is in test_unet.py, its full size in test_keys.py."""

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from parity.test_pipeline import NOISE, PROMPTS, autoencoder, error, refill, text_encoder, tokenizer  # noqa: E402
from parity.test_unet import FAMILIES  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from vidjax.errors import InputError  # noqa: E402
from vidjax.generation.pretrained import load_generator  # noqa: E402
from vidjax.weights import pretrained  # noqa: E402

FRAMES = 3
PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(a folder that diffusers has written, its pipeline)."""
    folder = tmp_path_factory.mktemp("modelscope")
    made = diffusers.TextToVideoSDPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder("sd2"),
        tokenizer=tokenizer(folder / "vocabulary", "sd2"),
        unet=refill(diffusers.UNet3DConditionModel(**FAMILIES["modelscope"][1], sample_size=8)),
        scheduler=diffusers.DDIMScheduler(**NOISE),
    )
    made.save_pretrained(folder / "pipeline")
    made.set_progress_bar_config(disable=True)
    return folder / "pipeline", made


def test_whole_pipelines_agree(saved):
    """Two prompts, the same noise, ten steps with guidance; then pixels."""
    folder, pipe = saved
    noise = np.random.default_rng(0).standard_normal((2, FRAMES, 8, 8, 4), dtype=np.float32)
    how = dict(num_frames=FRAMES, num_inference_steps=10, guidance_scale=9.0)
    expected = {
        kind: pipe(PROMPTS, latents=torch.from_numpy(np.moveaxis(noise, -1, 1).copy()), output_type=kind, **how).frames
        for kind in ("latent", "np")
    }
    generator = load_generator(folder)
    got = generator.latents(PROMPTS, frames=FRAMES, noise=noise, num_steps=10, guidance_scale=9.0)
    assert error(got, np.moveaxis(expected["latent"].numpy(), 1, -1)) <= 1e-3
    assert np.abs(generator.decode(got) - np.round(255 * expected["np"])).max() <= 1


def test_out_again_bit_equal(saved, tmp_path):
    folder, _ = saved
    pretrained.save(pretrained.load(folder).model, folder, tmp_path / "out")
    for part, file in PARTS.items():
        # transformers 5 writes its text encoder without the prefix that released files have.
        before, after = (
            {
                key.removeprefix("text_model."): value
                for key, value in load_file(root / part / f"{file}.safetensors").items()
            }
            for root in (folder, tmp_path / "out")
        )
        assert before.keys() == after.keys()
        assert all(np.array_equal(after[key], value) for key, value in before.items()), part
    index = [json.loads((root / "model_index.json").read_text()) for root in (folder, tmp_path / "out")]
    assert index[0] == index[1]
    diffusers.TextToVideoSDPipeline.from_pretrained(tmp_path / "out")


def test_what_is_not_whole_is_refused_in_one_line(saved, tmp_path):
    folder, _ = saved
    key = "transformer_in.transformer_blocks.0.attn1.to_q.weight"
    tensors = load_file(folder / "unet" / f"{PARTS['unet']}.safetensors")
    for name, change, says in (
        ("missing", None, "unet has no weights"),
        ("renamed", {key: None, key + "s": tensors[key]}, r"unet: .*no key for parameter stem\.temporal_in\.blocks\.0"),
        ("shaped", {key: np.zeros((3, 64), "f")}, r"unet: .*transformer_in.*to_q\.weight has shape \(3, 64\)"),
    ):
        broken = shutil.copytree(folder, tmp_path / name)
        file = broken / "unet" / f"{PARTS['unet']}.safetensors"
        file.unlink()
        if change:
            save_file({k: v for k, v in {**tensors, **change}.items() if v is not None}, file)
        with pytest.raises(InputError, match=says) as raised:
            pretrained.load(broken)
        assert "\n" not in str(raised.value)
