"""The model class that lm-eval runs: its conventions are those of lm-eval's Hugging Face class, HFLM."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.evaluating.decoder import Decoder, check_reach
from gatenorm_export.evaluating.generation import continue_greedily, honours_left_padding
from gatenorm_export.evaluating.kept_answers import KeptAnswers
from gatenorm_export.evaluating.likelihood import log_likelihoods
from gatenorm_export.kept_work import KeptWork
from gatenorm_export.progress import Progress, Quiet

MAX_NEW_TOKENS = 256
"""What lm-eval generates where a task does not say how much."""

# What greedy decoding knows, or need not know because it does not draw.
_KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}


class DecoderLM(TemplateLM):  # type: ignore[misc]
    """Any :class:`Decoder` with its tokenizer, as lm-eval calls models.

    ``max_length`` is the longest input in tokens; ``eos_token_ids`` end a generation, beside the tokenizer's own.
    ``kept`` are answers of before, and takes new ones.

    Raises:
        InputError: the tokenizer has neither a BOS nor an EOS token to begin a text with.
        RefusedError: ``batch_size`` is more than the decoder takes.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any,
        *,
        max_length: int,
        batch_size: int = 1,
        eos_token_ids: Collection[int] = (),
        kept: KeptAnswers | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.batch_size = batch_size
        self._decoder = decoder
        self._progress = progress or Quiet()
        self._kept = kept or KeptAnswers(KeptWork(None))
        if tokenizer.eos_token_id is None:
            raise InputError(f"{decoder.name}: its tokenizer names no EOS token; lm-eval ends and begins texts with it")
        self._ends = {*eos_token_ids, tokenizer.eos_token_id}
        if decoder.reach.batch is not None and batch_size > decoder.reach.batch:
            raise RefusedError(
                f"{decoder.name}: takes batches of {decoder.reach.batch}, not {batch_size}; give --batch "
                f"{decoder.reach.batch}"
            )

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that a text without context is conditioned on: BOS or else EOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def max_gen_toks(self) -> int:
        """New tokens of a generation where the task does not say."""
        return MAX_NEW_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, which lm-eval keys its request caches by."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text; special ones as the tokenizer adds them by itself, but no second BOS."""
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            options = {"add_special_tokens": False}
        # A text longer than the model's context is no news here: it is cut afterwards.
        return list(self.tokenizer.encode(string, verbose=False, **options))

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log likelihood in nats of each request's continuation given its context, and whether it is the greedy one.

        Raises:
            InputError: a task has an empty continuation.
        """
        for request in requests:
            context, continuation = request.args
            if not continuation or (context == "" and not self.tok_encode(continuation, add_special_tokens=False)):
                raise InputError(f"task {request.task_name}: document {request.doc_id} has an empty continuation")
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        for texts, context, continuation in requests:
            if not context or not continuation:
                raise InputError(f"{str(texts)[:80]}: a context or continuation of no tokens; correct the task")
        answers = self._score([(context, continuation) for _, context, continuation in requests], "likelihoods")
        for (texts, _context, _continuation), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Log likelihood in nats of each whole text, in windows of the model's context as lm-eval rolls them."""
        windows: list[tuple[int, tuple[list[int], list[int]]]] = []
        for index, request in enumerate(requests):
            rolled = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            windows += [(index, make_disjoint_window(window)) for window in rolled]
        sums = [0.0] * len(requests)
        answers = self._score([window for _, window in windows], "windows of text")
        for (index, _), (nats, _) in zip(windows, answers, strict=True):
            sums[index] += nats
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def _score(self, pairs: list[tuple[list[int], list[int]]], what: str) -> list[tuple[float, bool]]:
        with self._progress.task(f"{self._decoder.name}: {len(pairs):,} {what}", total=len(pairs)) as bar:
            return log_likelihoods(
                self._decoder,
                pairs,
                batch=self.batch_size,
                max_length=self.max_length,
                advance=bar.advance,
                kept=self._kept,
            )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Each request's greedy continuation, up to the first of its stop sequences.

        Raises:
            RefusedError: a task asks for anything but greedy decoding, or leaves no room for its prompt.
            InputError: a task has an empty prompt.
        """
        alike: dict[tuple[tuple[str, ...], int], list[int]] = {}
        prompts: list[list[int]] = []
        for index, request in enumerate(requests):
            context, asked = request.args
            until, limit = self._until(asked, request.task_name)
            prompts.append(self.tok_encode(context)[-(self.max_length - limit) :])
            if not prompts[-1]:
                raise InputError(f"task {request.task_name}: document {request.doc_id} has an empty prompt")
            alike.setdefault((tuple(until), limit), []).append(index)
        texts = [""] * len(requests)
        with self._progress.task(f"{self._decoder.name}: {len(requests):,} texts", total=len(requests)) as bar:
            for (stops, limit), indices in alike.items():
                check_reach(self._decoder, max(len(prompts[index]) for index in indices), limit)
                for batch, found in self._continued(self._batches(indices, prompts), prompts, list(stops), limit):
                    for index, text in zip(batch, found, strict=True):
                        texts[index] = text
                    bar.advance(len(batch))
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _until(self, asked: Mapping[str, Any], task: str) -> tuple[list[str], int]:
        """The stop sequences, and how many tokens at most."""
        check_greedy(asked, task)
        options = normalize_gen_kwargs(dict(asked), self.max_gen_toks)
        limit = int(options["max_gen_toks"])
        if limit >= self.max_length:
            raise RefusedError(
                f"task {task}: asks for {limit} new tokens, which leaves no room for a prompt in max length "
                f"{self.max_length}; give a greater --max-length if the model takes it"
            )
        end = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        return handle_stop_sequences(options["until"], eos=end), limit

    def _batches(self, indices: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Longest first; only prompts of one length together where the decoder does not honour padding."""
        order = sorted(indices, key=lambda index: (-len(prompts[index]), prompts[index]))
        lengths = [len(prompts[index]) for index in order]
        ragged = self.batch_size > 1 and lengths[0] > lengths[-1]
        if ragged and not honours_left_padding(self._decoder, prompts[order[-1]], lengths[0]):
            self._progress.say(f"{self._decoder.name}: does not honour left padding; only equal lengths go together")
            groups = [[index for index in order if len(prompts[index]) == length] for length in dict.fromkeys(lengths)]
        else:
            groups = [order]
        size = self.batch_size
        return [group[start : start + size] for group in groups for start in range(0, len(group), size)]

    def _continued(
        self, batches: Sequence[list[int]], prompts: Sequence[list[int]], until: list[str], limit: int
    ) -> Iterator[tuple[list[int], list[str]]]:
        """The texts of each batch, from before or computed."""
        return self._kept.each(
            batches,
            what=f"{self._decoder.name}: texts",
            asked=lambda batch: [[prompts[index], until, limit, sorted(self._ends)] for index in batch],
            compute=lambda batch: self._continue([prompts[index] for index in batch], until, limit),
            read=str,
        )

    def _continue(self, prompts: Sequence[list[int]], until: list[str], limit: int) -> list[str]:
        def done(tokens: list[int]) -> bool:
            return tokens[-1] in self._ends or any(stop and stop in self.tokenizer.decode(tokens) for stop in until)

        continued = continue_greedily(self._decoder, prompts, limit=limit, done=done)
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in continued]
        return [str(postprocess_generated_text(text, until, None)) for text in texts]


def check_greedy(asked: Mapping[str, Any], task: str) -> None:
    """Make sure that a task's generation options ask for greedy decoding and nothing else.

    Raises:
        RefusedError: they ask for more.
    """
    options = normalize_gen_kwargs(dict(asked), MAX_NEW_TOKENS)
    if options["do_sample"]:
        raise RefusedError(f"task {task}: draws its tokens at random (do_sample); only greedy decoding is done here")
    unknown = sorted(set(options) - _KNOWN)
    if unknown:
        raise RefusedError(
            f"task {task}: asks for {unknown[0]} in generation_kwargs; only greedy decoding is done here"
        )
