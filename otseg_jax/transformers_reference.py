"""CLIP by transformers and torch, layer by layer: what --verify compares its own files with.

torch is an optional extra; this module is imported only where it is present.
"""

from collections.abc import Mapping

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel

from otseg_jax import exporting
from otseg_jax.model_dir import Model


@torch.no_grad()
def layers(
    model: Model, arrays: Mapping[str, np.ndarray], image: np.ndarray, tokens: np.ndarray
) -> dict[str, np.ndarray]:
    """Outputs of every layer of both towers.

    Args:
        model: the conversion; its sizes are used, and its weights only where the source names them
            as Flax does, which transformers no longer reads.
        arrays: the source's arrays.
        image: f32[b, s, s, 3], normalised.
        tokens: i[t, l].

    Returns:
        Name of the layer → its output.
    """
    vision, text = model.vision_config, model.text_config
    assert text is not None
    described = exporting.hugging_face_config(vision, text)
    described.pop("model_type")
    reference = CLIPModel(CLIPConfig(**described)).eval()
    if "/" in next(iter(arrays)):
        arrays = exporting.hugging_face_arrays(model)
    state = {
        name: torch.tensor(np.array(array, np.float32))
        for name, array in arrays.items()
        if not name.endswith("position_ids")
    }
    key = "vision_model.embeddings.position_embedding.weight"
    if len(state[key]) != vision.grid**2 + 1:  # resized by the conversion
        state[key] = torch.tensor(exporting.hugging_face_arrays(model)[key])
    reference.load_state_dict(state, strict=False)
    pixels = torch.tensor(image).permute(0, 3, 1, 2)
    seen = reference.vision_model(pixels, output_hidden_states=True)
    read = reference.text_model(torch.tensor(tokens), output_hidden_states=True)
    hidden = seen.last_hidden_state
    projected = reference.visual_projection(reference.vision_model.post_layernorm(hidden))
    found = {
        "vision embedding": seen.hidden_states[0],
        **{f"vision block {i}": x for i, x in enumerate(seen.hidden_states[1:])},
        "vision projection": projected,
        **{f"text block {i}": x for i, x in enumerate(read.hidden_states[1:])},
        "text projection": reference.text_projection(read.pooler_output),
    }
    return {name: tensor.numpy() for name, tensor in found.items()}
