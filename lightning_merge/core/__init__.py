"""Pure tensor functions in three layers: `checkpoints` <- `vectors` <- `networks`.

The modules beside them serve every layer: errors, number types, random numbers, processes,
memory and progress. Nothing here depends on Lightning. The package imports none of its modules,
so `lightning_merge.core.errors` can be imported without torch.
"""
