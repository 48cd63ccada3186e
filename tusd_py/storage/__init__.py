"""Where bytes live. `base.py` is the contract, the other modules fulfil it."""
