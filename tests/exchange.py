"""What devices exchange in compiled steps and predictions; prints JSON.

A process of its own for `test_sharding`: it has 256 devices, and meshes of some of them.
"""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import small
from flax import nnx

from experiments import sharding as inspection
from otseg_jax import sharding
from otseg_jax.evaluation import sliding
from otseg_jax.evaluation.inference import Inference
from otseg_jax.models.clip import VisionConfig
from otseg_jax.models.otseg import OTSegConfig
from otseg_jax.models.training_free import TrainingFreeConfig

PLAIN = {"model.decoder_layers": 1, "data.crop": 40}
STEPS: tuple[tuple[dict[str, Any], int, int], ...] = (  # fields, devices, of these along `model`
    (PLAIN, 8, 1),
    (PLAIN, 256, 1),
    (PLAIN | {"model.sinkhorn": "implicit"}, 32, 2),
    (PLAIN | {"regime": "transductive", "init_from": "-", "train.accumulate": 2}, 8, 2),
)
# a model and the blocks of its tower
PREDICTIONS = ((OTSegConfig(), 2), (TrainingFreeConfig(method="sc_clip"), 10))


def step(fields: dict[str, Any], devices: int, model: int) -> dict[str, Any]:
    """A row of sharding.json."""
    options = small.settings(**fields)
    mesh = sharding.make_mesh(model=model, devices=jax.devices()[:devices])
    train = dataclasses.replace(options.train, batch_size=2 * mesh.shape["data"])
    return inspection.inspect(dataclasses.replace(options, train=train), mesh)


def prediction(config: OTSegConfig | TrainingFreeConfig, layers: int) -> dict[str, Any]:
    """By program, the exchanges of 4 × 2 devices over 4 windows of 6 × 6 patches and 5 words."""
    sizes = {"width": 32, "layers": layers, "heads": 2, "mlp_width": 64, "embed_dim": 16}
    vision = VisionConfig(image_size=48, patch_size=8, **sizes)
    mesh = sharding.make_mesh(model=2, devices=jax.devices()[:8])
    model = nnx.eval_shape(lambda: config.build(vision, rngs=nnx.Rngs(0)))
    graphdef, shapes = nnx.split(model)
    where = sharding.of_tower(mesh, shapes, heads=2)
    state = jax.device_put(jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes), where)
    text = jax.device_put(np.ones((5, 3, 16), np.float32), sharding.replicated(mesh))
    plain: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    how = Inference(method=config, patch=8, window=48, stride=48, batch_size=4, **plain)
    runner = sliding.Runner(graphdef=graphdef, trainable={}, frozen=state, mesh=mesh)
    predict = sliding.Predict(runner=runner, text=text, outputs=config.outputs(), how=how)
    client = jax.devices()[0].client
    before = client.live_executables()
    predict(np.zeros((4, 48, 48, 4), np.uint8))
    made = [one for one in client.live_executables() if one not in before]
    programs = [program for one in made for program in one.hlo_modules()]
    return {x.name: inspection.collectives(x.to_string(), mesh) for x in programs}


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 256)
    steps = [step(*case) for case in STEPS]
    print(json.dumps({"steps": steps, "predictions": [prediction(*one) for one in PREDICTIONS]}))
