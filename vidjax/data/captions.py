"""What training reads of a clip's captions: one for all clips, one a line, trigger words around them."""

import dataclasses

from vidjax.data.config import DataConfig
from vidjax.data.source import Item, Source


def with_captions(source: Source, config: DataConfig) -> Source:
    """Returns the clips with the captions that `config` asks for: `caption`, `caption_lines`, `prefix`, `suffix`."""
    if not (config.caption or config.caption_lines or config.prefix or config.suffix):
        return source

    def item(i: int) -> Item:
        found = source[i]
        texts = [config.caption] if config.caption else found.captions
        if config.caption_lines:
            texts = [line.strip() for text in texts for line in text.splitlines() if line.strip()] or [""]
        first, *others = [with_trigger(text, config.prefix, config.suffix) for text in texts]
        return dataclasses.replace(found, text=first, others=tuple(others))

    return dataclasses.replace(source, item=item)


def with_trigger(text: str, prefix: str = "", suffix: str = "") -> str:
    """Returns a caption between trigger words; a space divides them, but before punctuation."""
    space = "" if suffix.strip()[:1] in tuple(",.;:!?") else " "
    begun = " ".join(filter(None, (prefix.strip(), text)))
    return f"{begun}{space}{suffix.strip()}".strip() if suffix else begun
