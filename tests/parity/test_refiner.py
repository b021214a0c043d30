"""I2VGen-XL's second stage against torch modules of its layout (refiner_layout.py), on random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from as_users import CLIP, latents_of  # noqa: E402
from flax import nnx  # noqa: E402
from parity import refiner_layout as layout  # noqa: E402
from parity.gradients import check_gradients  # noqa: E402
from parity.test_pipeline import error, refill  # noqa: E402
from parity.test_videocrafter import Held, normal, to_torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from starts import program  # noqa: E402
from test_configs import config  # noqa: E402
from tiny_folder import I2VGEN, write_folder  # noqa: E402

from vidjax.data.video_reading import probe, read_frames  # noqa: E402
from vidjax.errors import InputError  # noqa: E402
from vidjax.generation.pictures import fit_pictures  # noqa: E402
from vidjax.generation.pretrained import load_generator  # noqa: E402
from vidjax.models.keys import OneKey  # noqa: E402
from vidjax.models.unet import UNet  # noqa: E402
from vidjax.recipes.build import build  # noqa: E402
from vidjax.serving.worker import open_model  # noqa: E402
from vidjax.weights import convert, pretrained  # noqa: E402
from vidjax.weights.i2vgen_refiner import RefinerFile  # noqa: E402
from vidjax.weights.video_file import Entries  # noqa: E402

FRAMES, TOKENS = 2, 24
TINY = dict(width=64, mult=(1, 2), n=1, attends=(True, False), head=16, tokens_dim=TOKENS)
FULL = dict(width=320, mult=(1, 2, 4, 4), n=2, attends=(True, True, True, False), head=64, tokens_dim=1024)
WORDS = dict(positive_prompt=" the", negative_prompt="a")


def write(file, **options):
    """Writes a second stage and its settings; returns its U-Net."""
    unet = refill(layout.UNet(**{**TINY, **options}))
    save_file({key: value.numpy() for key, value in unet.state_dict().items()}, file)
    file.with_suffix(".json").write_text(json.dumps({"UNet": {"type": "UNetSD_SR600"}, "embedder": WORDS}))
    return unet


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(the file in a folder of the first stage, with its settings beside it; its U-Net)."""
    folder = write_folder(tmp_path_factory.mktemp("refiner") / "i2vgen", configs=I2VGEN)
    return folder / "sr.safetensors", write(folder / "sr.safetensors")


@pytest.fixture(scope="module")
def small(written):
    """The same of one level, which compiles sooner."""
    file = written[0].with_name("small.safetensors")
    return file, write(file, mult=(1,), attends=(True,))


def test_unet_and_its_gradients(written):
    """On maps of even and odd height half way down: 10 rows become 6."""
    path, unet = written
    file, loaded = RefinerFile(path), pretrained.load(path)
    x, t, weight = normal(2, FRAMES, 10, 6, 4), np.array([3, 641]), normal(2, FRAMES, 10, 6, 4, seed=1)
    tokens = normal(2, 5, TOKENS, seed=2)
    video = to_torch(x).requires_grad_()
    out = unet(video, torch.from_numpy(t), torch.from_numpy(tokens))
    (out * to_torch(weight)).sum().backward()
    graph, state = nnx.split(loaded.model.unet)

    def loss(state, x):
        got = nnx.merge(graph, state)(x, jnp.broadcast_to(t[:, None], (2, FRAMES)), jnp.asarray(tokens))
        return (got * weight).sum(), got

    (_, got), (grads, into) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(state, jnp.asarray(x))
    off = error(np.moveaxis(got, -1, 2), out.detach().numpy())
    print(f"forward {off:.1e}, input's gradient {error(np.moveaxis(into, -1, 2), video.grad.numpy()):.1e}")
    assert off <= 1e-5
    assert error(np.moveaxis(into, -1, 2), video.grad.numpy()) <= 1e-4
    grads = {".".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(grads)}
    theirs = {key: value.grad.numpy() for key, value in unet.named_parameters()}
    expected = convert.fit({k: v.shape for k, v in grads.items()}, Entries(theirs, file.entries()), [])
    check_gradients(grads, expected)


