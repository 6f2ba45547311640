"""Reference loops: how the released training scripts spend a step, written anew from what they do.

    loop.py           the tail that all share: two gradient norms, AdamW and averages parameter by parameter, .item()
    attention.py      attention as matrix products and a softmax
    tencdm.py  ld4lg.py  diffusionbert.py  scorelm.py        one step of each

They reproduce costs, not results: weights are random, and nothing here is used by the product.  `training_step.py`
checks that their parts have the shares that the originals were measured to have.
"""
