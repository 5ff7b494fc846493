"""Does an SAE fit the layer at which it is read? Asked before anything is collected."""

import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelign.errors import ActivationError, WiringError
from saelign.saes import SAE, SaeInfo
from saelign.saes.sae import in_parts, reconstruct_counting
from saelign.sites import AFTER_BLOCK, Site, same_place

MIN_EXPLAINED_VARIANCE = 0.3
MAX_NEIGHBOUR_LEAD = 0.05
N_TOKENS = 4096

Streams = Mapping[int, Float[Tensor, "token d_model"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """How well an SAE fits its layer, on the first tokens of the text.

    Attributes:
        layer: Where it is read; -1 is what enters block 0.
        explained_variance: 1 - squared error / variance there; at most 1, may be negative.
        explained_variance_before: The same one layer earlier; None where there is none.
        explained_variance_after: The same one layer later; None where there is none.
        l0: Features that are active at a token, on average.
        dead_fraction: Share of features that are silent on all these tokens.
        n_tokens: How many tokens that was.
    """

    layer: int
    explained_variance: float
    explained_variance_before: float | None
    explained_variance_after: float | None
    l0: float
    dead_fraction: float
    n_tokens: int


def check_dimensions(
    sae: SAE | SaeInfo, layer: int, *, d_site: int, n_layers: int, site: Site = AFTER_BLOCK
) -> None:
    """Nothing, if the SAE's width and its own word on its place fit the model.

    Raises:
        WiringError: They do not.
    """
    if not site.first_layer <= layer < n_layers:
        raise WiringError(
            f"an SAE must be read at a layer of the model, got layer {layer}: "
            f"choose from 0 to {n_layers - 1}"
        )
    if sae.d_model != d_site:
        raise WiringError(
            f"an SAE must be as wide as what it reads, {sae.source} reads {sae.d_model} dimensions "
            f"and the {site.told(layer)} has {d_site}: it belongs to {sae.model or 'another model'}"
            f"{'' if site == AFTER_BLOCK else ' or site'}"
        )
    if sae.layer is None or sae.site is None:
        return
    if not same_place(sae.site, sae.layer, site.name, layer):
        advice = [f"`site: {sae.site}` in the study"] * (sae.site != site.name)
        advice += [f"layer {sae.layer}"] * (sae.layer != layer)
        raise WiringError(
            f"an SAE must be read where it was trained, {sae.source} says {sae.hook_name!r} "
            f"({Site(sae.site).told(sae.layer)}) and is to read the {site.told(layer)}: choose "
            f"{' and '.join(advice)}"
        )


def measure_wiring(
    saes: Mapping[int, SAE],
    batches: Iterable[Streams],
    *,
    layers: Container[int],
) -> dict[int, Wiring]:
    """How well each SAE explains its own layer and the two beside it.

    Args:
        saes: By layer.
        batches: The residual streams of the same tokens at all those layers, batch by batch.
        layers: Those that the model has at this site; others are not asked.
    """
    asked = {
        layer: [near for near in (layer - 1, layer, layer + 1) if near in layers] for layer in saes
    }
    errors, variances, fired, n_tokens = _accumulate(saes, asked, batches)
    wirings: dict[int, Wiring] = {}
    for layer, sae in saes.items():
        explained = {
            near: _explained(errors[layer, near], variances[near]) for near in asked[layer]
        }
        counts = fired[layer]
        wirings[layer] = Wiring(
            layer=layer,
            explained_variance=explained[layer],
            explained_variance_before=explained.get(layer - 1),
            explained_variance_after=explained.get(layer + 1),
            l0=float(counts.sum()) / n_tokens,
            dead_fraction=float((counts == 0).sum()) / sae.d_sae,
            n_tokens=n_tokens,
        )
    return wirings


def check_wiring(
    sae: SAE, wiring: Wiring, explained_everywhere: Callable[[], Mapping[int, float]]
) -> None:
    """Nothing, if the SAE explains its layer, and better than the layers beside it.

    Args:
        sae: The SAE.
        wiring: As measured.
        explained_everywhere: Explained variance at every layer; asked for only to give advice.

    Raises:
        ActivationError: No feature is active at any token.
        WiringError: Less than 0.3 of the variance is explained, or a neighbour leads by 0.05.
    """
    layer, own = wiring.layer, wiring.explained_variance
    if wiring.l0 == 0:
        raise ActivationError(
            f"an SAE must have live features, none of the {sae.d_sae:,} of {sae.source} is active "
            f"on {wiring.n_tokens:,} tokens at layer {layer}: is it an SAE of this model?"
        )
    neighbours = {
        near: explained
        for near, explained in (
            (layer - 1, wiring.explained_variance_before),
            (layer + 1, wiring.explained_variance_after),
        )
        if explained is not None
    }
    near = max(neighbours, key=neighbours.__getitem__, default=layer)
    leads = neighbours.get(near, own) - own >= MAX_NEIGHBOUR_LEAD
    if own >= MIN_EXPLAINED_VARIANCE and not leads:
        return
    everywhere = explained_everywhere()
    best = max(everywhere, key=everywhere.__getitem__)
    fits = everywhere[best] >= MIN_EXPLAINED_VARIANCE and best != layer
    advice = (
        f"{_name(best)} fits best ({everywhere[best]:.3f}), read it there"
        if fits
        else "no layer of this model fits, is it an SAE of this model and of this site?"
    )
    if own < MIN_EXPLAINED_VARIANCE:
        raise WiringError(
            f"an SAE must explain at least {MIN_EXPLAINED_VARIANCE} of the variance of its layer, "
            f"{sae.source} explains {own:.3f} at layer {layer}: {advice}"
        )
    raise WiringError(
        f"an SAE must explain its own layer best, {sae.source} explains {own:.3f} at layer {layer} "
        f"and {neighbours[near]:.3f} at {_name(near)}: {advice}"
    )


def explained_variances(
    sae: SAE, layers: Iterable[int], batches: Iterable[Streams]
) -> dict[int, float]:
    """The share of variance that the SAE explains at each of the layers."""
    layers = list(layers)
    errors, variances, _, _ = _accumulate({0: sae}, {0: layers}, batches)
    return {layer: _explained(errors[0, layer], variances[layer]) for layer in layers}


def _accumulate(
    saes: Mapping[int, SAE], asked: Mapping[int, list[int]], batches: Iterable[Streams]
) -> tuple[dict[tuple[int, int], float], dict[int, float], dict[int, Tensor], int]:
    # Squared errors by (SAE, layer), total variance by layer, firings by SAE, and tokens.
    errors = {(own, near): 0.0 for own, nears in asked.items() for near in nears}
    fired = {own: torch.zeros(sae.d_sae, dtype=torch.int64) for own, sae in saes.items()}
    centres: dict[int, Tensor] = {}
    sums: dict[int, Tensor] = {}
    squares: dict[int, float] = {}
    n_tokens = 0
    for streams in batches:
        n_tokens += len(next(iter(streams.values())))
        for near in {near for nears in asked.values() for near in nears}:
            # About the first batch's mean, not about zero: residual streams have huge means.
            stream = streams[near].double()
            centre = centres.setdefault(near, stream.mean(dim=0))
            centred = stream - centre
            sums[near] = sums.get(near, torch.zeros_like(centre)) + centred.sum(dim=0)
            squares[near] = squares.get(near, 0.0) + float(centred.square().sum())
        for own, nears in asked.items():
            sae = saes[own]
            for near in nears:
                stream = streams[near]
                for part in in_parts(sae, stream):
                    reconstruction, n_active = reconstruct_counting(sae, part)
                    error = part - reconstruction
                    errors[own, near] += float(error.double().square().sum())
                    if near == own:
                        fired[own] += n_active.cpu()
    variances = {
        near: squares[near] - float(sums[near].square().sum()) / n_tokens for near in squares
    }
    return errors, variances, fired, n_tokens


def _explained(error: float, variance: float) -> float:
    return 1 - error / variance if variance > 0 else -math.inf


def _name(layer: int) -> str:
    return "the input of block 0" if layer == -1 else f"layer {layer}"
