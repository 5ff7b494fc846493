"""Residual streams -> an SAE: trained as BatchTopK and kept as JumpReLU, or drawn at random."""

import hashlib
import json
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from saelign.errors import ActivationError, FormatError, ShapeError, StorageError
from saelign.files import written
from saelign.saes.formats.reading import place_of
from saelign.saes.sae import SAE, encode, in_parts, reconstruct_from

CHECKPOINT_SECONDS = 60.0
"""Time between two checkpoints, at least."""

_WARM_UP_STEPS = 50
_DECAY_SHARE = 0.4  # of the steps, at the end, over which the learning rate falls to zero
_WEIGHTS, _MOMENTS = ("encoder", "b_enc", "decoder", "b_dec"), ("step", "exp_avg", "exp_avg_sq")
_REVIVAL_TOKENS, _REVIVAL_SHARE, _REVIVAL_FIRINGS = 51200, 0.75, 5
_CALIBRATION_FIRINGS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReport:
    """What a trained SAE is worth on tokens that it was not trained on.

    Attributes:
        explained_variance: 1 - squared error / variance; at most 1.
        l0: Features that are active at a token, on average.
        dead_share: Share of the features that are silent on all these tokens.
        seconds: What the training took.
    """

    explained_variance: float
    l0: float
    dead_share: float
    seconds: float


