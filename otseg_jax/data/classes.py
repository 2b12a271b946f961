"""Class names, unseen ids and palettes of every data set: the only place where they appear.

A class id is the index into `Vocabulary.names`, 0..K-1. Label maps on the host are int16 [h, w] of
ids or `IGNORE`, whatever a file holds (`decode` turns one into the other). Colours are 8-bit RGB.
Names keep the spelling of the reference, down to the trailing space of ADE20K's "bed ", because
published text embeddings were computed from it; its palettes repeat some colours, so a colour does
not identify a class.
"""

import csv
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

IGNORE = -1
"""The label of a pixel that belongs to no class: negative, so that it is the id of none."""

MOST_CLASSES = 2**15
"""Size of the largest vocabulary: an int16 holds the ids 0..32,767 besides negative markers."""


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a data set, in the order of their ids.

    Args:
        names: distinct; `names[k]` is what the text tower is asked about.
        unseen: ids whose pixels training never shows in the zero-shot regimes.
        palette: 8-bit RGB for each name; left out, `default_palette`.

    Raises:
        ValueError: no names or more than `MOST_CLASSES`, names repeat, an unseen id has no name, or
            the palette has another length; all problems in one message.

    Example:
        >>> pets = Vocabulary(("cat", "dog", "newt"), unseen=(2,))
        >>> pets.seen, pets.palette[0]
        ((0, 1), (128, 0, 0))
    """

    names: tuple[str, ...]
    unseen: tuple[int, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not self.palette:
            object.__setattr__(self, "palette", default_palette(len(self.names)))
        problems = []
        if not 0 < len(self.names) <= MOST_CLASSES:
            problems.append(f"{len(self.names)} names: wanted 1 to {MOST_CLASSES}")
        if repeated := sorted(name for name, n in Counter(self.names).items() if n > 1):
            problems.append(f"names repeat: {repeated}")
        if outside := [k for k in self.unseen if not 0 <= k < len(self.names)]:
            problems.append(f"unseen ids {outside} lie outside 0..{len(self.names) - 1}")
        if len(set(self.unseen)) < len(self.unseen):
            problems.append(f"unseen ids repeat: {sorted(self.unseen)}")
        if len(self.palette) != len(self.names):
            problems.append(f"{len(self.palette)} colours for {len(self.names)} names")
        if problems:
            raise ValueError("Vocabulary: " + "; ".join(problems))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def seen(self) -> tuple[int, ...]:
        """The ids that are not unseen, ascending."""
        unseen = set(self.unseen)
        return tuple(k for k in range(len(self.names)) if k not in unseen)


def read(path: Path) -> Vocabulary:
    """Read the classes of your own data set: a CSV file with one class per line, in id order.

    Args:
        path: UTF-8 text under the header `name,split`, split being seen or unseen.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another header, a line that is not understood, repeated names or too many.
    """
    try:
        # Spreadsheets begin UTF-8 files with a byte order mark: utf-8-sig drops it.
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8: {error}") from error
    lines = [(i, [cell.strip() for cell in row]) for i, row in enumerate(rows, 1) if any(row)]
    problems = []
    if not lines or lines[0][1] != ["name", "split"]:
        problems.append("the first line must be: name,split")
    for i, cells in lines[1:]:
        if len(cells) != 2 or not cells[0] or cells[1] not in ("seen", "unseen"):
            problems.append(f"line {i} is {','.join(cells)!r}, wanted NAME,seen or NAME,unseen")
    if problems:
        more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
        raise ValueError(f"{path}: " + "; ".join(problems[:5] + more))
    unseen = tuple(k for k, (_, cells) in enumerate(lines[1:]) if cells[1] == "unseen")
    try:
        return Vocabulary(tuple(cells[0] for _, cells in lines[1:]), unseen)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def default_palette(classes: int) -> tuple[tuple[int, int, int], ...]:
    """PASCAL VOC's colours for ids 1..classes (0 is black there): distinct, neighbours far apart.

    Bit 7 - j of (red, green, blue) is bit (3j, 3j + 1, 3j + 2) of the id, j = 0..7.

    Example:
        >>> default_palette(3)
        ((128, 0, 0), (0, 128, 0), (128, 128, 0))
    """
    ids = np.arange(1, classes + 1)[:, None, None]
    j, channel = np.arange(8)[:, None], np.arange(3)
    colours = ((ids >> (3 * j + channel) & 1) << (7 - j)).sum(1)
    return tuple((red, green, blue) for red, green, blue in colours.tolist())


def _names(text: str) -> tuple[str, ...]:
    # Only what follows a comma is stripped: the space of "bed " stands before one.
    return tuple(name.lstrip() for name in text.removesuffix("\n").split(","))


def _vocabulary(names: str, *, unseen: tuple[int, ...] = (), palette: str = "") -> Vocabulary:
    colours = (bytes.fromhex(colour) for colour in palette.split())
    return Vocabulary(_names(names), unseen, tuple((c[0], c[1], c[2]) for c in colours))


VOC12 = _vocabulary(
    """
aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse,
motorbike, person, pottedplant, sheep, sofa, train, tvmonitor
""",
    unseen=(15, 16, 17, 18, 19),
)
"""PASCAL VOC 2012 without background: 20 classes, 5 unseen; its colours are the default ones."""

PASCAL_CONTEXT = _vocabulary(
    """
aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus,
cabinet, car, cat, ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor,
flower, food, grass, ground, horse, keyboard, light, motorbike, mountain, mouse, person, plate,
platform, pottedplant, road, rock, sheep, shelves, sidewalk, sign, sky, snow, sofa, table,
track, train, tree, truck, tv monitor, wall, water, window, wood
""",
    unseen=(0, 6, 7, 14, 19, 24, 31, 33, 48, 54),
    palette="""
