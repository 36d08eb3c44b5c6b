# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Caption generation by transformers, with captions that do not depend on their batch.

A caption must be the same, bit for bit, whichever requests share its batch: requests arrive in random order,
and a resumed run has to repeat the metrics of the interrupted one. Floating-point kernels choose their order of
summation by the shape of the work, so every forward pass here has a shape that does not depend on the batch:
prefill has a fixed number of rows and a length that follows from the prompt alone; decode has a fixed number of
rows over a cache of fixed length. Missing rows are filled with dummies. What remains is that a row's result
must not depend on its position, and the rows are a multiple of :data:`ROW_MULTIPLE` for the sake of that. On the
CPU it also takes one intra-op thread (``torch.set_num_threads(1)``, which the server sets): with more, torch's fused
attention rounds differently in the rows of different threads.

Rows have their own seeds, temperatures and filters.

Shapes: R decode rows, U prefill rows, L padded prompt length, P longest prompt, T longest response,
S = P + T cache slots, V vocabulary, H key-value heads, D head size, A axes of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verl_uae.caption_server.prompts import PrefillChunk, Prompt, PromptBuilder, PromptKey, prefill_chunks
from verl_uae.caption_server.types import CaptionRequest, CaptionRequestError, CaptionResult
from verl_uae.captioners import as_model_takes, family_of, positions
from verl_uae.checkpoints.load import load_config, load_model, load_processor
from verl_uae.compat import ensure_torchvision
from verl_uae.visits import visit


