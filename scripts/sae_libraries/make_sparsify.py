"""SAEs made, saved, read and computed by EleutherAI's sparsify."""

import torch
from making import D_MODEL, D_SAE, Cases, drawn, inputs, main
from sparsify import SparseCoder, SparseCoderConfig


def make(cases: Cases) -> None:
    """TopK, in its options that change files or numbers."""
    variants = {
        "k 12": {"num_latents": D_SAE, "k": 12},
        "k 1": {"num_latents": D_SAE, "k": 1},
        "k 256, all of them": {"num_latents": D_SAE, "k": D_SAE},
        "width by expansion_factor": {"expansion_factor": D_SAE // D_MODEL, "k": 12},
        "normalize_decoder false": {"num_latents": D_SAE, "k": 12, "normalize_decoder": False},
        "multi_topk": {"num_latents": D_SAE, "k": 12, "multi_topk": True},
        "bfloat16": {"num_latents": D_SAE, "k": 12},
    }
    for options, chosen in variants.items():
        dtype = torch.bfloat16 if options == "bfloat16" else torch.float32
        made = SparseCoder(D_MODEL, SparseCoderConfig(**chosen), dtype=dtype)
        weights = drawn("W_enc", "W_dec", "b_enc", "b_dec")
        made.encoder.weight.copy_(weights["W_enc"].T)
        made.encoder.bias.copy_(weights["b_enc"])
        made.W_dec.copy_(weights["W_dec"])
        made.b_dec.copy_(weights["b_dec"])
        folder = cases.folder(options.replace(" ", "_")) / "layers.3"
        made.save_to_disk(folder)
        theirs = SparseCoder.load_from_disk(folder).float()
        x = inputs()
        chosen_acts = theirs.encode(x)
        acts = torch.zeros(len(x), D_SAE)
        acts.scatter_(1, chosen_acts.top_indices, chosen_acts.top_acts)
        cases.add(
            folder,
            format="sparsify",
            architecture="topk",
            options=options,
            config="cfg.json",
            weights="sae.safetensors",
            x=x,
            feature_acts=acts,
            reconstruction=theirs.decode(chosen_acts.top_acts, chosen_acts.top_indices),
        )


if __name__ == "__main__":
    main("eai-sparsify", make)
