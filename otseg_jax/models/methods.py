"""The methods: every model that can be trained, saved and evaluated.

A method is a file in this folder with a frozen dataclass of its choices that has `build`, `outputs`
and `one_prompt` as `OTSegConfig` has them; here its class joins the union, and a configuration or a
stored model is of the first class that its fields fit.
"""

from typing import TypeAlias

from otseg_jax.models.otseg import OTSegConfig

MethodConfig: TypeAlias = OTSegConfig
