"""Ways to tune a trained model: surgery on it, and a filter on parameter paths that says what trains."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx

from vidjax.models.lora import add_lora
from vidjax.settings import choose, construct

ATTENTION = r"\.to_(q|k|v|out)$"
# Zhao et al. 2023 (MotionDirector): where text acts, in cross-attention, the appearance is left alone.
APPEARANCE = r"^(?!.*temp).*(\.attn1\.to_(q|k|v|out)|\.ff\.proj_(in|out))$"
MOTION = r"temp.*(\.to_(q|k|v|out)|\.ff\.proj_(in|out))$"
TEXT = r"^text\.(.*\.)?(q|k|v|out)_proj$"


class Strategy(NamedTuple):
    """`surgery(model, rngs)` changes the model in place before its parameters are loaded or split; then
    `trainable(path)` chooses among them. `text`: something of the text encoder trains, which then reads captions at
    every step."""

    surgery: Callable[[nnx.Module, nnx.Rngs], Any]
    trainable: Callable[[str], bool]
    text: bool = False


def _leave(model: nnx.Module, rngs: nnx.Rngs) -> None:
    """The surgery of a strategy that adds nothing."""


def _paths(pattern: str, outside: str = r"^(codec|text|picture\.encoder)\.") -> Strategy:
    """Train what `pattern` finds, but nothing that `outside` finds."""
    return Strategy(_leave, lambda path: bool(re.search(pattern, path)) and not re.search(outside, path))


def full(*, text: bool = True) -> Strategy:
    """Everything but the codec, and CLIP where it sees pictures."""
    return _with_text(_paths(""), text)


def temporal(*, text: bool = False) -> Strategy:
    """The layers over time alone (Blattmann et al. 2023, Align your Latents): the image model stays as it is."""
    return _with_text(_paths("temp"), text)


def tune_a_video(*, text: bool = False) -> Strategy:
    """Wu et al. 2023, as released: the queries of both attentions and the one over time, but for its norm."""
    return _with_text(_paths(r"\.attn[12]\.to_q\.|\.attn_temp\.(?!norm\.)"), text)


def temporal_decoder(*, wide: bool = True) -> Strategy:
    """The autoencoder's decoder, to take the flicker out of its frames; latents stay (Align your Latents, figure 3).

    With `wide` those convolutions of its residual blocks that see one frame see the frames before and after too, with
    weights of zero at the start: until it is trained it decodes as it did.
    """

    def surgery(model: nnx.Module, rngs: nnx.Rngs) -> None:
        for path, module in nnx.iter_modules(model):
            if wide and "decoder" in path and path[-1] in ("conv1", "conv2") and module.kernel.ndim == 4:
                module.look_over_time()

    decoder = _paths(r"^(codec\.autoencoder\.)?(decoder|post_quant_conv|linear_out)\.", outside=r"$^")
    return decoder._replace(surgery=surgery)


def autoencoder() -> Strategy:
    """The whole autoencoder."""
    return _paths("", outside=r"^(text|picture|unet)\.")


def lora(*, rank: int = 32, alpha: float | int | None = None, targets: str = ATTENTION, text: bool = False) -> Strategy:
    """Low-rank adapters on the linear layers that `targets` finds (Hu et al. 2021), never the codec's.

    With `text` also on the attention of CLIP's text encoder, whose own weights stay.
    """
    patterns = [rf"^(?!codec\.|text\.|picture\.).*(?:{targets})", *([TEXT] if text else [])]

    def trainable(path: str) -> bool:
        layer, _, name = path.rpartition(".")
        return name in ("lora_down", "lora_up") and any(re.search(pattern, layer) for pattern in patterns)

    def surgery(model: nnx.Module, rngs: nnx.Rngs) -> None:
        for pattern in patterns:
            add_lora(model, pattern, rank, alpha, rngs=rngs)

    return Strategy(surgery, trainable, text)


def appearance_lora(*, rank: int = 32, alpha: float | int | None = None, text: bool = False) -> Strategy:
    """Adapters on self-attention and feed-forward of the spatial transformers (MotionDirector): for single frames."""
    return lora(rank=rank, alpha=alpha, targets=APPEARANCE, text=text)


def motion_lora(*, rank: int = 32, alpha: float | int | None = None, text: bool = False) -> Strategy:
    """Adapters on the transformers over time (MotionDirector): for clips, with the debiased loss of `objectives`."""
    return lora(rank=rank, alpha=alpha, targets=MOTION, text=text)


def _with_text(strategy: Strategy, text: bool) -> Strategy:
    """The text encoder trains too, or not, whatever the strategy."""
    trainable = lambda path: text if path.startswith("text.") else strategy.trainable(path)
    return strategy._replace(trainable=trainable, text=text)


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "full": full,
    "temporal": temporal,
    "tune_a_video": tune_a_video,
    "temporal_decoder": temporal_decoder,
    "autoencoder": autoencoder,
    "lora": lora,
    "appearance_lora": appearance_lora,
    "motion_lora": motion_lora,
}


def strategy(name: str, **options: Any) -> Strategy:
    """(surgery, trainable) by name. Raises InputError for a name or an option that does not exist."""
    return construct(choose(name, STRATEGIES, "finetune strategy"), options, "finetune")


def describe(params: Mapping[str, Any]) -> str:
    """Lists the parameters, one line per pattern of paths: tensors, parameters, pattern with * for the numbers."""
    groups: dict[str, list[int]] = {}
    for path, value in params.items():
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", path), []).append(math.prod(value.shape))
    rows = [(len(sizes), sum(sizes), pattern) for pattern, sizes in sorted(groups.items())]
    rows.append((len(params), sum(total for _, total, _ in rows), "all"))
    return "\n".join(f"{tensors:7,} {total:15,}  {pattern}" for tensors, total, pattern in rows)
