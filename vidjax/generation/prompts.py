"""What a model is asked for where nobody says: the recipe's prompts, the data set's captions, or its classes."""

from typing import Protocol, runtime_checkable

from vidjax.data.pipeline import Dataset
from vidjax.generation.options import SampleConfig

LOOKED_AT = 10_000  # captions of a large data set
UNCONDITIONAL = 8  # samples of a model without conditions


@runtime_checkable
class HasConditions(Protocol):
    """A generator, of whatever kind, that names its model's conditions and has defaults of sampling."""

    @property
    def embedder_names(self) -> tuple[str, ...]:
        """Names of the conditions."""
        ...

    @property
    def defaults(self) -> SampleConfig:
        """What the recipe samples with."""
        ...


def what_to_ask(generator: HasConditions, dataset: Dataset) -> tuple[list[str | int], list[str]]:
    """Chooses the recipe's prompts or else every caption of a small data set, every class, or a few unconditional
    samples; with a name each."""
    conditions = generator.embedder_names
    if "text" in conditions:
        texts = generator.defaults.prompt_list or list(dict.fromkeys(dataset.texts[:LOOKED_AT]))[:16]
        return list(texts), texts
    if "label" in conditions:
        return list(range(dataset.num_classes)), [f"class {i}" for i in range(dataset.num_classes)]
    return [-1] * UNCONDITIONAL, [f"sample {i}" for i in range(UNCONDITIONAL)]
