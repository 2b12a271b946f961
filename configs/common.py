"""What all configurations share: every field, its unit and the reference's value.

A data set's own file states only what differs. Values are those of the published OTSeg models
(batch 16, AdamW, 100 × focal + dice); fields marked "any value, same result" may be changed when a
run is resumed.
"""

import ml_collections

# (mean, std) per channel in 0..255. (!) VOC, Context and COCO-Stuff were trained with ImageNet's
# although CLIP was not; ADE20K with CLIP's own.
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
CLIP = ((122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305))

TEMPLATES_6 = (
    "a photo of a {}.",
    "a portrait of a {}.",
    "a part of a {}.",
    "a segment of a {}.",
    "a photo of small {}.",
    "a photo of medium {}.",
)
TEMPLATES_8 = (*TEMPLATES_6, "a photo of large {}.", "a background of a {}.")


def defaults(regime: str, *, steps: int) -> ml_collections.ConfigDict:
    """Configuration with the values that the data sets share.

    Args:
        regime: "inductive", "transductive" or "supervised".
        steps: length of the inductive and the supervised schedule; the transductive one starts from
            its half and is half as long.
    """
    return ml_collections.ConfigDict(
        {
            "regime": regime,  # inductive | transductive | supervised
            "seed": 0,  # of initial weights, dropout, augmentation, order, shapes to train on
            "dtype": "float32",  # of matrix products: float32 | tensorfloat32 | bfloat16
            # compiled programs are kept there, at most 2 GB; "": not at all
            "compile_cache": "~/.cache/otseg_jax/xla",
            # what else a training is logged to, beside `metrics.jsonl`: tensorboard | wandb |
            # tensorboard,wandb; "": nothing (any value, same result)
            "log": "",
            # steps after the first that are traced into `profile/` of the workdir, for xprof and
            # TensorBoard; 0: none (any value, same result)
            "profile": 0,
            # workdir or model directory, here or in a bucket, whose trained weights to start from
            "init_from": "",
            "init_step": 0,  # its step; 0: half its schedule if transductive, else its latest
            "mesh": {
                "data": -1,  # devices that share a batch; -1: all the rest (any value, same result)
                "model": 1,  # devices that share one frozen tower (any value, same result)
            },
            "clip": {
                "source": "openai/clip-vit-base-patch16",  # directory, file, hub name, or "random"
                # what a lone weight file does not tell; where a file does, this wins
                "vision_heads": 0,  # attention heads; 0: as told, or of the published tower
                "text_heads": 0,  # attention heads; 0: as of vision_heads
                "activation": "",  # quick_gelu | gelu; "": as told, else assumed with a warning
                "tokenizer": "",  # directory, hub name or shapes-clip; "": the one beside it
                # sizes of the untrained towers of source="random": ViT-B/16
                "random": {
                    "patch_size": 16,  # pixels
                    "embed_dim": 512,  # channels shared by image and text
                    "vision": {"width": 768, "layers": 12, "heads": 12, "mlp_width": 3072},
                    "text": {"width": 512, "layers": 12, "heads": 8, "mlp_width": 2048},
                },
            },
            "text": {
                "templates": TEMPLATES_8,  # one prompt per class each; (): CLIP's 80 of ImageNet
                # "CLASS=WORD|WORD": what a CLIP alone asks for in place of a class's name; the
                # word that fits best counts
                "words": (),
                "embeddings": "",  # .npy f32[k, n, c] in place of the text tower
                "cache": "~/.cache/otseg_jax/text",  # folder of embedded vocabularies; "": none
            },
            "model": {
                "decoder": "mpsa",  # mpsa (OTSeg) | cross_attention (ZegCLIP, first template only)
                "decoder_layers": 3,  # of the decoder
                "decoder_heads": 8,  # of cross_attention; MPSA has one
                "prompt_tokens": 10,  # visual prompts per block
                "prompt_blocks": 0,  # blocks with prompts of their own; 0: all
                "dropout": 0.1,  # rate in [0, 1)
                "epsilon": 0.05,  # weight of the entropy in Sinkhorn
                "sinkhorn": "implicit",  # implicit (converged) | unrolled (the reference's updates)
                "iterations": 100,  # Sinkhorn updates, unrolled only
                # recompute blocks in the backward pass to save memory (any value, same result)
                "remat": False,
            },
            "data": {
                # voc12 | pascal_context | coco_stuff | ade20k | folder, and built in: shapes |
                # shapes_synonyms | shapes_colours (the same pictures, its classes in other words);
                # for evaluation: cityscapes, and with background voc21 | context60 | coco_object;
                # tfds:NAME is one that TensorFlow Datasets wrote, with a photo and a mask
                "dataset": "",
                # folder of the data set, or of its records, as python -m otseg_jax.prepare writes
                # them, these also in a bucket: gs://…, s3://… (any value, same result)
                "root": "",
                "augmented": True,  # VOC: add the images of aug.txt
                "raw_ids": False,  # COCO: convert raw ids while reading
                # of the built-in shapes: how many to draw
                "images": {"train": 2000, "val": 100},
                # pixels, side of a training crop and of a window; 0: whole photos (CLIP alone)
                "crop": 512,
                "scale": (2048, 512),  # pixels, (long, short) side before the random ratio
                "ratio": (0.5, 2.0),  # random factor of the scale
                "max_class_fraction": 0.75,  # of a crop's labelled pixels
                "hue": 18,  # largest turn of a photo's hues, steps of 2°; 0: none
                "mean": IMAGENET[0],  # 0..255
                "std": IMAGENET[1],  # 0..255
                "threads": 2,  # readers (any value, same result)
                # batches read ahead in training, photos in an evaluation (there one for each reader
                # at least); any value, same result
                "buffer": 4,
            },
            "train": {
                # optimiser steps; a transductive run goes through the second half of a schedule
                "steps": steps // 2 if regime == "transductive" else steps,
                "batch_size": 16,  # images a step, over all devices
                "accumulate": 1,  # parts that a batch is worked through in
                "learning_rate": 2e-4,  # peak
                "end_learning_rate": 1e-6,  # at the last step
                "power": 0.9,  # of the polynomial decay
                "warmup": 1500,  # steps
                "warmup_ratio": 1e-6,  # first rate over peak
                "weight_decay": 0.01,  # decoupled, on everything that learns
                "focal_weight": 100.0,  # of the focal loss
                "dice_weight": 1.0,  # of the dice loss
                "log_every": 50,  # steps (any value, same result)
                "eval_every": 2000,  # steps, 0: only at the end (any value, same result)
                "eval_images": 500,  # of the validation split while training; 0: all
                "checkpoint_every": 1000,  # steps (any value, same result)
            },
            "eval": {
                "batch_size": 8,  # windows at a time
                "scale": (2048, 512),  # pixels, (long, short) side
                "stride": 426,  # pixels between windows
                # test-time augmentation: factors of `scale` at which a photo is looked at, such as
                # (0.75, 1.0, 1.25); scores are averaged, each takes its square of the time
                "scales": (1.0,),
                "flip": False,  # the same of the mirrored photo, too; twice the time
                # subtracted from the scores of seen classes; None: 0.1 if inductive, else 0
                "seen_offset": ml_collections.config_dict.placeholder(float),
                "mps_weight": 0.5,  # of the MPS path in OTSeg+
                # a pixel is of class 0, the background, where its best score (of a CLIP alone:
                # probability) is below; None: never
                "threshold": ml_collections.config_dict.placeholder(float),
                # of a photo's pixels that are not class 0: a class with at most so many gets none
                "least_share": 0.0,
                "checkpoint": "latest",  # latest | best | half (of the schedule) | a step
                "images": 0,  # of the validation split; 0: all
                "save_predictions": False,  # label maps as PNGs in workdir/predictions
            },
        }
    )
