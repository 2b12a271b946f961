"""Flax NNX modules: the CLIP towers, the decoder and the whole OTSeg model."""
