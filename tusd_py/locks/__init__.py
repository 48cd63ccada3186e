"""Who may write to an upload. `base.py` is the contract, the other modules fulfil it."""
