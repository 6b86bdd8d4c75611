"""`MemoryModel`: a frozen causal LM with a memory beside its attention, and everything a user does with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from memory_titan.graft import adapter
from memory_titan.graft.config import MAGConfig
from memory_titan.graft.hooks import LOWER, Graft
from memory_titan.graft.lora import Lora
from memory_titan.graft.recompute import recomputed
from memory_titan.graft.session import SESSIONS, MemorySession


class MemoryModel(nn.Module):
    """A frozen model with a trainable memory beside the attention of its layers (MAG).

        model = get_memory_model(AutoModelForCausalLM.from_pretrained(...), MAGConfig(window=512))
        logits = model(input_ids).logits                       # as the bare model is called; any length
        session = model.new_session()
        model.generate(input_ids, memory=session)              # goes on in the next call
        model.save_pretrained("adapter/"); MemoryModel.from_pretrained(base, "adapter/")

    Any split of a text into calls with one session gives what one call gives. Padding changes nothing.

    Args:
        base_model: a Hugging Face causal LM of one of `ARCHITECTURES`. Its weights are frozen, and it is put into eval
            mode and stays there. With a LoRA, PEFT's layers stand in the places of some projections.
        config: of the graft.
    """

    def __init__(self, base_model: Any, config: MAGConfig) -> None:
        super().__init__()
        self.base_model, self.graft_config = base_model, config
        self.graft = Graft(base_model, config, lambda: adapter.fingerprint(self))
        self.branches = self.graft.branches
        base_model.requires_grad_(False)
        self.lora: Lora | None = None
        if config.lora is not None:
            try:
                self.lora = Lora(base_model, self.graft.architecture, config.lora, self.graft.layers[0])
            except BaseException:
                self.graft.remove()
                raise
        base_model.eval()

    # Calling.

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        memory: MemorySession | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> Any:
        """The bare model's call and output.

        What is longer than `segment` is read in segments where a session or a window makes that the cheaper way.

        Args:
            input_ids: `[B, T]`.
            attention_mask: `[B, T]`, 0 for padding, on either side; longer, as `generate` gives it: its last T count.
            labels: `[B, T]`, as the bare model takes them.
            memory: a session to go on with; it is moved on.
            logits_to_keep: 0: logits of all tokens; n: of the last n.
        """
        session = memory if memory is not None else kwargs.pop("past_key_values", None)
        size = self.graft_config.segment
        length = 0 if input_ids is None else input_ids.shape[1]
        if input_ids is None or length <= size or (session is None and not any(self.graft.windows())):
            if session is not None:
                kwargs |= {"past_key_values": session, "use_cache": True}
            options = {"attention_mask": attention_mask, "labels": labels, "logits_to_keep": logits_to_keep}
            return self.base_model(input_ids=input_ids, **options, **kwargs)
        session = self.new_session(input_ids.shape[0]) if session is None else session
        kwargs.pop("use_cache", None)  # from segment to segment there is no other way
        masks = None if attention_mask is None else attention_mask[:, -length:]
        logits, out = [], None
        for begin in range(0, length, size):
            part = slice(begin, min(length, begin + size))
            given = {"attention_mask": None if masks is None else masks[:, part], "past_key_values": session}
            keep = 0 if not logits_to_keep else max(0, part.stop - max(begin, length - logits_to_keep))
            if logits_to_keep and not keep:
                self.graft.decoder(input_ids=input_ids[:, part], use_cache=True, **given, **kwargs)
                continue
            out = self.base_model(input_ids=input_ids[:, part], use_cache=True, logits_to_keep=keep, **given, **kwargs)
            logits.append(out.logits)
        assert out is not None
        out.logits = torch.cat(logits, 1)
        if labels is not None:
            out.loss = self.base_model.loss_function(
                logits=out.logits, labels=labels, vocab_size=self.base_model.config.get_text_config().vocab_size
            )
        return out

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        memory: MemorySession | None = None,
        lower: Tensor | None = None,
        recompute: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """What the head is given, for a text of any length, with gradients if they are wanted.

        Args:
            input_ids, attention_mask: `[B, T]`.
            memory: a session to go on with; it is moved on.
            lower: `[B, T, hidden]`, of `graft.lower.lower_states`, inside its `skipping`.
            recompute: for the backward pass keep each segment's state only, and run it again there: less memory, one
                more forward pass.

        Returns:
            `(hidden, gates)`: `[B, T, hidden]`, and how far each grafted layer's gate was open, `[layers, B, T]`.
        """
        session = self.new_session(input_ids.shape[0]) if memory is None else memory
        hidden, gates = [], []
        for begin in range(0, input_ids.shape[1], self.graft_config.segment):
            part = slice(begin, begin + self.graft_config.segment)
            mask = None if attention_mask is None else attention_mask[:, part]
            given = {"input_ids": input_ids[:, part], "attention_mask": mask}
            given |= {} if lower is None else {LOWER: lower[:, part]}
            if recompute and torch.is_grad_enabled():
                out = recomputed(self.graft, session, **given)
            else:
                out = self.graft.decoder(past_key_values=session, use_cache=True, **given).last_hidden_state
            hidden.append(out)
            shut = out.new_zeros(*out.shape[:2], 1)  # with the memory disabled
            gates.append(torch.stack([session.gates.get(layer, shut)[..., 0] for layer in self.graft.layers]))
        return torch.cat(hidden, 1), torch.cat(gates, 2)

    def logits(self, hidden: Tensor) -> Tensor:
        """What the head makes of hidden states, `[..., hidden]` to `[..., vocabulary]`."""
        logits = self.base_model.get_output_embeddings()(hidden)
        cap = getattr(self.base_model.config.get_text_config(), "final_logit_softcapping", None)  # Gemma
        return torch.tanh(logits / cap) * cap if cap else logits

    @torch.no_grad()
    def read(self, input_ids: Tensor, memory: MemorySession, attention_mask: Tensor | None = None) -> MemorySession:
        """Move the session on over `input_ids`, `[B, T]`, any length, without computing logits; returns it."""
        if input_ids.shape[1]:
            self.hidden(input_ids, attention_mask, memory)
        return memory

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        memory: MemorySession | None = None,
        **options: Any,
    ) -> Any:
        """`generate` of Hugging Face, with all its options but those that take tokens back (assisted decoding).

        Args:
            input_ids: `[B, T]`; with a session, only what is new.
            attention_mask: `[B, T]`, 0 for padding on the left.
            memory: a session to go on with. Afterwards it has read the prompt and the answer, to its last token (with
                several answers a row: the prompt but for its last token).
            options: `max_new_tokens`, `num_beams`, `do_sample`, `streamer`, ...

        Returns:
            What the base model's `generate` returns: `[B, T + new]`, or a dict with `sequences`.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        options.pop("use_cache", None)  # a session is one; there is no other way
        session = self.new_session(input_ids.shape[0]) if memory is None else memory
        self.read(input_ids[:, :-1], session, attention_mask[:, :-1])
        defaults = options.get("generation_config") or self.base_model.generation_config
        width, answers, ends = (
            options.get(name, getattr(defaults, name, None))
            for name in ("num_beams", "num_return_sequences", "eos_token_id")
        )
        width, answers = width or 1, answers or 1
        work = session.copy()
        work.offset = work.columns - (input_ids.shape[1] - 1)
        if (rows := max(width, answers)) > 1:
            work.batch_repeat_interleave(rows)
        out = self.base_model.generate(
            input_ids, attention_mask=attention_mask, past_key_values=work, use_cache=True, **options
        )
        if memory is not None and answers == 1:
            new = (out if isinstance(out, Tensor) else out.sequences)[:, input_ids.shape[1] - 1 :]
            mask = torch.cat([attention_mask[:, -1:], _until_end(new[:, 1:], ends)], 1)
            if rows == 1 and input_ids.shape[0] == 1:
                session.state, seen = work.state, work.columns - session.columns
                new, mask = new[:, seen:], mask[:, seen:]
            self.read(new, session, mask)
        return out

    # Sessions.

    def new_session(self, batch_size: int = 1) -> MemorySession:
        """A stream of which nothing was read yet."""
        return self.graft.new_session(batch_size)

    def load_session(self, path: str) -> MemorySession:
        """What `MemorySession.save` wrote.

        Raises:
            MemoryFileError: it is damaged, or no session.
            ValueError: it belongs to another model or graft.
        """
        state = SESSIONS[self.graft_config.memory_kind].load(path, device=str(self.base_model.device))
        adapter.check_fingerprint(adapter.session_fingerprint(path), adapter.fingerprint(self), f"the session {path}")
        return self.graft.session(state)

    # The graft, on and off.

    @contextmanager
    def disable_memory(self, keep_window: bool = False) -> Iterator[MemoryModel]:
        """The bare model within, its LoRA off too; with `keep_window` its attention has the graft's window still."""
        graft, lora = self.graft, self.lora
        before, adapted = (graft.with_memory, graft.with_window), lora is not None and lora.on
        graft.with_memory, graft.with_window = False, keep_window
        try:
            if lora is not None:
                lora.enable(False)
            yield self
        finally:
            graft.with_memory, graft.with_window = before
            if lora is not None:
                lora.enable(adapted)

    def unload(self) -> Any:
        """Take the graft off for good; returns the bare model, which is as it was, frozen."""
        self.graft.remove()
        if self.lora is not None:
            self.lora.remove()
        return self.base_model

    def train(self, mode: bool = True) -> MemoryModel:
        """The graft's mode; the frozen model stays in eval mode, without dropout but the LoRA's own."""
        super().train(mode)
        self.base_model.eval()
        if self.lora is not None:
            self.lora.train(mode)
        return self

    def count_trainable_parameters(self) -> int:
        """Numbers that training changes."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def print_trainable_parameters(self) -> None:
        """How many, of how many."""
        trainable, total = self.count_trainable_parameters(), sum(p.numel() for p in self.parameters())
        print(f"trainable: {trainable:,} of {total:,} parameters ({100 * trainable / total:.2f}%)")  # noqa: T201

    def save_pretrained(self, folder: str, dtype: torch.dtype | None = None) -> None:
        """Write the graft alone: adapter_config.json and adapter_model.safetensors.

        Args:
            folder: made if need be.
            dtype: of the weights in the file; None: as they are, float32. bfloat16 halves it.
        """
        adapter.save(self, folder, dtype)

    @classmethod
    def from_pretrained(cls, base_model: Any, folder: str, **changes: Any) -> MemoryModel:
        """The graft of a folder, or of a repository on the hub, on its base model.

        Args:
            base_model: the causal LM it was trained on.
            folder: what `save_pretrained` wrote.
            **changes: fields of the configuration to change, such as `window`.

        Raises:
            ValueError: it belongs to another model, or to a newer version; the message says which.
        """
        return adapter.load(cls, base_model, folder, changes)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model, name)  # config, device, dtype, get_input_embeddings, ...


def get_memory_model(model: Any, config: MAGConfig | None = None) -> MemoryModel:
    """Graft memories beside the attention of a causal LM, which is frozen; see `MemoryModel`."""
    return MemoryModel(model, MAGConfig() if config is None else config)


def _until_end(new: Tensor, ends: Any) -> Tensor:
    """`[B, T]`, 1 up to each row's first token of `ends`, that one included; what follows is padding."""
    if ends is None:
        return torch.ones_like(new)
    end = torch.isin(new, torch.as_tensor(ends, device=new.device)).long()
    return (end.cumsum(1) - end == 0).long()
