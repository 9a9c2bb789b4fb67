"""Pure tensor functions in three rooms: `checkpoints` <- `vectors` <- `networks`.

Beside them stands what every room uses: errors, number types, random numbers, and the process with
its threads, its memory and its progress. Nothing here knows Lightning. The package imports none of
its modules by itself, so that `lightning_merge.core.errors` stays free of torch.
"""