class BatchSampler:
    """Samples one token per row and reports its log-probability.

    Two distributions are involved, on purpose:

    - *Sampling* uses softmax(logits / temperature) restricted by ``top_k``, ``top_p`` and the banned tokens.
    - *Reporting* uses log_softmax(logits / temperature) over the whole vocabulary, with no restriction. verl's
      actor computes exactly that when it re-evaluates a response, and knows of no ban and no filter: reporting
      the restricted distribution would put a constant mismatch into every importance ratio.

    Greedy rows (temperature 0) report log_softmax(logits).

    A row's draws come from a CPU generator of its own seed, one uniform number per token by inversion of the
    cumulative distribution in fp64, so they depend neither on the device nor on the other rows. Every step's
    arithmetic is row-wise.

    Args:
        requests: the requests of the first rows; the remaining rows are dummies.
        num_rows: R.
        num_steps: T, the engine's response length.
        banned_V: bool, True where a token must never be sampled.
        device: where the logits live.
    """

    def __init__(
        self,
        requests: Sequence[CaptionRequest],
        num_rows: int,
        num_steps: int,
        banned_V: Tensor,
        device: torch.device,
    ) -> None:
        self.banned_V = banned_V
        temperature_R = torch.ones(num_rows)
        greedy_R = torch.ones(num_rows, dtype=torch.bool)
        top_k_R = torch.full((num_rows,), len(banned_V))
        top_p_R = torch.ones(num_rows, dtype=torch.float64)
        uniform_RT = torch.zeros(num_rows, num_steps, dtype=torch.float64)
        for row, request in enumerate(requests):
            if request.temperature == 0:
                continue
            greedy_R[row] = False
            temperature_R[row] = request.temperature
            top_p_R[row] = request.top_p
            if request.top_k > 0:
                top_k_R[row] = min(request.top_k, len(banned_V))
            uniform_RT[row] = _uniform(request.seed, num_steps)
        self.filtered = bool((top_k_R < len(banned_V)).any() or (top_p_R < 1).any())
        self.all_greedy = bool(greedy_R.all())
        self.temperature_R1 = temperature_R[:, None].to(device)
        self.greedy_R = greedy_R.to(device)
        self.top_k_R1 = top_k_R[:, None].to(device)
        self.top_p_R1 = top_p_R[:, None].to(device)
        self.uniform_RT = uniform_RT.to(device)

    def sample(self, logits_RV: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Draw the tokens of one step.

        Args:
            logits_RV: (R, V) next-token logits, any float dtype.
            step: index of the step, in [0, T).

        Returns:
            token ids (R,) int64 and their log-probabilities (R,) fp32.
        """
        scaled_RV = logits_RV.float() / self.temperature_R1
        log_prob_RV = torch.log_softmax(scaled_RV, dim=-1)
        allowed_RV = scaled_RV.masked_fill(self.banned_V, -torch.inf)
        token_R = allowed_RV.argmax(dim=-1)
        if not self.all_greedy:
            if self.filtered:
                allowed_RV = allowed_RV.masked_fill(~self._keep(allowed_RV), -torch.inf)
            token_R = torch.where(self.greedy_R, token_R, self._invert(allowed_RV, step))
        return token_R, log_prob_RV.gather(-1, token_R[:, None])[:, 0]

    def _invert(self, scaled_RV: Tensor, step: int) -> Tensor:
        """The token at which the cumulative distribution passes the step's uniform number."""
        cdf_RV = torch.softmax(scaled_RV.double(), dim=-1).cumsum(dim=-1)
        total_R1 = cdf_RV[:, -1:]
        # Strictly below the total, else rounding could select a token of probability zero at the end.
        below_R1 = torch.nextafter(total_R1, torch.zeros_like(total_R1))
        target_R1 = torch.minimum(self.uniform_RT[:, step : step + 1] * total_R1, below_R1)
        # right=True skips entries equal to the target, that is tokens of probability zero.
        token_R1 = torch.searchsorted(cdf_RV, target_R1, right=True)
        return token_R1[:, 0].clamp_(max=cdf_RV.shape[-1] - 1)

    def _keep(self, scaled_RV: Tensor) -> Tensor:
        """(R, V) bool: tokens that top-k and top-p keep. Ties at the edge are broken by the lower token id."""
        sorted_RV, order_RV = scaled_RV.sort(dim=-1, descending=True, stable=True)
        in_top_k_RV = torch.arange(scaled_RV.shape[-1], device=scaled_RV.device) < self.top_k_R1
        # The nucleus is taken of what top-k leaves, renormalised, as in vLLM.
        prob_RV = torch.softmax(sorted_RV.masked_fill(~in_top_k_RV, -torch.inf).double(), dim=-1)
        before_RV = prob_RV.cumsum(dim=-1) - prob_RV
        # A row with top_p = 1 keeps all, whatever the cumulative sum rounds to.
        keep_RV = in_top_k_RV & ((before_RV < self.top_p_R1) | (self.top_p_R1 >= 1))
        return torch.zeros_like(keep_RV).scatter_(-1, order_RV, keep_RV)


def _uniform(seed: int, count: int) -> Tensor:
    """(count,) fp64 uniform numbers in [0, 1) of a seed."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


#: Rows of a decode batch are a multiple of this. CPU kernels treat the last few elements of a tensor by scalar
#: code whose exp() differs from the vector one in the last bit, and matrices of under four rows by other
#: routines. With eight rows, the sizes that models have leave no such remainder.
ROW_MULTIPLE = 8


class SlotCache:
    """What the layers of a decode batch remember, all rows writing to the same slot.

    Of attention these are keys and values, (R, H, S, D) each; of linear attention two states without slots, (R, ...)
    each. Implements what transformers' layers call. transformers' own StaticCache has the same layout but offers no way
    to fill rows from separate prefills.

    Args:
        num_rows, num_slots, prompt_end: R, S, P; prompts end at slot P.
    """

    def __init__(self, num_rows: int, num_slots: int, prompt_end: int) -> None:
        self.num_rows, self.num_slots, self.prompt_end = num_rows, num_slots, prompt_end
        self.slot = prompt_end
        self.layers: list[_Remembered] = []

    def fill(self, layers: Sequence[Any], source: Sequence[int], rows: Sequence[int]) -> None:
        """Take over what prefilled prompts left.

        Args:
            layers: of transformers' cache of the prefill.
            source: row of the prefill for each of ``rows``.
            rows: of the decode batch.
        """
        self.layers = self.layers or [_Remembered() for _ in layers]
        for mine, layer in zip(self.layers, layers, strict=True):
            if hasattr(layer, "conv_states"):
                mine.conv_states = self._rows(mine.conv_states, layer.conv_states, source, rows)
                mine.recurrent_states = self._rows(mine.recurrent_states, layer.recurrent_states, source, rows)
            else:
                mine.keys = self._slots(mine.keys, layer.keys, source, rows)
                mine.values = self._slots(mine.values, layer.values, source, rows)

    def _rows(self, buffer: Tensor | None, new: Tensor, source: Sequence[int], rows: Sequence[int]) -> Tensor:
        buffer = new.new_zeros(self.num_rows, *new.shape[1:]) if buffer is None else buffer
        buffer[list(rows)] = new[list(source)]
        return buffer

    def _slots(self, buffer: Tensor | None, new: Tensor, source: Sequence[int], rows: Sequence[int]) -> Tensor:
        if buffer is None:
            buffer = new.new_zeros(self.num_rows, new.shape[1], self.num_slots, new.shape[3])
        buffer[list(rows), :, self.prompt_end - new.shape[2] : self.prompt_end] = new[list(source)]
        return buffer

    def update(
        self, key_RH1D: Tensor, value_RH1D: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write one slot, return everything."""
        keys, values = self.layers[layer_idx].keys, self.layers[layer_idx].values
        assert keys is not None and values is not None
        keys[:, :, self.slot] = key_RH1D[:, :, 0]
        values[:, :, self.slot] = value_RH1D[:, :, 0]
        return keys, values

    def has_previous_state(self, layer_idx: int | None = None) -> bool:
        """True: only tokens after a prompt come here. A layer of linear attention shifts its ``conv_states`` itself."""
        return True

    def update_recurrent_state(self, state: Tensor, layer_idx: int, **_: object) -> Tensor:
        """Replace the state of a layer of linear attention."""
        self.layers[layer_idx].recurrent_states = state
        return state


@dataclass
class _Remembered:
    """Of one layer, under transformers' names."""

    keys: Tensor | None = None
    values: Tensor | None = None
    conv_states: Tensor | None = None
    recurrent_states: Tensor | None = None


@dataclass
class _DecodeState:
    """What the prefills leave for the decode loop."""

    cache: SlotCache
    logits_RV: Tensor
    position_R: Tensor
    num_axes: int
    mask_R11S: Tensor


class CaptionEngine:
    """Loads a captioner's folder and generates captions.

    Args:
        model_path: transformers folder (model and processor).
        prompt_length: P, longest prompt in tokens.
        response_length: T, longest caption in tokens, eos included.
        dtype: of the weights and activations.
        device: of the model.
        max_batch_size: captions decoded together; more requests are served in turns.
        prefill_batch_size: distinct prompts entering the model together.
        attn_implementation: ``sdpa`` or ``eager``.
        fixed_shapes: fill batches with dummy rows. Without, results depend on the batch in the last bits.

    Raises:
        CheckpointError: the folder is not a whole model, or of no family of :mod:`verl_uae.captioners`.
        NotImplementedError: the model uses sliding-window attention.
    """

    def __init__(
        self,
        model_path: str,
        prompt_length: int,
        response_length: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        max_batch_size: int = 64,
        prefill_batch_size: int = 8,
        attn_implementation: str = "sdpa",
        fixed_shapes: bool = True,
    ) -> None:
        ensure_torchvision()
        from transformers import AutoModelForImageTextToText

        from verl_uae.chain.captioner import banned_tokens, eos_token_ids

        family_of(load_config(model_path).model_type, model_path)
        self.model: Any = load_model(
            AutoModelForImageTextToText, model_path, dtype=dtype, attn_implementation=attn_implementation
        )
        self.model.requires_grad_(False).to(device)
        processor = load_processor(model_path)
        self.tokenizer = processor.tokenizer
        self.config = self.model.config
        if "sliding_attention" in (getattr(self.config.get_text_config(), "layer_types", None) or ()):
            raise NotImplementedError(f"{model_path}: sliding-window attention is not supported by the caption engine")
        self.prompts = PromptBuilder(self.config, processor.image_processor, prompt_length)
        self.prompt_length = prompt_length
        self.response_length = response_length
        self.max_batch_size = max_batch_size
        self.prefill_batch_size = prefill_batch_size
        self.fixed_shapes = fixed_shapes
        self.eos_token_ids = eos_token_ids(self.model.generation_config, self.tokenizer)
        self.banned_V = banned_tokens(self.config, self.model.generation_config, self.tokenizer)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def to(self, device: str | torch.device) -> None:
        """Move the weights."""
        visit(self.model, device)

    def generate(
        self, requests: Sequence[CaptionRequest], should_stop: Callable[[], bool] = lambda: False
    ) -> list[CaptionResult | CaptionRequestError]:
        """Generate one caption per request.

        Args:
            requests: any number; they are served in batches of ``max_batch_size``.
            should_stop: asked before every step; once True, unfinished captions end as ``aborted``.

        Returns:
            In the order of the requests: the caption, or the error that kept this one request from being
            served. An error of the model itself (for example non-finite logits) is raised.
        """
        results: dict[int, CaptionResult | CaptionRequestError] = {}
        prompts: dict[PromptKey, Prompt] = {}
        keys: dict[int, PromptKey] = {}
        for index, request in enumerate(requests):
            try:
                key = self.prompts.key(request)
                if key not in prompts:
                    prompts[key] = self.prompts.build(request)
                keys[index] = key
            except CaptionRequestError as error:
                results[index] = error
        accepted = list(keys)
        for start in range(0, len(accepted), self.max_batch_size):
            batch = accepted[start : start + self.max_batch_size]
            captions = self._run([requests[i] for i in batch], [prompts[keys[i]] for i in batch], should_stop)
            results.update(zip(batch, captions, strict=True))
        return [results[index] for index in range(len(requests))]

    @torch.inference_mode()
    def _run(
        self, requests: Sequence[CaptionRequest], prompts: Sequence[Prompt], should_stop: Callable[[], bool]
    ) -> list[CaptionResult]:
        """Generate one batch. Equal prompts are the same object."""
        num_rows = self._num_rows(len(requests))
        sampler = BatchSampler(requests, num_rows, self.response_length, self.banned_V.to(self.device), self.device)
        state = self._prefill(prompts, num_rows)
        return self._decode(requests, state, sampler, should_stop)

    def _num_rows(self, wanted: int) -> int:
        rows = self.max_batch_size if self.fixed_shapes else wanted
        return -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE

    def _prefill(self, prompts: Sequence[Prompt], num_rows: int) -> _DecodeState:
        """Run the distinct prompts through the model and spread their keys and values over the rows."""
        distinct = list({id(prompt): prompt for prompt in prompts}.values())
        rows_of: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows_of.setdefault(id(prompt), []).append(row)
        num_slots = self.prompt_length + self.response_length
        cache = SlotCache(num_rows, num_slots, self.prompt_length)
        logits_RV = torch.zeros(num_rows, len(self.banned_V), dtype=self.model.dtype, device=self.device)
        position_R = torch.zeros(num_rows, dtype=torch.long, device=self.device)
        # Dummy rows see the whole prompt area (zeros): attention over nothing at all is undefined.
        seen_RS = torch.zeros(num_rows, num_slots, dtype=torch.bool, device=self.device)
        seen_RS[:, : self.prompt_length] = True
        num_axes = 1
        for chunk in prefill_chunks(distinct, self.prefill_batch_size, self.fixed_shapes):
            logits_UV, position_AUL, layers = self._prefill_chunk(chunk)
            num_axes = len(position_AUL)
            # Padding has position 0, so the largest position belongs to the prompt.
            next_position_U = position_AUL.amax(dim=(0, 2)) + 1
            source, rows = [], []
            for u, member in enumerate(chunk.members):
                for row in rows_of[id(distinct[member])]:
                    source.append(u)
                    rows.append(row)
            cache.fill(layers, source, rows)
            logits_RV[rows] = logits_UV[source]
            position_R[rows] = next_position_U[source]
            length = chunk.valid_UL.shape[1]
            seen_RS[rows, : self.prompt_length - length] = False
            seen_RS[rows, self.prompt_length - length : self.prompt_length] = chunk.valid_UL.to(self.device)[source]
        mask_R11S = _additive(seen_RS[:, None, None], self.model.dtype)
        return _DecodeState(cache, logits_RV, position_R, num_axes, mask_R11S)

    def _prefill_chunk(self, chunk: PrefillChunk) -> tuple[Tensor, Tensor, Sequence[Any]]:
        """Run a chunk.

        Returns:
            logits after the prompt (U, V), positions (A, U, L), and the layers of transformers' cache.
        """
        from transformers import DynamicCache

        position_AUL = positions(self.model, chunk.input_ids_UL, chunk.valid_UL, chunk.pictures).to(self.device)
        valid_UL = chunk.valid_UL.to(self.device)
        length = valid_UL.shape[1]
        causal_LL = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        vision = {
            name: value.to(self.device, self.model.dtype) if value.is_floating_point() else value.to(self.device)
            for name, value in chunk.pictures.items()
        }
        output = self.model(
            input_ids=chunk.input_ids_UL.to(self.device),
            position_ids=as_model_takes(position_AUL),
            # Four-dimensional, so that no model makes another of it.
            attention_mask=_additive(causal_LL & valid_UL[:, None, None], self.model.dtype),
            past_key_values=DynamicCache(config=self.config.get_text_config()),
            use_cache=True,
            logits_to_keep=1,
            **vision,
        )
        return output.logits[:, -1], position_AUL, output.past_key_values.layers

    def _decode(
        self,
        requests: Sequence[CaptionRequest],
        state: _DecodeState,
        sampler: BatchSampler,
        should_stop: Callable[[], bool],
    ) -> list[CaptionResult]:
        """Sample and feed tokens until every real row has ended."""
        num_rows, count = len(state.logits_RV), len(requests)
        limit_R = torch.zeros(num_rows, dtype=torch.long)
        limit_R[:count] = torch.tensor(
            [min(r.max_tokens or self.response_length, self.response_length) for r in requests]
        )
        stops_R = torch.zeros(num_rows, dtype=torch.bool)
        stops_R[:count] = torch.tensor([not r.ignore_eos for r in requests])
        length_R = torch.zeros(num_rows, dtype=torch.long)
        ended_R = limit_R == 0
        eos = torch.tensor(sorted(self.eos_token_ids))
        tokens: list[Tensor] = []
        log_probs: list[Tensor] = []
        for step in range(self.response_length):
            if bool(ended_R.all()) or should_stop():
                break
            if step > 0:
                state.logits_RV = self._step(state, tokens[-1], step - 1)
            token_R, log_prob_R = (t.cpu() for t in sampler.sample(state.logits_RV, step))
            self._check_finite(log_prob_R, ended_R, step)
            tokens.append(token_R)
            log_probs.append(log_prob_R)
            length_R += ~ended_R
            ended_R |= (stops_R & torch.isin(token_R, eos)) | (length_R >= limit_R)
        return _results(tokens, log_probs, length_R[:count].tolist(), ended_R[:count].tolist())

    def _step(self, state: _DecodeState, token_R: Tensor, offset: int) -> Tensor:
        """Feed the tokens sampled at step ``offset``; returns the next logits (R, V)."""
        state.cache.slot = self.prompt_length + offset
        state.mask_R11S[..., state.cache.slot] = 0
        position_AR1 = (state.position_R + offset).view(1, -1, 1).expand(state.num_axes, -1, -1)
        output = self.model(
            input_ids=token_R.to(self.device)[:, None],
            position_ids=as_model_takes(position_AR1),
            attention_mask=state.mask_R11S,
            past_key_values=state.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    @staticmethod
    def _check_finite(log_prob_R: Tensor, ended_R: Tensor, step: int) -> None:
        if not bool((log_prob_R.isfinite() | ended_R).all()):
            raise FloatingPointError(
                f"the model's logits are not finite at caption token {step}: its weights are broken"
            )


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention mask to add to the scores: 0 where ``seen``, the lowest finite number elsewhere.

    Finite, so that a padding query, which sees nothing, gives numbers and not NaN.
    """
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def _results(
    tokens: Sequence[Tensor], log_probs: Sequence[Tensor], lengths: Sequence[int], ended: Sequence[bool]
) -> list[CaptionResult]:
    if not tokens:
        return [CaptionResult([], [], "aborted") for _ in lengths]
    token_rows = torch.stack(list(tokens), dim=1).tolist()
    log_prob_rows = torch.stack(list(log_probs), dim=1).tolist()
    return [
        CaptionResult(token_rows[i][:length], log_prob_rows[i][:length], "completed" if ended[i] else "aborted")
        for i, length in enumerate(lengths)
    ]
