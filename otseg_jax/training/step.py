"""One training step, pure and jitted: losses, gradients over a whole batch, update.

A batch is image u8[b, s, s, 4], as of `models.pixels`, and label i16[b, s, s] (ids of the data
set), b over all processes and parts.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Integer

from otseg_jax.data import regimes
from otseg_jax.models import pixels
from otseg_jax.models.outputs import Maps, Mixture, Outputs, compare, nothing, upsample
from otseg_jax.training import losses, memory, pseudo_labels

Scalars = dict[str, Float[Array, ""]]


class State(NamedTuple):
    """What a step changes."""

    trainable: Any
    optimizer: Any


Step = jax.stages.Wrapped
"""Compiled: (state, frozen, text, batch, number) → (state, scalars)."""


def loss_sums(
    maps: Maps,
    label: Integer[Array, "b H W"],
    regime: regimes.Regime,
    mixture: Mixture,
    **weights: float,
) -> tuple[Float[Array, ""], tuple[Scalars, Float[Array, ""], Scalars]]:
    """Losses of every logit map against labels of the data set, still sums.

    Args:
        maps: on the patch grid, over `regime.classes`.
        mixture: of the maps, that pseudo-labels go by.
        weights: as of `losses.segmentation`.

    Returns:
        (loss, (terms, pairs, accuracies)): the sum of the terms, which alone has a gradient;
        weighted focal and dice per map, to be divided by max(1, pairs) of the whole batch; number
        of (image, present class) pairs; pixel accuracy per map.

    Source: OTSeg (arXiv 2403.14183), training loss.
    """
    known = pseudo_labels.relabel(label, regime.label_table)
    target = pseudo_labels.pseudo_label(maps, known, regime.unseen, mixture=mixture)

    loss, pairs = jnp.float32(0.0), jnp.float32(0.0)
    terms: Scalars = {}
    accuracies: Scalars = {}
    for name, z in maps.items():
        total, (found, pairs, accuracy) = _map_losses(z, target, **weights)
        loss += total
        terms |= {f"{name}_{term}": value for term, value in found.items()}
        accuracies[f"{name}_accuracy"] = accuracy
    return loss, (terms, pairs, accuracies)


def _map_losses(
    z: Float[Array, "b k h w"], target: Int[Array, "b H W"], **weights: float
) -> tuple[Float[Array, ""], tuple[Scalars, Float[Array, ""], Float[Array, ""]]]:
    """Sum of the losses of one map, which alone has a gradient; each of them, pairs, accuracy.

    One class at a time: all of them at the size of the image would take more memory than the rest
    of the step. The gradient is computed with the value, as it is small, on the patch grid; the
    backward pass scales it. There is no forward mode (`jax.jvp`).
    """

    def of_image(
        z: Float[Array, "h w"], label: Int[Array, "H W"]
    ) -> tuple[Float[Array, ""], tuple[Scalars, Float[Array, ""], Float[Array, "H W"]]]:
        logits, label = upsample(z[None, None], (label.shape[0], label.shape[1])), label[None]
        terms = losses.segmentation(logits, label, **weights)
        pairs = losses.count_pairs(label, 1)
        return terms["focal"] + terms["dice"], (terms, pairs, logits[0, 0])

    def forward(z, target):
        def of_class(best, one):
            k, z = one
            # image by image, or devices would wait for one another after every class
            of_images = jax.vmap(jax.value_and_grad(of_image, has_aux=True))
            (loss, (terms, pairs, logits)), gradient = of_images(z, target - k)
            return compare(best, logits, k), ((loss, terms, pairs), gradient)

        classes = (jnp.arange(z.shape[1], dtype=jnp.int32), jnp.moveaxis(z, 1, 0))
        start = nothing(target.shape, z.dtype)
        (_, guess), (values, gradient) = jax.lax.scan(of_class, start, classes)
        loss, terms, pairs = jax.tree.map(jnp.sum, values)
        accuracy = losses.pixel_accuracy(guess, target)
        return (loss, (terms, pairs, accuracy)), jnp.moveaxis(gradient, 0, 1)

    run = jax.custom_vjp(lambda z, target: forward(z, target)[0])
    run.defvjp(forward, lambda gradient, cotangent: (cotangent[0] * gradient, None))
    return run(z, target)


def make_train_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    regime: regimes.Regime,
    *,
    mesh: Mesh,
    outputs: Outputs,
    mean: Sequence[float],
    std: Sequence[float],
    accumulate: int = 1,
    seed: int = 0,
    **weights: float,
) -> Step:
    """Compile a training step: (state, frozen, text, batch, number) → (state, scalars).

    The gradient is that of the whole batch, over all devices and all parts that it is worked
    through in: parts sum their losses, and one division by the global number of (image, present
    class) pairs comes last. The state's buffers are given away. Scalars are "loss" and its terms,
    and accuracies in [0, 1], means over parts. A step whose loss or gradient is not finite leaves
    the state as it was, and its loss is NaN.

    Args:
        mesh: that is in place where the step is called: `with jax.set_mesh(mesh)`.
        outputs: pseudo-labels go by the main one.
        mean: of photos' channels, 0..255; they are normalised by it and `std`.
        std: likewise.
        accumulate: parts a batch is worked through in, one after the other; must divide b.
        seed: of dropout.
        weights: as of `losses.segmentation`.

    Source: OTSeg (arXiv 2403.14183), training loss; the regimes are those of ZegCLIP.
    """
    trained, mixture = jnp.asarray(regime.classes), outputs.mixtures[outputs.main]

    def part_sums(trainable, frozen, text, images, key):
        seen = pixels.normalised(images["image"], mean=mean, std=std)
        maps = nnx.merge(graphdef, trainable, frozen)(seen, text, key=key)
        return loss_sums(maps, images["label"], regime, mixture, **weights)

    frugal = memory.frugal(mesh.devices.flat[0].platform)

    @partial(jax.jit, donate_argnums=0, out_shardings=jax.P(), compiler_options=frugal)
    def step(
        state: State,
        frozen: Any,
        text: Float[Array, "K n c"],
        batch: Mapping[str, Array],
        number: Int[Array, ""],
    ) -> tuple[State, Scalars]:
        key = jax.random.fold_in(jax.random.key(seed), number)
        text = text[trained]
        # part i takes every accumulate-th image, so that each part is spread over all devices
        parts = {
            name: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0)
            for name, x in batch.items()
        }

        def sums(part):
            index, images = part
            value_and_grad = jax.value_and_grad(part_sums, has_aux=True)
            (loss, (terms, pairs, accuracies)), gradient = value_and_grad(
                state.trainable, frozen, text, images, jax.random.fold_in(key, index)
            )
            return gradient, {"loss": loss, **terms}, pairs, accuracies

        def add(total, part):
            return jax.tree.map(jnp.add, total, sums(part)), None

        sequence = (jnp.arange(accumulate), parts)
        shapes = jax.eval_shape(sums, jax.tree.map(lambda x: x[0], sequence))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (gradient, terms, pairs, accuracies), _ = jax.lax.scan(add, zeros, sequence)

        pairs = jnp.maximum(pairs, 1.0)
        gradient = jax.tree.map(lambda g: g / pairs, gradient)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer
            updates, slots = optimizer.update(gradient, state.optimizer, state.trainable)
        scalars = {name: value / pairs for name, value in terms.items()}
        scalars |= {name: value / accumulate for name, value in accuracies.items()}
        stepped = State(optax.apply_updates(state.trainable, updates), slots)
        kept, scalars["loss"] = _if_finite(stepped, state, gradient, scalars["loss"])
        return kept, scalars

    return step


def _if_finite(
    stepped: State, before: State, gradient: Any, loss: Float[Array, ""]
) -> tuple[State, Float[Array, ""]]:
    """A step and its loss; where loss or gradient is not finite, the state before it and NaN."""
    # not asked of the state, old and new: both would be held
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradient))
    kept = jax.tree.map(partial(jnp.where, finite), stepped, before)
    return kept, jnp.where(finite, loss, jnp.nan)