def train_sae(
    acts: Float[Tensor, "token d_model"],
    *,
    d_sae: int,
    k: int,
    seed: int,
    held_out: Float[Tensor, "held_out_token _"] | None = None,
    epochs: float = 2.0,
    batch_tokens: int = 1024,
    learning_rate: float = 4e-3,
    hook_name: str | None = None,
    device: str | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[SAE, TrainingReport]:
    """An SAE of the activations, and what it is worth on tokens held out.

    Only the encoder's forward pass is a dense product: of `d_sae` features some `k` speak at a
    token, and all else that a step needs is summed over those alone. Departs from its source in
    that a running mean of the batches' thresholds cuts, so that what is trained is the JumpReLU
    that is kept; and in that features which hardly fire are given to badly reconstructed tokens, in
    place of an auxiliary loss. Matrices are rounded to bfloat16, as `save_sae` keeps them, before
    the rest is set. Features share a threshold, except those that it would silence.

    Args:
        acts: Residual streams.
        d_sae: How many features.
        k: Features to be active at a token, on average.
        seed: Of weights and of the order of tokens; with the same hardware, threads and versions
            it gives the same SAE.
        held_out: To measure on; None: the last twentieth of `acts`, then not trained on.
        epochs: Passes over `acts`.
        batch_tokens: Tokens of a step.
        learning_rate: Of Adam, between warm-up and decay.
        hook_name: The site, as the SAE is to say it.
        device: Where to train; None: where the activations are.
        checkpoint: Where to keep the state of the training, every minute or as often as writing it
            takes a twentieth of the time; if that of the same training is there already, it goes
            on from there, to the same SAE. Stays there when it is done. None: nowhere.
        progress: Called with steps done and steps in all, after each step.

    Raises:
        ShapeError: `k` not from 1 to `d_sae`, or tokens held out that are of another width.
        ActivationError: Activations that are not finite or all equal, or fewer than a batch; or a
            learning rate at which training does not converge.
        FormatError: A `hook_name` that is of none of the sites.
        StorageError: The checkpoint cannot be written.

    Source: Bussmann et al. (2024), "BatchTopK Sparse Autoencoders".
    """
    started = time.monotonic()
    if held_out is None:
        acts, held_out = acts.tensor_split([len(acts) - len(acts) // 20])
    source = f"trained on {len(acts):,} tokens, {d_sae:,} features, k {k}, seed {seed}"
    site, layer = place_of(hook_name, Path(source))
    if not 1 <= k <= d_sae:
        raise ShapeError(f"k must be from 1 to d_sae, {d_sae:,}, got {k}")
    _check(acts, acts.shape[1], batch_tokens)
    _check(held_out, acts.shape[1], 1)
    rng = np.random.default_rng(seed)
    on = torch.device(acts.device if device is None else device)
    sample = _rows(acts, rng.permutation(len(acts))[: max(256, min(16384, 2**25 // d_sae))], on)
    mean = sample.mean(dim=0)
    scale = float((sample - mean).square().mean().sqrt())
    if not scale > 0:
        raise ActivationError(f"activations must differ, all {len(sample):,} sampled are equal")
    trainee = _Trainee(acts.shape[1], d_sae, k, rng, on)
    n_steps = math.ceil(epochs * len(acts) / batch_tokens)
    per_revival = max(1, _REVIVAL_TOKENS // batch_tokens)
    order, n_done = np.empty(0, dtype=np.int64), 0
    saved = None if checkpoint is None else _read_checkpoint(checkpoint)
    if saved is not None:
        tensors, about = saved
        order, n_done = tensors.pop("order").numpy(), about["n_done"]
        trainee.restore(tensors, about["threshold"])
        rng.bit_generator.state = about["rng"]
        started -= about["seconds"]
    last, took = time.monotonic(), 0.0
    for step in range(n_done, n_steps):
        if len(order) < batch_tokens:
            order = rng.permutation(len(acts))
        batch, order = order[:batch_tokens], order[batch_tokens:]
        warmed = (step + 1) / min(_WARM_UP_STEPS, n_steps)
        rate = learning_rate * min(1.0, warmed, (1 - step / n_steps) / _DECAY_SHARE)
        x = (_rows(acts, batch, on) - mean) / scale
        error = trainee.step(x, rate, settled=warmed > 1)
        if (step + 1) % per_revival == 0:
            if step < _REVIVAL_SHARE * n_steps:
                trainee.revive(x, error, rng)
            trainee.firings.zero_()
        now = time.monotonic()
        if checkpoint is not None and now - last > max(CHECKPOINT_SECONDS, 20 * took):
            about = {"n_done": step + 1, "threshold": trainee.threshold, "seconds": now - started}
            about["rng"] = rng.bit_generator.state
            tensors = {"order": torch.from_numpy(order.copy()), **trainee.tensors}
            with written(checkpoint) as path:
                save_file(tensors, path, metadata={"about": json.dumps(about)})
            last = time.monotonic()
            took = last - now
        if progress is not None:
            progress(step + 1, n_steps)
    if not trainee.encoder.isfinite().all():
        raise ActivationError(
            f"training must converge, at a learning rate of {learning_rate:g} the weights are not "
            "finite any more: choose a lower one"
        )
    # What was learnt about (x - mean) / scale, said of x: activations grow by the scale.
    W_enc = trainee.encoder.bfloat16().float().T.contiguous()
    b_enc = trainee.b_enc * scale - mean @ W_enc
    sae = _jumprelu(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=trainee.decoder.bfloat16().float(),
        b_dec=trainee.b_dec * scale + mean,
        threshold=_thresholds(torch.addmm(b_enc, sample, W_enc), k),
        hook_name=hook_name,
        site=site,
        layer=layer,
        source=source,
    )
    return sae, measured(sae, held_out, time.monotonic() - started)


def random_sae(
    like: SAE | tuple[int, int], acts: Float[Tensor, "token d_model"], *, l0: float, seed: int
) -> SAE:
    """An SAE that nobody trained: random directions, as sparse as asked.

    Decoder rows of unit length whose directions numpy draws evenly, `W_enc` their transpose,
    `b_dec` the mean activation, taken off before encoding too, and one threshold for all.

    Args:
        like: An SAE whose widths and site it takes, or `d_model` and `d_sae`.
        acts: A sample of the activations that it is to read, for mean and threshold.
        l0: Features to be active at a token of the sample, on average.
        seed: Of the directions.

    Raises:
        ShapeError: Activations of another width, or `l0` not above 0 and below a third of `d_sae`.
        ActivationError: Activations that are not finite.
    """
    d_model, d_sae = (like.d_model, like.d_sae) if isinstance(like, SAE) else like
    _check(acts, d_model, 1)
    if not 0 < l0 < d_sae / 3:
        raise ShapeError(
            f"l0 must be above 0 and below a third of the {d_sae:,} features, got {l0:g}: half of "
            "all random directions point away from an activation"
        )
    drawn = torch.from_numpy(_directions(d_sae, d_model, np.random.default_rng(seed)))
    W_dec = drawn.bfloat16().float().to(acts.device)
    W_enc = W_dec.T.contiguous()
    mean = acts.float().mean(dim=0)
    b_enc = -mean @ W_enc
    pre = torch.addmm(b_enc, acts.float(), W_enc)
    threshold = _largest(pre, max(1, round(l0 * len(acts))) + 1)
    return _jumprelu(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=mean,
        threshold=torch.full_like(b_enc, threshold),
        hook_name=like.hook_name if isinstance(like, SAE) else None,
        site=like.site if isinstance(like, SAE) else None,
        layer=like.layer if isinstance(like, SAE) else None,
        source=f"random directions, {d_sae:,} features, l0 {l0:g}, seed {seed}",
    )


def save_sae(sae: SAE, path: Path) -> None:
    """Write the SAE as one safetensors file, matrices in bfloat16, whole or not at all.

    What `train_sae` and `random_sae` give comes back from `load_sae` without any rounding.

    Raises:
        FormatError: A TopK SAE, or one that does anything to its input first.
        StorageError: The file cannot be written.
    """
    if sae.W_enc is None or sae.b_enc is None:
        raise FormatError(
            f"a single file must hold the weights of an SAE, {sae.source} computes its activations "
            "itself: save it with its own library"
        )
    if sae.activation == "topk" or sae.apply_b_dec_to_input or sae.normalize != "none":
        raise FormatError(
            "a single file must hold a ReLU or JumpReLU SAE that reads its input as it is, "
            f"{sae.source} has activation {sae.activation!r}, normalize {sae.normalize!r}, "
            f"apply_b_dec_to_input {sae.apply_b_dec_to_input}: save it in SAELens's format"
        )
    tensors = {
        "W_enc": sae.W_enc.bfloat16(),
        "b_enc": sae.b_enc,
        "W_dec": sae.W_dec.bfloat16(),
        "b_dec": sae.b_dec,
    } | ({} if sae.threshold is None else {"threshold": sae.threshold})
    data = save(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        None if sae.hook_name is None else {"hook_name": sae.hook_name},
    )
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(
            f"an SAE's file must be writable, cannot write {path}: {reason}"
        ) from error


class _Trainee:
    # The weights while they are learnt, for inputs of zero mean and unit scale.

    def __init__(
        self, d_model: int, d_sae: int, k: int, rng: np.random.Generator, device: torch.device
    ) -> None:
        self.k, self.threshold = k, 0.0
        self.decoder = torch.from_numpy(_directions(d_sae, d_model, rng)).to(device)
        self.encoder = self.decoder.clone()  # one row a feature, as in the decoder
        self.b_enc = torch.zeros(d_sae, device=device)
        self.b_dec = torch.zeros(d_model, device=device)
        self.firings = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.weights = [self.encoder, self.b_enc, self.decoder, self.b_dec]
        self.adam = torch.optim.Adam(self.weights, betas=(0.9, 0.99), fused=True)
        # Where the hardware does not multiply bfloat16, imitating it takes longer than float32.
        multiplies = device.type != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16")
        self.dtype = torch.bfloat16 if multiplies else torch.float32

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that changes while it learns, but for the threshold."""
        weights = dict(zip(_WEIGHTS, self.weights, strict=True))
        moments = {
            f"{name}.{key}": tensor
            for name, weight in weights.items()
            for key, tensor in self.adam.state[weight].items()
        }
        return {"firings": self.firings, **weights, **moments}

    def restore(self, tensors: dict[str, Tensor], threshold: float) -> None:
        """Become what these were said of."""
        self.threshold = threshold
        self.firings.copy_(tensors["firings"])
        for name, weight in zip(_WEIGHTS, self.weights, strict=True):
            weight.copy_(tensors[name])
            self.adam.state[weight] = {
                key: tensors[f"{name}.{key}"].to(weight.device) for key in _MOMENTS
            }

    def step(
        self, x: Float32[Tensor, "token d_model"], rate: float, *, settled: bool
    ) -> Float32[Tensor, "token d_model"]:
        """Take a step of Adam on the squared error; return the error before it."""
        bias, encoder = self.b_enc.to(self.dtype), self.encoder.to(self.dtype)
        pre = torch.addmm(bias, x.to(self.dtype), encoder.T)
        part = pre[:128]  # a fifth of the time for all of it; the running mean evens out the noise
        cut = max(_largest(part, self.k * len(part)), 0.0)
        self.threshold = 0.9 * self.threshold + 0.1 * cut if settled else cut
        tokens, features, by_feature = _nonzeros(pre > self.threshold)
        feature_acts = pre[tokens, features].float().requires_grad_()
        back = _sums(self.decoder, features, tokens, len(x), feature_acts)
        error = x - back.detach() - self.b_dec
        (slopes,) = torch.autograd.grad(back, feature_acts, -error)
        tokens, ordered = tokens[by_feature], features[by_feature]
        feature_acts, slopes = feature_acts.detach()[by_feature], slopes[by_feature]
        d_sae = len(self.b_enc)
        self.encoder.grad = _sums(x, tokens, ordered, d_sae, slopes)
        self.b_enc.grad = _sums(torch.ones_like(x[:, :1]), tokens, ordered, d_sae, slopes)[:, 0]
        self.decoder.grad = _sums(-error, tokens, ordered, d_sae, feature_acts)
        self.b_dec.grad = -error.sum(dim=0)
        self.adam.param_groups[0]["lr"] = rate
        self.adam.step()
        self.decoder /= self.decoder.norm(dim=1, keepdim=True)
        self.firings += torch.bincount(features, minlength=d_sae)
        return error

    def revive(
        self,
        x: Float32[Tensor, "token d_model"],
        error: Float32[Tensor, "token d_model"],
        rng: np.random.Generator,
    ) -> None:
        """Turn features that hardly fired to tokens that are badly reconstructed."""
        rare = (self.firings < _REVIVAL_FIRINGS).nonzero()[: len(x) // 2, 0]
        weights = (error.square().sum(dim=1) * x.any(dim=1)).double().cpu().numpy()
        if not len(rare) or np.count_nonzero(weights) < len(rare):
            return
        drawn = rng.choice(len(x), len(rare), replace=False, p=weights / weights.sum())
        tokens = torch.from_numpy(drawn).to(x.device)
        # It hears the token and says what is missing there, as loudly as that is. A bias would do
        # it too, but an outlying token's can make the feature fire everywhere.
        sizes = x[tokens].norm(dim=1)
        loudness = error[tokens].norm(dim=1).clamp_min(1.1 * self.threshold).minimum(sizes)
        self.decoder[rare] = normalize(error[tokens])
        self.encoder[rare] = normalize(x[tokens]) * (loudness / sizes)[:, None]
        self.b_enc[rare] = 0
        for weight in (self.encoder, self.b_enc, self.decoder):
            state = self.adam.state[weight]
            state["exp_avg"][rare] = 0
            state["exp_avg_sq"][rare] = state["exp_avg_sq"].mean()


def _nonzeros(
    active: Bool[Tensor, "token d_sae"],
) -> tuple[Int64[Tensor, " value"], Int64[Tensor, " value"], Int64[Tensor, " value"]]:
    # Tokens and features, ordered by token; and the order by feature. numpy finds non-zeros and
    # sorts 16-bit integers several times faster than torch on a CPU.
    tokens, features = np.divmod(np.flatnonzero(active.cpu().numpy()), active.shape[1])
    by_feature = np.argsort(features.astype(np.min_scalar_type(active.shape[1])), kind="stable")
    found = (torch.from_numpy(a).to(active.device) for a in (tokens, features, by_feature))
    return next(found), next(found), next(found)


def _sums(
    rows: Float32[Tensor, "row column"],
    chosen: Int64[Tensor, " value"],
    group: Int64[Tensor, " value"],
    n_groups: int,
    weights: Float32[Tensor, " value"],
) -> Float32[Tensor, "group column"]:
    # Weighted sums of the chosen rows, group by group; the groups ascend.
    starts = torch.searchsorted(group, torch.arange(n_groups, device=group.device))
    return embedding_bag(chosen, rows, starts, mode="sum", per_sample_weights=weights)


def _directions(n: int, d: int, rng: np.random.Generator) -> Float32[np.ndarray, "n d"]:
    drawn = rng.standard_normal((n, d))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def _rows(
    acts: Float[Tensor, "token d_model"], chosen: Int64[np.ndarray, " row"], device: torch.device
) -> Float32[Tensor, "row d_model"]:
    return acts[torch.from_numpy(chosen).to(acts.device)].to(device).float()


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    # What cannot be read, such as after a power cut, is as good as none.
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
        return load_file(path), about
    except (OSError, SafetensorError):
        return None


def _largest(values: Float[Tensor, "..."], rank: int) -> float:
    # The value that `rank - 1` others exceed or equal.
    flat = values.float().cpu().numpy().ravel()
    return float(np.partition(flat, len(flat) - rank)[len(flat) - rank])


def _thresholds(pre: Float32[Tensor, "token d_sae"], k: int) -> Float32[Tensor, " d_sae"]:
    # One for all, so that k are above it at a token; lower where a feature would hardly fire.
    common = max(_largest(pre, min(k * len(pre) + 1, pre.numel())), 0.0)
    own = pre.topk(min(_CALIBRATION_FIRINGS + 1, len(pre)), dim=0).values[-1]
    return own.clamp(0.0, common)


def _check(acts: Float[Tensor, "token _"], d_model: int, least: int) -> None:
    if acts.shape[1] != d_model:
        raise ShapeError(f"activations must be {d_model} wide, got {acts.shape[1]}")
    if len(acts) < least:
        raise ActivationError(
            f"at least {least:,} tokens must be given, got {len(acts):,}: give more text, or train "
            "in smaller batches"
        )
    if not all(bool(part.isfinite().all()) for part in acts.split(65536)):
        raise ActivationError(
            "activations must be finite, some are NaN or infinite: run the model in float32 or "
            "bfloat16, or check its weights"
        )


def _jumprelu(**fields: Any) -> SAE:
    digest = hashlib.sha256()
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        digest.update(fields[name].cpu().numpy().tobytes())
    return SAE(
        **fields,
        k=None,
        activation="jumprelu",
        apply_b_dec_to_input=False,
        normalize="none",
        sha256=digest.hexdigest(),
    )


def measured(
    sae: SAE, acts: Float[Tensor, "token d_model"], seconds: float = math.nan
) -> TrainingReport:
    """What an SAE is worth on activations, whoever trained it.

    Args:
        sae: The SAE.
        acts: Residual streams that it was not trained on.
        seconds: What its training took; NaN: not known.
    """
    device = sae.b_dec.device
    firings = torch.zeros(sae.d_sae, dtype=torch.int64, device=device)
    centre = acts[:65536].float().mean(dim=0).to(device)
    total = torch.zeros_like(sae.b_dec).double()
    squares = errors = 0.0
    for part in in_parts(sae, acts):
        part = part.to(device)
        feature_acts = encode(sae, part)
        centred = (part.float() - centre).double()
        total += centred.sum(dim=0)
        squares += float(centred.square().sum())
        back = reconstruct_from(sae, part, feature_acts)
        errors += float((part.float() - back).double().square().sum())
        firings += (feature_acts > 0).sum(dim=0)
    variance = squares - float(total.square().sum()) / len(acts)
    return TrainingReport(
        explained_variance=1 - errors / variance if variance > 0 else -math.inf,
        l0=float(firings.sum()) / len(acts),
        dead_share=float((firings == 0).double().mean()),
        seconds=seconds,
    )
