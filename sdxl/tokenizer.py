"""Text -> the numbers of its tokens, as transformers 5's CLIPTokenizer has them, around the same library."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as BytePairs
from tokenizers.models import BPE

from errors import WeightsError

PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
UNKNOWN = "<|endoftext|>"


class Tokenizer:
    """CLIP's byte pairs, from a folder as diffusers has it: tokenizer.json, or vocab.json and merges.txt."""

    def __init__(self, folder: Path) -> None:
        """WeightsError if there is none in it."""
        try:
            stated = SPECIAL | json.loads((folder / "tokenizer_config.json").read_text())
            special = [_token(stated[name]) for name in SPECIAL]
            whole = folder / "tokenizer.json"
            self._pairs = BytePairs.from_file(str(whole)) if whole.is_file() else _made(folder)
        except Exception as error:  # the library's own are no more than that
            raise WeightsError(f"{folder.parent.name}/{folder.name} is no tokenizer: {error}.") from error
        self._pairs.no_truncation()
        self._pairs.no_padding()
        self._pairs.add_special_tokens(special)
        numbers = self.get_added_vocab()
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (numbers[token.content] for token in special)

    def __len__(self) -> int:
        return self._pairs.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Begin and end are not among them. Special tokens are known where the text spells them."""
        return self._pairs.encode(text, add_special_tokens=False).ids

    def get_added_vocab(self) -> dict[str, int]:
        """Tokens that are no byte pairs -> their numbers."""
        return {token.content: number for number, token in self._pairs.get_added_tokens_decoder().items()}

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """A token that ends a word ends with </w>."""
        return [self._pairs.id_to_token(number) or "" for number in ids]


def _token(stated: Any) -> AddedToken:
    """A special token of a tokenizer_config.json: a string, or a dict with its content."""
    if isinstance(stated, str):
        return AddedToken(stated, normalized=False, special=True)
    kept = {name: stated[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in stated}
    return AddedToken(stated["content"], special=True, **kept)


def _made(folder: Path) -> BytePairs:
    pairs = BytePairs(
        BPE.from_file(
            str(folder / "vocab.json"), str(folder / "merges.txt"), end_of_word_suffix="</w>", unk_token=UNKNOWN
        )
    )
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    pairs.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True)
    pairs.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return pairs
