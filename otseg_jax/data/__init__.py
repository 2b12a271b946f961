"""From files on disk to batches on devices: classes, folders, transforms, pipeline, shapes."""
