"""Low-Rank Clone (Hao et al. 2025, arXiv 2505.12781): a student whose weights are projections of the teacher's.

Only the projections and the norm gains are trained. Their names, shapes and order of axes are those of the authors'
checkpoints, so that `projections.safetensors` of the reference loads as it is. The student's weights are merged
first and the small model is run: the same mathematics as the reference's detour through teacher width, with fewer
operations. "Rank" is the student's residual width s; D is the teacher's width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lrc_jax.compute.fast import operations
from lrc_jax.errors import InputError
from lrc_jax.losses import ClonePair
from lrc_jax.model import Activations, DecoderConfig, LayerWeights, Weights

Projections = dict[str, Array]

INIT_STD = 0.02  # the authors' initialisation of every projection


@dataclasses.dataclass(frozen=True)
class CloneFlags:
    """The reference's switches, under the reference's names (rank is its `target_hidden_size`)."""

    rank: int
    use_all_attn: bool = True
    use_in_out_mlp: bool = False
    tie_word_emb_proj: bool = False
    use_additional_align: bool = False
    del_layers: tuple[int, ...] = ()
    target_rms_norm_eps: float | None = None  # None: the teacher's

    def check(self, teacher: DecoderConfig) -> None:
        """Raise InputError where the flags do not fit the teacher."""
        if not 1 <= self.rank <= teacher.hidden_size:
            raise InputError(
                f"rank: {self.rank} is outside 1..{teacher.hidden_size} (the teacher's width); choose a rank within it"
            )
        wrong = [i for i in self.del_layers if not 0 <= i < teacher.num_layers]
        if wrong:
            raise InputError(f"student.del_layers: {wrong} outside 0..{teacher.num_layers - 1} (the teacher's layers)")
        if len(set(self.del_layers)) >= teacher.num_layers:
            raise InputError("student.del_layers: no layer is left; delete fewer")


def infer_flags(teacher: DecoderConfig, names_and_shapes: Mapping[str, tuple[int, ...]]) -> CloneFlags:
    """Read the structural flags off a reference checkpoint's tensor names.

    Raises:
      InputError: `model.zoom.weight` is missing or no layer has projections.
    """
    shape = names_and_shapes.get("model.zoom.weight")
    if shape is None:
        raise InputError("projections: tensor model.zoom.weight is missing; is this a Low-Rank Clone checkpoint?")
    kept = sorted({int(n.split(".")[2]) for n in names_and_shapes if n.startswith("model.layers.")})
    if not kept:
        raise InputError("projections: no tensor is named model.layers.*; is this a Low-Rank Clone checkpoint?")
    prefix = f"model.layers.{kept[0]}."
    return CloneFlags(
        rank=shape[0],
        use_all_attn=prefix + "self_attn.zoom_q.weight" in names_and_shapes,
        use_in_out_mlp=prefix + "mlp.zoom_gate.weight" not in names_and_shapes,
        tie_word_emb_proj="zoom_down.weight" not in names_and_shapes,
        use_additional_align=prefix + "mlp.zoom_out.weight" in names_and_shapes,
        del_layers=tuple(i for i in range(teacher.num_layers) if i not in kept),
    )


@dataclasses.dataclass(frozen=True)
class LowRankClone:
    """The Low-Rank Clone student of one teacher. Hashable; all methods are pure and can be traced.

    `init_std` is the standard deviation of a random start; None is the authors' 0.02. (At toy widths 0.02 starts on
    a plateau; D^-0.5 keeps the merged weights at the teacher's scale.) `unit_embedding` rescales the random start of
    the embedding projection so that embedded tokens have rms 1: below that RMSNorm sits near its singularity and the
    smoothness constants of the first steps explode. `unit_norm` fixes the norm of every trained tensor, see `normed`.
    """

    teacher: DecoderConfig
    flags: CloneFlags
    init_std: float | None = None
    unit_embedding: bool = False
    unit_norm: bool = False
    kind: str = dataclasses.field(default="lrc", init=False)

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Teacher layers that the student keeps."""
        return tuple(i for i in range(self.teacher.num_layers) if i not in self.flags.del_layers)

    @property
    def config(self) -> DecoderConfig:
        """The student: the teacher's heads, feed-forward width and RoPE, residual width s."""
        eps = self.flags.target_rms_norm_eps
        return dataclasses.replace(
            self.teacher,
            hidden_size=self.flags.rank,
            num_layers=len(self.kept_layers),
            no_rope_layers=tuple(j for j, i in enumerate(self.kept_layers) if i in self.teacher.no_rope_layers),
            rms_norm_eps=self.teacher.rms_norm_eps if eps is None else eps,
            # An untied teacher with a shared projection still has head_s = H zoom^T, which is not E_s.
            tie_word_embeddings=self.flags.tie_word_emb_proj and self.teacher.tie_word_embeddings,
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Trainable tensors: name -> shape, in the reference's layout."""
        s, t, flags = self.flags.rank, self.teacher.hidden_size, self.flags
        out: dict[str, tuple[int, ...]] = {"model.zoom.weight": (s, t)}
        if not flags.tie_word_emb_proj:
            out["zoom_down.weight"] = (s, t)
        for i in self.kept_layers:
            layer, attn, mlp = f"model.layers.{i}.", f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
            for name in ("zoom_q", "zoom_k", "zoom_v") if flags.use_all_attn else ("zoom_up",):
                out[attn + name + ".weight"] = (t, s)
            out[attn + "zoom_down.weight"] = (s, t)
            if flags.use_in_out_mlp:
                out[mlp + "zoom_up.weight"] = (t, s)
            else:
                out[mlp + "zoom_gate.weight"] = (s, t)
                out[mlp + "zoom_up.weight"] = (s, t)
            out[mlp + "zoom_down.weight"] = (s, t)
            if flags.use_additional_align:
                out[attn + "zoom_out.weight"] = (t, s)
                out[mlp + "zoom_out.weight"] = (t, s)
            out[layer + "target_input_layernorm.weight"] = (s,)
            out[layer + "target_post_attention_layernorm.weight"] = (s,)
        out["model.target_norm.weight"] = (s,)
        return out

    def init(self, key: Array, teacher: Weights, basis_DS: Float[Array, "D s"] | None = None) -> Projections:
        """Start values.

        Without a basis: every projection ~ N(0, 0.02^2), as the authors do. With an orthonormal basis of the
        residual stream (principal components, or a choice of channels): the student reads and writes the teacher's
        residual stream in that basis. RMSNorm averages over s instead of D coordinates, so that input-side
        projections carry sqrt(D/s) besides the teacher's norm gain.
        """
        shapes = self.shapes()
        if basis_DS is None:
            keys = jax.random.split(key, len(shapes))
            std = INIT_STD if self.init_std is None else self.init_std
            start = {
                name: jnp.ones(shape) if len(shape) == 1 else std * jax.random.normal(k, shape)
                for (name, shape), k in zip(shapes.items(), keys, strict=True)
            }
            if self.unit_embedding:
                embed_VS = teacher.embed_VD @ start["model.zoom.weight"].T
                start["model.zoom.weight"] *= jax.lax.rsqrt(jnp.mean(embed_VS * embed_VS))
            return start
        rescale = math.sqrt(self.teacher.hidden_size / self.flags.rank)

        def reads(gain_D: Array) -> Array:
            return rescale * gain_D[:, None] * basis_DS

        out = {name: jnp.ones(shape) for name, shape in shapes.items() if len(shape) == 1}
        out["model.zoom.weight"] = basis_DS.T
        if self.flags.tie_word_emb_proj:
            # One matrix cannot hold both scalings: the final norm's gain takes the scalar part of the head's.
            out["model.target_norm.weight"] = jnp.full(self.flags.rank, rescale) * jnp.mean(teacher.final_norm_D)
        else:
            out["zoom_down.weight"] = reads(teacher.final_norm_D).T
        for i in self.kept_layers:
            w = teacher.layers[i]
            attn, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
            for name in ("zoom_q", "zoom_k", "zoom_v") if self.flags.use_all_attn else ("zoom_up",):
                out[attn + name + ".weight"] = reads(w.input_norm_D)
            if self.flags.use_in_out_mlp:
                out[mlp + "zoom_up.weight"] = reads(w.mlp_norm_D)
            else:
                out[mlp + "zoom_gate.weight"] = reads(w.mlp_norm_D).T
                out[mlp + "zoom_up.weight"] = reads(w.mlp_norm_D).T
            for side in (attn, mlp):
                out[side + "zoom_down.weight"] = basis_DS.T
                if self.flags.use_additional_align:
                    out[side + "zoom_out.weight"] = basis_DS
        return {name: out[name] for name in shapes}

    def normed(self, params: Projections, teacher: Weights) -> Projections:
        """What the student is made of: the parameters themselves, or with `unit_norm` each at the norm of a random
        start (the embedding's at embedded tokens of rms 1).

        A loss of w / |w| has a gradient at right angles to w, so that |w| never falls under SGD, and derivatives that
        fall with |w|: its smoothness along a path is bounded by that on the unit sphere (Salimans & Kingma 2016).
        """
        if not self.unit_norm:
            return params
        std = INIT_STD if self.init_std is None else self.init_std
        out = {}
        for name, x in params.items():
            if name == "model.zoom.weight":
                embedded_VS = teacher.embed_VD @ x.T
                out[name] = x * jax.lax.rsqrt(jnp.mean(embedded_VS * embedded_VS))
            else:
                out[name] = x * ((std if x.ndim == 2 else 1.0) * jax.lax.rsqrt(jnp.mean(x * x)))
        return out

    def weights(self, params: Projections, teacher: Weights) -> Weights:
        """Merge: the student's weights, an ordinary decoder of width s (also what the export writes).

        E_s = E zoom^T; W{q,k,v}_s = W zoom; Wo_s = zoom_down Wo; gate_s = Wg zoom_gate^T; down_s = zoom_down Wd;
        head_s = H P^T. (Written in the reference's [out, in] layout; here matrices are [in, out].)
        """
        layers = []
        for i in self.kept_layers:
            w = teacher.layers[i]
            attn, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
            if self.flags.use_all_attn:
                q_in, k_in, v_in = (params[f"{attn}zoom_{n}.weight"] for n in "qkv")
            else:
                q_in = k_in = v_in = params[attn + "zoom_up.weight"]
            if self.flags.use_in_out_mlp:
                gate_in_SD = up_in_SD = params[mlp + "zoom_up.weight"].T
            else:
                gate_in_SD, up_in_SD = params[mlp + "zoom_gate.weight"], params[mlp + "zoom_up.weight"]
            layers.append(
                LayerWeights(
                    input_norm_D=params[f"model.layers.{i}.target_input_layernorm.weight"],
                    q_DQ=q_in.T @ w.q_DQ,
                    k_DK=k_in.T @ w.k_DK,
                    v_DK=v_in.T @ w.v_DK,
                    o_QD=w.o_QD @ params[attn + "zoom_down.weight"].T,
                    mlp_norm_D=params[f"model.layers.{i}.target_post_attention_layernorm.weight"],
                    gate_DF=gate_in_SD @ w.gate_DF,
                    up_DF=up_in_SD @ w.up_DF,
                    down_FD=w.down_FD @ params[mlp + "zoom_down.weight"].T,
                    q_bias_Q=w.q_bias_Q,
                    k_bias_K=w.k_bias_K,
                    v_bias_K=w.v_bias_K,
                    q_norm_C=w.q_norm_C,
                    k_norm_C=w.k_norm_C,
                )
            )
        zoom_SD = params["model.zoom.weight"]
        embed_VS = teacher.embed_VD @ zoom_SD.T
        head_SV: Array | None
        if self.config.tie_word_embeddings:
            head_SV = None
        else:
            head_SV = params.get("zoom_down.weight", zoom_SD) @ teacher.unembedding_DV()
        return Weights(embed_VS, tuple(layers), params["model.target_norm.weight"], head_SV)

    def embedded(
        self, params: Projections, teacher: Weights, tokens_BT: Int[Array, "B T"]
    ) -> Float[Array, "N s"] | None:
        """Embedded tokens: gather the teacher's rows, then project. No gradient has to be scattered over V rows."""
        multiply = operations().product
        return multiply(teacher.embed_VD[tokens_BT.reshape(-1)], params["model.zoom.weight"].T)

    def clone_pairs(
        self, params: Projections, teacher: Weights, teacher_acts: Activations, student_acts: Activations
    ) -> list[ClonePair]:
        """What the clone losses compare, under the reference's names. Gradients reach the student side, and
        `zoom_down` / `zoom_out` / `zoom_up` where the loss itself contains them."""
        pairs = []
        for j, i in enumerate(self.kept_layers):
            s, t, w = student_acts.layers[j], teacher_acts.layers[i], teacher.layers[i]
            attn, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
            if self.flags.use_all_attn:
                pairs += [
                    ClonePair(i, "attn-q-sim-loss", s.q_NQ, t.q_NQ),
                    ClonePair(i, "attn-k-sim-loss", s.k_NK, t.k_NK),
                    ClonePair(i, "attn-v-sim-loss", s.v_NK, t.v_NK),
                ]
            else:
                attn_in_ND = s.attn_in_ND @ params[attn + "zoom_up.weight"].T
                pairs.append(ClonePair(i, "attn-in-sim-loss", attn_in_ND, t.attn_in_ND))
            if self.flags.use_additional_align:
                aligned_ND = s.attn_out_ND @ params[attn + "zoom_out.weight"].T
                pairs.append(ClonePair(i, "attn-out-sim-loss", aligned_ND, t.attn_out_ND))
            else:
                # In teacher width, before zoom_down: both sides are their attention's context through Wo.
                pairs.append(ClonePair(i, "attn-out-sim-loss", s.context_NQ, t.context_NQ, through=w.o_QD))

            if self.flags.use_in_out_mlp:
                mlp_in_ND = s.mlp_in_ND @ params[mlp + "zoom_up.weight"].T
                pairs.append(ClonePair(i, "mlp-in-loss", mlp_in_ND, t.mlp_in_ND))
            else:
                pairs.append(ClonePair(i, "mlp-gate-loss", s.gate_NF, t.gate_NF))
                pairs.append(ClonePair(i, "mlp-up-loss", s.up_NF, t.up_NF))
            if self.flags.use_additional_align:
                aligned_ND = s.mlp_out_ND @ params[mlp + "zoom_out.weight"].T
                pairs.append(ClonePair(i, "mlp-out-loss", aligned_ND, t.mlp_out_ND))
            elif self.flags.use_in_out_mlp:
                pairs.append(ClonePair(i, "mlp-out-loss", s.mlp_hidden_NF, t.mlp_hidden_NF, through=w.down_FD))
            else:
                # The same trainable matrix acts on both sides: this loss falls to 0 with the matrix.
                target_NS = operations().product(t.mlp_out_ND, params[mlp + "zoom_down.weight"].T)
                pairs.append(ClonePair(i, "mlp-out-loss", s.mlp_out_ND, target_NS))
        return pairs