def test_from_a_smaller_video_to_latents(small):
    """Enlarged, back to noise under the negative prompt, and from there under a prompt with the words that its settings
    add, guided and rescaled. In 9 steps all times are entries of the table; else they take the noise levels of the
    nearest entry where they make x0 of v, we those of the time."""
    path, unet = small
    generator = load_generator(path)
    assert (generator.size, generator.defaults.num_steps) == ((16, 720, 1280), 30)
    assert (generator.defaults.guidance_scale, generator.defaults.rescale) == (9.0, 0.3)
    low, size = np.random.default_rng(0).integers(0, 256, (1, FRAMES, 7, 9, 3), np.uint8), (20, 12)
    shape, model, key = (1, FRAMES, 10, 6, 4), generator.model, jax.random.fold_in(jax.random.key(3), 0)
    text = lambda prompt: model.text(jnp.asarray(generator.tokenize(prompt)[None]))["tokens"]
    own, away = (torch.from_numpy(np.array(text(prompt))) for prompt in ("b the", "a"))
    pixels = torch.from_numpy(np.moveaxis(low[0] / np.float32(127.5) - 1, -1, 1).copy())
    larger = torch.nn.functional.interpolate(pixels, size, mode="bilinear").numpy()
    begin = to_torch(np.asarray(model.codec.encode(jnp.asarray(np.moveaxis(larger, 1, -1)[None]))))
    said = lambda x, t, tokens: unet(x, torch.tensor([t]), tokens)

    draw = lambda i: to_torch(np.asarray(jax.random.normal(jax.random.fold_in(key, i), shape)))

    def guided(x, t):
        wanted, null = said(x, t, own), said(x, t, away)
        out = null + 9 * (wanted - null)
        return out * (0.3 * wanted.std() / out.std() + 0.7)

    for steps, most in ((9, 1e-3), (12, 1e-2)):
        got = generator.latents(["b"], lowres=low, frames=FRAMES, size=size, num_steps=steps, seed=3)
        with torch.no_grad():
            noise = layout.go_back(lambda x, t: said(x, t, away), begin, steps)
            expected = layout.go_forth(guided, noise, steps, draw)
        off = error(np.moveaxis(got, -1, 2), expected.numpy())
        print(f"{steps} steps: {off:.1e}")
        assert off <= most


def test_out_again_bit_equal(written, tmp_path):
    path, _ = written
    pretrained.save_single_file(pretrained.load(path).model, path, tmp_path / "out")
    before, after = load_file(path), load_file(tmp_path / "out" / path.name)
    assert before.keys() == after.keys()
    for key, value in after.items():
        np.testing.assert_array_equal(value, before[key], err_msg=key)
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"sr.safetensors", "sr.json"}


def test_both_stages_of_a_picture_as_a_user_samples_them(small, env, tmp_path):
    """The picture is the first stage's; both videos are written, the second one as large as asked."""
    file, folder, picture = small[0], small[0].parent, tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(picture)
    ask = (f"--pretrained={folder}", f"--image={picture}", "--prompt=the cat", "--frames=2", "--height=16")
    ask += ("--width=24", "--num_steps=2", "--seed=5", "--watermark=False", "--format=webp", "--all_stages")
    refine = (f"--refine={file}", "--refine_size=32,40", f"--out={tmp_path / 'out'}")
    done = program("sample", *ask, *refine, env=env)
    assert done.returncode == 0, done.stderr
    for place, size in (("2x16x24", (24, 16)), (".", (40, 32))):
        with Image.open(tmp_path / "out" / place / "00-the-cat-seed5.webp") as video:
            assert (video.n_frames, video.size) == (2, size)
    about = json.loads((tmp_path / "out" / "00-the-cat-seed5.json").read_text())
    assert about["refine"] == str(file) and about["sampler"] == "dpmpp_2m_sde"
    for wrong, says in (
        ((f"--refine={folder}",), "makes no finished video larger"),
        (("--refine_size=32,40",), "name the model, --refine"),
        ((*refine, "--motion=1,1"), "leave --motion out"),
        ((*refine, "--all_stages", "--num_steps=701", f"--out={tmp_path / 'none'}"), "must lie in 1..700"),
    ):
        done = program("sample", *ask[:-1], *wrong, env=env)
        assert done.returncode == 1 and says in done.stderr, done.stderr
    assert not list((tmp_path / "none").glob("*"))  # refused before the first video is made


