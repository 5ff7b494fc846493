"""Where an SAE lies: a path, a place on a model hub, or a name in SAELens' registry."""

HUB = "hf://"
"""What a place on a hub begins with: `hf://OWNER/NAME[@REVISION]/FOLDER`."""

SAE_LENS = "sae_lens:"
"""What a name that SAELens knows begins with: `sae_lens:RELEASE/SAE_ID`."""


def is_remote(location: str) -> bool:
    """Whether it is a place on a hub or a name, and no path.

    >>> is_remote("hf://google/gemma-scope-2b-pt-res/layer_12"), is_remote("saes/layer_12")
    (True, False)
    """
    return location.startswith((HUB, SAE_LENS))