b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846
08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6
dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207
ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00
ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
""",
)
"""PASCAL Context, the 59 most frequent classes, 10 unseen."""

COCO_STUFF = _vocabulary(
    """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant,
bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard,
sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle,
wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock,
vase, scissors, teddy bear, hair drier, toothbrush, banner, blanket, branch, bridge,
building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth,
clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble,
floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit,
furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal,
mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other, plastic,
platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table,
tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel,
wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
""",
    unseen=(19, 23, 28, 29, 36, 51, 76, 88, 94, 112, 133, 136, 137, 157, 160),
    palette="""
f08080 00c040 004060 80c0c0 004040 00c0e0 00c0c0 80c040 00c060 80c040 8020c0 0000e0 000040
00a0c0 800060 8000c0 0020c0 8080e0 0000c0 80a0c0 808000 800020 802000 800080 408020 00a000
000000 c080a0 002000 008080 4080a0 80a000 008000 c08020 806080 000080 400020 00e080 800000
c000a0 006080 808080 4000a0 80e080 808040 c00020 806000 8000c0 008020 40e000 000040 8080a0
406000 0080c0 0080a0 c0e000 008040 808020 c02080 0040c0 000020 40a080 804040 8000a0 402080
80c0c0 0000a0 c0a080 80c000 800060 c02000 804080 408060 40a000 004000 c080e0 402000 00c080
4080e0 c0a000 00c000 c08060 c06080 004080 400060 40e080 804000 c000e0 406080 80c080 4000e0
c0e080 80c040 c00060 c06000 8040c0 008060 00e000 404040 8080e0 006000 40c0c0 0080e0 80e000
40c040 808060 802080 4000c0 004060 00a080 c00040 8040e0 002080 c080c0 0040e0 80a080 c08000
804020 802040 c00080 40c020 00a040 400000 c0c0a0 002040 408080 40c0a0 80a040 408000 c0c020
8060c0 400080 404020 00e0c0 c00000 c040a0 0060c0 c08080 4040a0 80e0c0 c08040 c04020 806040
c000c0 00c020 eed19c 400040 80c0a0 406040 4080c0 00c0a0 c0e040 408040 80c020 c020c0 4040c0
004020 40a0c0 c04040 8040a0 4020c0 c0c0c0 0040a0 c0a0c0 c0c000 804060 c02040 c04080 40c060
40a040 404000
""",
)
"""COCO-Stuff 164k in train-id order: 171 classes, 15 unseen."""

ADE20K = _vocabulary(
    """
wall, building, sky, floor, tree, ceiling, road, bed , windowpane, grass, cabinet, sidewalk,
person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf,
house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub,
railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink,
skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill,
bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar,
arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman,
bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food,
step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket,
sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
monitor, bulletin board, shower, radiator, glass, clock, flag
""",
    palette="""
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d
787846 08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0
0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06
ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00
ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70
00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99
ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52
000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00
08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff
9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00
00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8
005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
""",
)
"""ADE20K-150 (cross-dataset evaluation: nothing is held out)."""

SHAPES = _vocabulary(
    """
plain red disc, plain yellow square, plain green triangle, plain blue star, plain purple cross,
striped red square, striped yellow triangle, striped green star, striped blue cross,
striped purple disc, dotted red triangle, dotted yellow star, dotted green cross, dotted blue disc,
dotted purple square, checked red star, checked yellow cross, checked green disc,
checked blue square, checked purple triangle
""",
    unseen=(0, 7, 13, 14, 16),
    palette="""
e02222 e0c122 22e041 2271e0 b122e0
f27979 f2de79 79f28d 79acf2 d479f2
800d0d 806c0d 0d8020 0d3d80 630d80
fab4b4 faeeb4 b4fac0 b4d1fa e8b4fa
""",
)
"""The built-in data set: every pattern with every colour once, the shapes along a Latin square.

The 5 unseen classes are new combinations of attributes that seen classes show one by one: each
pattern, colour and shape of an unseen class occurs in at least two seen ones.
"""

SHAPES_SYNONYMS = replace(
    SHAPES,
    names=_names("""
solid scarlet circle, solid golden box, solid emerald wedge, solid azure pentagram,
solid violet plus, stripy scarlet box, stripy golden wedge, stripy emerald pentagram,
stripy azure plus, stripy violet circle, spotted scarlet wedge, spotted golden pentagram,
spotted emerald plus, spotted azure circle, spotted violet box, chequered scarlet pentagram,
chequered golden plus, chequered emerald circle, chequered azure box, chequered violet wedge
"""),
)
"""The classes of `SHAPES` in other words, one for one (cross-vocabulary evaluation)."""

SHAPES_COLOURS = _vocabulary(
    "red thing, yellow thing, green thing, blue thing, purple thing",
    palette="e02222 e0c122 22e041 2271e0 b122e0",
)
"""The colours of `SHAPES` alone: class k of these is its classes k, k + 5, k + 10 and k + 15."""

VOCABULARIES: dict[str, Vocabulary] = {
    "voc12": VOC12,
    "pascal_context": PASCAL_CONTEXT,
    "coco_stuff": COCO_STUFF,
    "ade20k": ADE20K,
    "shapes": SHAPES,
    "shapes_synonyms": SHAPES_SYNONYMS,
    "shapes_colours": SHAPES_COLOURS,
}
"""Every vocabulary by the name that `--config.data.dataset` uses."""