def test_a_clip_of_the_user_s_is_made_larger(small, env, tmp_path):
    """By the file alone: its first frames, cut to the sides of the video; a tall one would turn it."""
    file, _ = small
    how = ("--prompt=the cat", f"--video={CLIP}", "--height=32", "--width=40")
    got = latents_of(f"--pretrained={file}", tmp_path / "out", env, *how)
    low = fit_pictures(list(read_frames(CLIP, range(2))), (32, 40))[None]
    expected = load_generator(file).latents(["the cat"], lowres=low, frames=2, size=(32, 40), num_steps=2)
    assert error(got, np.asarray(expected)) <= 1e-5
    about = json.loads((tmp_path / "out" / "00-the-cat-seed0.json").read_text())
    assert about["video"] == [str(CLIP)] and about["fps"] == probe(CLIP).fps
    for model, more, says in (
        (file, ("--refine=x",), "leave --refine out"),
        (file.parent, (), "makes no finished video larger, as I2VGen-XL's second stage does"),
        (file, ("--frames=999",), "frames, not 999; give --frames="),
    ):
        done = program("sample", f"--pretrained={model}", *how, *more, env=env)
        assert done.returncode == 1 and says in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_at_full_size():
    """Every key is used once, every parameter filled; it is ModelScope's U-Net, to which the four options add none."""
    with torch.device("meta"):
        theirs = layout.UNet(**FULL).state_dict()
    state = {key: np.broadcast_to(np.uint8(0), tuple(value.shape)) for key, value in theirs.items()}
    file = object.__new__(RefinerFile)
    file.__dict__.update(path="model", all=Held(state))
    unet = file.unet()
    assert (unet.heads, unet.border, len(unet.free_u)) == ((5, 10, 20, 20), 2, 2)
    model = nnx.eval_shape(lambda: UNet(unet, rngs=OneKey()))
    leaves = {path: leaf.shape for path, leaf in convert.parameters(model).items()}
    fitted = convert.fit(leaves, Entries(state, file.entries()), [])
    assert fitted.keys() == leaves.keys()
    assert sum(value.size for value in fitted.values()) == 1_411_233_860


def test_files_that_do_not_fit_are_refused_in_one_line(written, tmp_path):
    path, _ = written
    state, key = load_file(path), "middle_block.2.proj_out.weight"
    for name, change, says in (
        ("missing", {key: None}, r"the U-Net: .*no key for parameter mid.0.temporal_attention.proj_out.kernel"),
        ("renamed", {key: None, key + "s": state[key]}, "no parameter for key mid.0.temporal_att"),
        ("shaped", {key: np.zeros((3, 64, 1), "f")}, r"proj_out.* has shape \(3, 64, 1\)"),
        ("first", {"fps_embedding.0.weight": np.zeros((4, 4), "f")}, "has fps_embedding.0.weight: it is none of I2VG"),
        ("headless", {"out.2.weight": None}, r"second stage's \('out.2.weight' is missing\): get it again"),
    ):
        found = {k: v for k, v in {**state, **change}.items() if v is not None}
        save_file(found, path.parent / f"{name}.safetensors")
        with pytest.raises(InputError, match=says) as raised:
            pretrained.load(path.parent / f"{name}.safetensors")
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"makes finished videos larger; that is vidjax\.sample --refine"):
        open_model(str(path))
    made = config("videocrafter:temporal") | dict(pretrained=str(path), prompt="the fox")
    with pytest.raises(InputError, match="makes finished videos larger; it is not tuned here"):
        build(made, "tune", tmp_path)
    save_file(state, tmp_path / "alone.safetensors")
    with pytest.raises(InputError, match=r"is a U-Net alone, put it into the folder of I2VGen-XL .* has no unet/"):
        pretrained.load(tmp_path / "alone.safetensors")
