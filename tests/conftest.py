"""Every test runs with shape and type checks on, without network, and on the CPU unless it asks for more."""

import atexit
import ctypes
import gc
import json
import os
import shutil
import string
import sys
import tempfile
from importlib.metadata import version

import psutil
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests compile much and run little. Processor seconds to compile a small U-Net's training step on two cores: 21.9 with
# XLA's defaults, 16.9 without optimisation, 10.2 with all but the preset, which spares another eighth.
FAST = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
FAST += " --xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
if version("jaxlib").startswith("0.10."):  # newer ones do not know it, and end at once
    FAST += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{FAST} {os.environ.get('XLA_FLAGS', '')}"
# Of what tests compile little is compiled again: a cache took 26 processor seconds to fill and spared 8.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # then each of 240 processes would compile all that it imports
    os.environ["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp(prefix="vidjax-bytecode-")
    atexit.register(shutil.rmtree, os.environ["PYTHONPYCACHEPREFIX"], ignore_errors=True)

import starts  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("vidjax", "beartype.beartype")
gc.disable()  # until all is imported: a fifth of the processor seconds of collecting tests went to it


KEPT = 3 << 30  # bytes that a worker may have between two files
LONG = ("test_tuning", "test_main", "test_parameter_paths", "test_configs", "test_tuning_recipes")
LONG += ("test_motion_director", "test_processes")


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=2, help="How often tests/test_faults.py kills a run.")


def pytest_collection_modifyitems(items):
    """The files that take longest first, so that no worker is left alone with one of them."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_collection_finish():
    """Tracing makes many small things, and few that go in circles: by default a tenth of all time goes to look for
    those, over all that was imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="session")
def env():
    """Of a program that a test starts as a user does."""
    return starts.ENV


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    """What files compiled, before it fills the memory: to forget and compile anew is dear."""
    yield
    if psutil.Process().memory_info().rss > KEPT:
        import jax

        jax.clear_caches()
        gc.collect()
        if sys.platform == "linux":  # else what is free would count as had, and each file forget anew
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A CLIPModel of random weights in transformers' layout, 16 pixels, written without torch."""
    import numpy as np
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    folder.mkdir()
    letters = [a + end for a in string.ascii_lowercase for end in ("", "</w>")]
    vocabulary = [*letters, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 16})
    )
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 16, "crop_size": 16}))
    tower = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = dict(tower, vocab_size=len(vocabulary), max_position_embeddings=16, eos_token_id=len(vocabulary) - 1)
    config = dict(text_config=text, vision_config=dict(tower, image_size=16, patch_size=8), projection_dim=6)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"logit_scale": (), "text_projection.weight": (6, 8), "visual_projection.weight": (6, 8)}
    shapes |= {
        "text_model.embeddings.token_embedding.weight": (len(vocabulary), 8),
        "text_model.embeddings.position_embedding.weight": (16, 8),
        "vision_model.embeddings.class_embedding": (8,),
        "vision_model.embeddings.patch_embedding.weight": (8, 3, 8, 8),
        "vision_model.embeddings.position_embedding.weight": (5, 8),
    }
    wide = {"self_attn." + name: (8, 8) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    wide |= {"mlp.fc1": (16, 8), "mlp.fc2": (8, 16), "layer_norm1": (8,), "layer_norm2": (8,)}
    layers = {f"{part}_model.encoder.layers.0.{name}": s for part in ("text", "vision") for name, s in wide.items()}
    norms = ("text_model.final_layer_norm", "vision_model.pre_layrnorm", "vision_model.post_layernorm")
    for name, shape in (layers | {name: (8,) for name in norms}).items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    rng = np.random.default_rng(0)
    tensors = {key: np.asarray(0.5 * rng.standard_normal(s), np.float32) for key, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def network_files(tmp_path_factory):
    """Random weights of I3D and InceptionV3 in the published layouts, written without torch: {network: file}."""
    import math

    import numpy as np
    from flax import nnx
    from safetensors.numpy import save_file

    from vidjax.models.i3d import I3D
    from vidjax.models.inception import InceptionV3
    from vidjax.models.keys import OneKey
    from vidjax.weights.convert import parameters, unfit

    rng, files = np.random.default_rng(0), {}
    renamed = [(r"\.conv\.", ".conv3d."), (r"^logits\.", "logits.conv3d.")]
    for name, make, keys in (("i3d", I3D, renamed), ("inception", InceptionV3, [])):
        model, values = nnx.eval_shape(lambda make=make: make(rngs=OneKey())), {}
        for path, leaf in parameters(model).items():
            noise = rng.standard_normal(leaf.shape, np.float32)
            fan = math.prod(leaf.shape[:-1])
            kernel = path.endswith("kernel")
            positive = path.endswith(("scale", "running_var"))
            values[path] = noise * (2 / fan) ** 0.5 if kernel else 1 + 0.1 * np.tanh(noise) if positive else 0.1 * noise
        tensors = unfit(values, keys)
        if name == "i3d":
            tensors["logits.conv3d.weight"] = tensors["logits.conv3d.weight"][..., None, None, None]
        else:
            tensors["fc.bias"] = rng.standard_normal(1008, np.float32)
        files[name] = tmp_path_factory.mktemp("networks") / f"{name}.safetensors"
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, files[name])
    return files
