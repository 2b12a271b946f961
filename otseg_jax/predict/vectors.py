"""Words as vectors: each embedded once and kept, in the shapes that a model is compiled for."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from otseg_jax import text
from otseg_jax.checkpoints import pretrained
from otseg_jax.checkpoints.pretrained import Model
from otseg_jax.evaluation.words import Words
from otseg_jax.predict.asked import Asked
from otseg_jax.predict.kept import Kept

BUCKET = 16  # words are filled up to multiples of it, so that few shapes compile
WORDS = 20_000  # whose vectors are kept
QUESTIONS = 8  # lists of words, ready for the device
AT_ONCE = 256  # words embedded together: 80 templates of each take memory

Templates = tuple[str, ...]


class Vectors:
    """The words of questions to a model; those of its own classes are stored with it.

    Args:
        seen_offset: as of `load`.
    """

    def __init__(self, model: Model, seen_offset: float | None = None) -> None:
        self._spec, self._clip, self._seen_offset = model.spec, model.clip, seen_offset
        self._own = dict(zip(model.spec.classes, model.embeddings, strict=True))
        # where words compete, templates are averaged anyway, and are so before they are kept
        self._averages = model.spec.model.scale is not None
        self._words: Kept[tuple[str, Templates], np.ndarray] = Kept(WORDS)
        self._questions: Kept[tuple[Asked, Templates], Words] = Kept(QUESTIONS)

    def of(self, question: Asked, templates: Sequence[str] | None = None) -> Words:
        """The words of a question, filled up; errors as of `embed`."""
        key = question, self._templates(templates)
        (found,) = self._questions.get([key], lambda keys: [self._fill(*keys[0])])
        return found

    def embed(
        self, words: Sequence[str], templates: Sequence[str] | None = None
    ) -> list[np.ndarray]:
        """f32[n, c] of each word in n templates, or in their mean.

        Raises:
            ValueError: templates without {}, or words that cannot be embedded.
        """
        chosen = self._templates(templates)
        own = self._own if chosen == self._spec.templates else {}
        others = [word for word in words if word not in own]
        new: list[str] = []

        def make(keys: list[tuple[str, Templates]]) -> list[np.ndarray]:
            new.extend(word for word, _ in keys)
            where = f"the model from {self._clip.name}"
            pretrained.check_tokenizer(self._spec.tokenizer_fingerprint, self._clip, where)
            found: list[np.ndarray] = []
            for first in range(0, len(new), AT_ONCE):
                vectors = self._clip.embed(new[first : first + AT_ONCE], chosen)
                if self._averages:
                    # as `training_free.average`, which would be compiled for every number of words
                    mean = vectors.mean(axis=1, keepdims=True)
                    vectors = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
                found += list(vectors)
            return found

        kept = iter(self._words.get([(word, chosen) for word in others], make))
        if len(new) < len(others) > 1:  # else they were compared when they were embedded
            text.warn_of_twins(others, self._clip.tokenise(others))
        return [own[word] if word in own else next(kept) for word in words]

    def _templates(self, given: Sequence[str] | None) -> Templates:
        if given is None:
            return self._spec.templates
        if isinstance(given, str) or not all(isinstance(one, str) for one in given):
            raise ValueError(f"templates={given!r}: give a list, ['a photo of a {{}}.']")
        text.fill(["word"], tuple(given))  # refuses what holds no {}
        return tuple(given)[:1] if self._spec.model.one_prompt else tuple(given)

    def _fill(self, question: Asked, templates: Templates) -> Words:
        words, count = question.words, len(question.classes)
        vectors = np.stack(self.embed(words, templates))
        others = len(question.classes[0]) if question.background else 0
        offset = self._spec.offsets(words[others:], self._seen_offset)
        # its own classes are of one number anyway
        fill = (0, 0 if words == self._spec.classes else -len(words) % BUCKET)
        # what fills up is of no class; a solver takes no zeros, and a method in which words compete
        # knows it by its zeros
        how: Any = {"mode": "constant"} if self._averages else {"mode": "edge"}
        return Words(
            jnp.asarray(np.pad(vectors, (fill, (0, 0), (0, 0)), **how)),
            np.pad(question.class_of, fill, constant_values=-1),
            np.pad(offset, (others, fill[1])),
            count,
        )
