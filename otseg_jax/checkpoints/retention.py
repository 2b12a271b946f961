"""Which checkpoints of a run are kept: the newest, the best, milestones, and what is unreadable."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any


class Retention:
    """Orbax preservation policy; its own "best n" deletes the newest, from which a run resumes."""

    def __init__(self, *, milestones: Collection[int], metric: str) -> None:
        """`metric` is the key that decides which step is best; higher is better."""
        self._kept, self._metric = set(milestones), metric
        self._scores: dict[int, tuple[int | None, float]] = {}  # step → images, metric

    def judge(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take note of the metrics of a step, and of how many "images" they are over."""
        if (value := metrics.get(self._metric)) is not None:
            self._scores[step] = (metrics.get("images"), value)

    def keep(self, step: int) -> None:
        """Keep a step: a milestone, or damage, which is for a person to look at."""
        self._kept.add(step)

    def best(self, steps: Iterable[int]) -> int | None:
        """The step with the highest metric, the newest of equals; None where none has it.

        Compared are those that were judged by as many images as the newest.
        """
        scored = {step: self._scores[step] for step in steps if step in self._scores}
        if not scored:
            return None
        images, _ = scored[max(scored)]
        return max((value, step) for step, (n, value) in scored.items() if n == images)[1]

    def kept(self, steps: Collection[int]) -> set[int | None]:
        """Those of the steps that stay."""
        return {max(steps), self.best(steps), *self._kept}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax's question."""
        kept = self.kept([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]
