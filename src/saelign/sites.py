"""Where in a block a model is read, and what SAEs call these places."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

SiteName = Literal["resid_post", "resid_pre", "mlp_out", "attn_out", "attn_z"]

SITES: tuple[SiteName, ...] = get_args(SiteName)
"""The residual stream after and before a block, what the MLP and the attention add to it, and the
outputs of the attention's heads side by side, which its output projection reads."""

_TOLD: dict[SiteName, str] = {
    "resid_post": "residual stream after block {}",
    "resid_pre": "residual stream before block {}",
    "mlp_out": "MLP output of block {}",
    "attn_out": "attention output of block {}",
    "attn_z": "attention heads' outputs of block {}",
}

_BLOCK = r"(?:\w+\.)*(?:layers|layer|h|blocks)\.(\d+)"
_ATTENTION = r"(?:self_attn|self_attention|attention|attn)"
# The names of TransformerLens, then those of modules (whose output it is, unless they say input).
_HOOKS: tuple[tuple[str, SiteName], ...] = (
    (r"blocks\.(\d+)\.hook_resid_post", "resid_post"),
    (r"blocks\.(\d+)\.hook_resid_pre", "resid_pre"),
    (r"blocks\.(\d+)\.hook_mlp_out", "mlp_out"),
    (r"blocks\.(\d+)\.hook_attn_out", "attn_out"),
    (r"blocks\.(\d+)\.attn\.hook_z", "attn_z"),
    (rf"{_BLOCK}(?:\.output)?", "resid_post"),
    (rf"{_BLOCK}\.input", "resid_pre"),
    (rf"{_BLOCK}\.(?:mlp|post_feedforward_layernorm)(?:\.output)?", "mlp_out"),
    (rf"{_BLOCK}\.{_ATTENTION}(?:\.output)?", "attn_out"),
    (rf"{_BLOCK}\.{_ATTENTION}\.(?:o_proj|out_proj|c_proj|dense)\.input", "attn_z"),
)


@dataclass(frozen=True, slots=True)
class Site:
    """Where in each of its blocks a model is read.

    Attributes:
        name: One of `SITES`.
        module: Path within the block of the module that stands for it; None: looked for.
    """

    name: SiteName = "resid_post"
    module: str | None = None

    @property
    def short(self) -> str:
        """What tells it from the stream after a block, such as `MLP output`; empty for that."""
        if self.name == "resid_post":
            return ""
        told = _TOLD[self.name].replace(" of block {}", "").replace("block {}", "blocks")
        return told if self.module is None else f"{told}, {self.module}"

    @property
    def first_layer(self) -> int:
        """The lowest number of a layer: -1 after a block, for what enters block 0."""
        return -1 if self.name == "resid_post" else 0

    def told(self, layer: int) -> str:
        """The site of a block in words."""
        told = "input of block 0" if layer == -1 else _TOLD[self.name].format(layer)
        return told if self.module is None else f"{told} (its module {self.module})"

    def hook_name(self, layer: int) -> str:
        """The site of a block as TransformerLens names it, which `site_of_hook` understands."""
        within = "attn.hook_z" if self.name == "attn_z" else f"hook_{self.name}"
        return f"blocks.{layer}.{within}"


AFTER_BLOCK = Site()


def site_of_hook(hook_name: str) -> tuple[SiteName, int] | None:
    """The site and block that an SAE's own word for its place means; None if it is none of ours.

    Understands the names of TransformerLens (`blocks.5.hook_mlp_out`) and paths of modules in
    transformers (`model.layers.5`, `gpt_neox.layers.5.mlp`, `layers.5.self_attn.o_proj.input`).
    """
    for pattern, site in _HOOKS:
        if found := re.fullmatch(pattern, hook_name):
            return site, int(found[1])
    return None


def same_place(site: SiteName, layer: int, other: SiteName, other_layer: int) -> bool:
    """Whether two names mean one place: what leaves a block enters the next."""
    return _canonical(site, layer) == _canonical(other, other_layer)


def _canonical(site: SiteName, layer: int) -> tuple[SiteName, int]:
    return ("resid_post", layer - 1) if site == "resid_pre" else (site, layer)
