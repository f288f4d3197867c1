"""Low-Rank Clone in PyTorch, as a peer to time and to check against: the losses of the authors' code, computed in its
way, written from the specification. Needs PyTorch and NumPy, and no JAX.

    python -m experiments.bench.baseline --preset small --losses          # losses of the first batch, as JSON
    python -m experiments.bench.baseline --preset small --steps 200       # train

Unmerged: the student's attention goes through teacher width (zoom, then the teacher's projection), its MLP merges
zoom with the teacher's matrices in every step. `scaled_dot_product_attention`, fused AdamW; eager, or --compile.
On a GPU (--device cuda) float32 products are exact unless --precision asks for less; bfloat16 is autocast.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.bench import presets
from experiments.bench.presets import PRECISIONS, PRESETS, Preset
from experiments.bench.timing import pin, serve
from experiments.common.command import keep_freed_memory

BATCHES = 64  # different ones, on the device from the start


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + presets.RMS_NORM_EPS) * gain


class Peer:
    """A frozen teacher and the projections of one student.

    Attributes:
      teacher: tensors under Hugging Face's names, [out, in].
      params: the trained ones under the authors' names.
    """

    def __init__(self, preset: Preset, device: str = "cpu") -> None:
        self.preset = preset
        self.teacher = {n: torch.from_numpy(x).to(device) for n, x in presets.teacher_tensors(preset).items()}
        self.params = {
            n: torch.from_numpy(x).to(device).requires_grad_() for n, x in presets.projection_tensors(preset).items()
        }
        head_dim = preset.hidden_size // preset.heads
        inverse = presets.ROPE_THETA ** (-np.arange(0, head_dim, 2) / head_dim)
        angles = np.tile(np.arange(preset.length)[:, None] * inverse[None, :], (1, 2))
        tables = (torch.from_numpy(f(angles).astype(np.float32)) for f in (np.cos, np.sin))
        self.cos, self.sin = (x.to(device) for x in tables)

    def attend(self, layer: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention with RoPE and the teacher's output projection; q [B, T, D], k and v [B, T, K]."""
        head_dim = self.preset.hidden_size // self.preset.heads
        q, k, v = (x.unflatten(-1, (-1, head_dim)).transpose(1, 2) for x in (q, k, v))
        q, k = (x * self.cos + torch.cat([-x.chunk(2, -1)[1], x.chunk(2, -1)[0]], -1) * self.sin for x in (q, k))
        # Half precision is autocast, which RoPE's float32 tables undo.
        q, k = q.to(v.dtype), k.to(v.dtype)
        shared = q.shape[1] != k.shape[1]  # key/value heads
        context = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
        return F.linear(context.transpose(1, 2).flatten(2), self.teacher[layer + "self_attn.o_proj.weight"])

    def teacher_layer(self, layer: str, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        t = self.teacher
        y = rms_norm(x, t[layer + "input_layernorm.weight"])
        acts = {name: F.linear(y, t[f"{layer}self_attn.{name}_proj.weight"]) for name in "qkv"}
        acts["attention"] = self.attend(layer, acts["q"], acts["k"], acts["v"])
        x = x + acts["attention"]
        y = rms_norm(x, t[layer + "post_attention_layernorm.weight"])
        acts |= {name: F.linear(y, t[f"{layer}mlp.{name}_proj.weight"]) for name in ("gate", "up")}
        acts["mlp"] = F.linear(F.silu(acts["gate"]) * acts["up"], t[layer + "mlp.down_proj.weight"])
        return x + acts["mlp"], acts

    def student_layer(self, layer: str, x: Tensor, acts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The student's residual stream after the layer, and the layer's clone losses."""
        t, p = self.teacher, self.params
        y = rms_norm(x, p[layer + "target_input_layernorm.weight"])
        own = {
            name: F.linear(
                F.linear(y, p[f"{layer}self_attn.zoom_{name}.weight"]), t[f"{layer}self_attn.{name}_proj.weight"]
            )
            for name in "qkv"
        }
        own["attention"] = self.attend(layer, own["q"], own["k"], own["v"])
        x = x + F.linear(own["attention"], p[layer + "self_attn.zoom_down.weight"])
        y = rms_norm(x, p[layer + "target_post_attention_layernorm.weight"])
        for name in ("gate", "up"):
            merged = F.linear(t[f"{layer}mlp.{name}_proj.weight"], p[f"{layer}mlp.zoom_{name}.weight"])
            own[name] = F.linear(y, merged)
        zoom_down = p[layer + "mlp.zoom_down.weight"]
        mlp = F.linear(F.silu(own["gate"]) * own["up"], zoom_down @ t[layer + "mlp.down_proj.weight"])
        clone = F.mse_loss(mlp, F.linear(acts["mlp"], zoom_down))
        return x + mlp, clone + sum(F.mse_loss(own[name], acts[name]) for name in own)

    def losses(self, tokens: Tensor) -> dict[str, Tensor]:
        """total = 0.2 clone + KL (summed over positions, mean over sequences) + CE of the next token; tokens [B, T]."""
        t, p, layers = self.teacher, self.params, [f"model.layers.{i}." for i in range(self.preset.layers)]
        with torch.no_grad():
            x = embedded = t["model.embed_tokens.weight"][tokens]
            acts = {}
            for layer in layers:
                x, acts[layer] = self.teacher_layer(layer, x)
            wanted = F.linear(rms_norm(x, t["model.norm.weight"]), t["lm_head.weight"])
        x = F.linear(embedded, p["model.zoom.weight"])
        clone = torch.zeros((), device=x.device)
        for layer in layers:
            x, of_layer = self.student_layer(layer, x, acts[layer])
            clone = clone + of_layer
        logits = F.linear(
            rms_norm(x, p["model.target_norm.weight"]), F.linear(t["lm_head.weight"], p["zoom_down.weight"])
        )
        log_q, p_teacher = (logits / presets.TEMPERATURE).log_softmax(-1), (wanted / presets.TEMPERATURE).softmax(-1)
        kl = F.kl_div(log_q, p_teacher, reduction="batchmean")
        ce = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        return {"total": presets.CLONE_WEIGHT * clone + kl + ce, "clone": clone, "kl": kl, "ce": ce}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.baseline", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--losses", action="store_true", help="only the losses of the first batch")
    parser.add_argument("--allocator", action="store_true", help="the settings of glibc that our step may use")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile; on a GPU its CUDA graphs too")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cpu":
        pin(args.threads)
    if args.allocator:
        keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high" if args.precision == "tensorfloat32" else "highest")
    preset, device = PRESETS[args.preset], args.device
    peer = Peer(preset, device)
    optimizer = torch.optim.AdamW(
        list(peer.params.values()), presets.LEARNING_RATE, presets.BETAS, presets.ADAM_EPS, weight_decay=0.0, fused=True
    )
    batches = torch.from_numpy(np.stack([presets.batch(preset, i) for i in range(BATCHES)])).long().to(device)
    mode = "reduce-overhead" if device == "cuda" else "default"
    compute = torch.compile(peer.losses, mode=mode, dynamic=False) if args.compile else peer.losses
    done = 0

    def losses(step: int) -> dict[str, Tensor]:
        half = args.precision == "bfloat16"
        with torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext():
            return compute(batches[step % BATCHES])

    def train(steps: int) -> dict[str, float]:
        """Some steps; losses of the last."""
        nonlocal done
        for step in range(done, done + steps):
            if args.compile:
                torch.compiler.cudagraph_mark_step_begin()
            found = losses(step)
            optimizer.zero_grad()
            found["total"].backward()
            optimizer.step()
        done += steps
        return {name: float(x.detach()) for name, x in found.items()}

    def peak_mb() -> float:
        return torch.cuda.max_memory_allocated() / 1e6

    if args.losses:
        print(json.dumps({name: float(x.detach()) for name, x in losses(0).items()}))
    elif args.serve:
        serve(train, peak_mb=peak_mb if device == "cuda" else None)
    else:
        began = time.monotonic()
        last = train(args.steps)
        seconds = time.monotonic() - began
        print(f"{args.steps} steps in {seconds:.2f} s, loss {last['total']:.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
