"""What evaluations of a CLIP alone share: methods, the published protocol, words for classes.

A data set's own file states what differs there; the argument of each is the method. Nothing is
trained, so that fields of training mean nothing here. Two methods have no published row under this
protocol: the authors of maskclip_original use five more templates and other sizes, those of itaclip
also views of the photo and words written by a language model.
"""

import ml_collections

from configs import common

METHODS = (
    *("naclip", "maskclip", "maskclip_original", "sclip", "clearclip"),
    *("resclip", "sc_clip", "pearl", "itaclip", "clip"),
)
WHOLE = ("naclip", "resclip", "pearl")  # methods that take the photos of VOC as a whole

# class → the words that it is asked by in place of its name, as SCLIP's authors chose them
PERSON = (
    "person=person|person in shirt|person in jeans|person in dress|person in sweater|"
    "person in skirt|person in jacket"
)
BACKGROUND = (
    "background=sky|wall|tree|wood|grass|road|sea|river|mountain|sands|desk|bed|building|cloud|"
    "lamp|door|window|wardrobe|ceiling|shelf|curtain|stair|floor|hill|rail|fence"
)
PLAIN_VOC = ("boat=ship", "diningtable=table")
VOC = (*PLAIN_VOC, PERSON, "tvmonitor=television monitor|tv monitor|monitor|television|screen")


def joined(*names: str) -> tuple[str, ...]:
    """Names that are asked without the blanks in them, as the authors' lists spell them."""
    return tuple(f"{name}={name.replace(' ', '')}" for name in names)


def defaults(method: str) -> ml_collections.ConfigDict:
    """Configuration of a method with the values that data sets share."""
    if method not in METHODS:
        raise ValueError(f"method {method!r}: choose one of {', '.join(METHODS)}")
    large = method == "clearclip"  # what its authors do on every data set; the rest is as of SCLIP
    config = common.defaults("supervised", steps=20_000)
    config.model = ml_collections.ConfigDict(
        {
            "method": method,  # one of METHODS
            "scale": 50.0 if large else 40.0,  # of cosines before the softmax over words
            "sigma": 5.0,  # of naclip's and resclip's Gaussian, patches
            "pamr": False,  # refine scores by the colours of the photo
            "temperature": 2.0,  # resclip: of the attention that earlier blocks are mixed into
            "earlier_share": 0.3,  # resclip: of earlier blocks in it
            "second_pass": True,  # resclip: look again with what the first pass found
            "mask_temperature": 2.2,  # resclip: of the second pass
            "mask_share": 0.7,  # resclip: of the mask of the same words in it
            "first_threshold": 0.0,  # resclip: probability below which its first pass sees word 0
            "grid": 80,  # pearl: cells along a side that scores are propagated on
        }
    )
    config.text.templates = ()
    config.data.mean, config.data.std = common.CLIP
    if method == "maskclip_original":
        config.data.mean, config.data.std = common.IMAGENET
    config.data.crop = 448 if large else 224
    config.eval.stride = config.data.crop // 2
    config.eval.scale = (2048, 448 if large else 336)
    return config
