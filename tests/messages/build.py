"""Rows: settings that do not fit together."""

import small

from messages import Row

ROWS = [
    Row(
        "--config.train.accumulate=3, batches of 4",
        lambda folder: small.settings(**{"train.accumulate": 3}),
        r"train\.batch_size=4 is not a multiple of train\.accumulate=3",
    ),
]
