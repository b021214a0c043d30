"""Frames as CLIP sees them and its scores, against transformers' own processor and model, from the same folder."""

import json
import string

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402

from vidjax.errors import InputError  # noqa: E402
from vidjax.metrics.clip_scores import ClipScorer, shown_to_clip  # noqa: E402

SIZE = 30
TOWER = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
LETTERS = [a + end for a in string.ascii_lowercase for end in ("", "</w>")]
VOCABULARY = [*LETTERS, "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
PROMPT = "a cat runs"


def processor():
    return CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder, model, tokenizer): all of it written by transformers."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)
    torch.manual_seed(0)
    text = dict(TOWER, vocab_size=len(VOCABULARY), max_position_embeddings=12, eos_token_id=tokenizer.eos_token_id)
    config = transformers.CLIPConfig(
        text_config=text, vision_config=dict(TOWER, image_size=SIZE, patch_size=10), projection_dim=20
    )
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            is_scale = p.ndim == 1 and name.endswith("weight")
            p.copy_(1 + 0.2 * torch.randn(p.shape) if is_scale else torch.randn(p.shape) * 0.3)
    for part in (model, tokenizer, processor()):
        part.save_pretrained(folder)
    return folder, model, tokenizer


def videos():
    rng = np.random.default_rng(0)
    for shape in ((5, 96, 96), (3, 40, 71), (2, 95, 33), (3, 17, 20), (2, 30, 30)):
        coarse = rng.integers(0, 256, (shape[0], 5, 5, 3)).astype(np.uint8)
        big = coarse.repeat(-(-shape[1] // 5), 1).repeat(-(-shape[2] // 5), 2)[:, : shape[1], : shape[2]]
        yield (0.7 * big + 0.3 * rng.integers(0, 256, (*shape, 3))).astype(np.uint8)


def test_frames_are_cut_as_clips_own_processor_cuts_them():
    raw = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, do_normalize=False, do_rescale=False
    )
    for video in videos():
        expected = raw(list(video), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(shown_to_clip(video, SIZE), expected)


def test_scores(saved):
    folder, model, tokenizer = saved
    scorer = ClipScorer(folder, batch=2)  # no multiple of the frames
    consistencies = []
    for video in videos():
        with torch.no_grad():
            out = model(
                **tokenizer([PROMPT], return_tensors="pt"),
                pixel_values=torch.from_numpy(processor()(list(video), return_tensors="np")["pixel_values"]),
            )
        frames, text = out.image_embeds.numpy(), out.text_embeds.numpy()[0]  # of length 1
        np.testing.assert_allclose(scorer.embed_frames(video), frames, atol=1e-5)
        np.testing.assert_allclose(scorer.embed_text(PROMPT), text, atol=1e-5)
        n = len(frames)
        successive = [frames[i] @ frames[i + 1] for i in range(n - 1)]
        every = [frames[i] @ frames[j] for i in range(n) for j in range(i)]
        assert scorer.frame_consistency(video) == pytest.approx(100 * np.mean(successive), abs=1e-3)
        assert scorer.frame_consistency(video, "all") == pytest.approx(100 * np.mean(every), abs=1e-3)
        assert scorer.text_alignment(video, PROMPT) == pytest.approx(100 * np.mean(frames @ text), abs=1e-3)
        consistencies.append(scorer.frame_consistency(video))
    assert np.ptp(consistencies) > 1  # the model tells these videos apart


def test_a_processor_saved_whole_is_read_as_well(saved, tmp_path):
    folder, model, tokenizer = saved
    model.save_pretrained(tmp_path)
    transformers.CLIPProcessor(processor(), tokenizer).save_pretrained(tmp_path)
    video = next(videos())
    np.testing.assert_array_equal(ClipScorer(tmp_path).embed_frames(video), ClipScorer(folder).embed_frames(video))


def test_another_processor_is_refused_by_name(saved, tmp_path):
    folder, *_ = saved
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**config, "resample": 2}))
    with pytest.raises(InputError, match="resample is 2, which is not supported"):
        ClipScorer(tmp_path)
