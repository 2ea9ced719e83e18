"""Make the pipeline's tokenizer: CLIP's byte-pair encoding, learnt on what captions can say.

Words of the world's captions and of regforge's phrase banks become one token each; everything else
(any language, any symbol) falls apart into smaller pieces, as with CLIP itself.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from models import TEXT_LENGTH
from world import banks
from world.captions import random_spec, varied_caption

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_merges(vocabulary_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learn merges; returns CLIP's vocabulary layout (bytes, word-end bytes, merges, specials)."""
    rng = random.Random(0)
    captions = [varied_caption(random_spec(rng), rng).text for _ in range(20_000)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([*captions, *banks.all_text()], trainer)
    merges = [tuple(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(b + "</w>" for b in alphabet), *(a + b for a, b in merges), START, END]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=5000)
    args = parser.parse_args()
    from transformers import CLIPTokenizer

    vocabulary, merges = train_merges(args.size)
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=TEXT_LENGTH,
    )
    tokenizer.save_pretrained(args.out)
    text = "a close-up photo of a sks glazed ceramic teapot on a tiled kitchen counter"
    print(len(tokenizer), tokenizer.tokenize(text))


if __name__ == "__main__":
    main()
