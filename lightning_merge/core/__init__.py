"""Pure tensor functions: checkpoints, task vectors, trimming, sign election, M-Loss, statistics.

Nothing here knows Lightning. The package imports none of its modules by itself, so that
`lightning_merge.core.errors` stays free of torch.
"""
