"""What a training asks of its pictures: checked before a file is looked at."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from errors import InputError
from sdxl.finetune.tokens import LONGEST, whole_word

LEAST, MOST = 64, 2048  # pixels of `resolution`
MOST_PROMPTS = 16
PLACEHOLDER = "TOK"  # in caption_prefix: the first trigger, whatever it is called
FORBIDDEN = '<>:/\\|"*?'  # in a trigger: a file is named after it, and <s0> names a row


@dataclass(frozen=True)
class Wishes:
    """The inputs of a training that are about its pictures.

    resolution                  pixels; multiple of 8
    triggers                    the words that are learned, usually one: "TOK"
    caption_prefix              "" or what holds a trigger; TOK is understood as the first
    mask_target_prompts         what counts in the pictures, several separated by "|" or ","
    crop_based_on_salience      squares of `resolution` around what counts
    aspect_ratio_buckets        where no salience crop is asked: keep shapes, in buckets; else squares from the middle
    use_face_detection_instead  faces are what counts
    clipseg_temperature         above 0; how soft the masks of prompts are
    """

    resolution: int
    triggers: tuple[str, ...]
    caption_prefix: str
    mask_target_prompts: str | None
    crop_based_on_salience: bool
    aspect_ratio_buckets: bool
    use_face_detection_instead: bool
    clipseg_temperature: float

    def __post_init__(self) -> None:
        if self.resolution % 8 or not LEAST <= self.resolution <= MOST:
            raise InputError(f"resolution is {self.resolution}; give a multiple of 8 from {LEAST} to {MOST}")
        _require_words(self.triggers)
        if self.prefix and not self.named_in(self.prefix):
            word = self.triggers[0]
            raise InputError(
                f"caption_prefix {self.caption_prefix[:80]!r} does not say {word!r}, the word to be learned; "
                f"write for example 'a photo of {word}', or leave it empty"
            )
        if self.mask_target_prompts and self.mask_target_prompts.strip() and not self.prompts:
            raise InputError(f"mask_target_prompts {self.mask_target_prompts[:80]!r} says nothing; name what counts")
        if len(self.prompts) > MOST_PROMPTS:
            raise InputError(f"mask_target_prompts names {len(self.prompts)} things; name at most {MOST_PROMPTS}")
        if not 0 < self.clipseg_temperature < math.inf:
            raise InputError(f"clipseg_temperature is {self.clipseg_temperature}; give a number above 0, such as 1.0")

    @property
    def prefix(self) -> str:
        """What comes before a caption and a comma: caption_prefix without the comma that it ends in, triggers set."""
        text = self.caption_prefix.strip().rstrip(",").rstrip()
        if not self.named_in(text):
            text = re.sub(whole_word(PLACEHOLDER), lambda _: self.triggers[0], text)
        return self.spelled(text)

    @property
    def prompts(self) -> tuple[str, ...]:
        """What CLIPSeg is to look for."""
        parts = (part.strip() for part in re.split(r"[|,]", self.mask_target_prompts or ""))
        return tuple(dict.fromkeys(part for part in parts if part))

    def named_in(self, text: str) -> bool:
        """Whether a text says a trigger, as a whole word in any case."""
        return bool(re.search(self._pattern, text, re.I))

    def spelled(self, text: str) -> str:
        """The text with every trigger in the spelling that was given; nothing else changes."""
        own = {trigger.lower(): trigger for trigger in self.triggers}
        return re.sub(self._pattern, lambda found: own.get(found[0].lower(), found[0]), text, flags=re.I)

    def forced(self, caption: str) -> str:
        """A caption that says a trigger: its own, or put before it."""
        return self.spelled(caption) if self.named_in(caption) else self.opened(caption)

    def opened(self, caption: str) -> str:
        """A caption with the prefix before it, or the first trigger where there is no prefix."""
        before = self.prefix or self.triggers[0]
        return f"{before}, {self.spelled(caption)}" if caption else before

    @property
    def _pattern(self) -> str:
        """The longest first, where several begin: as they are found in prompts later."""
        return "|".join(map(whole_word, sorted(self.triggers, key=len, reverse=True)))


def _require_words(triggers: tuple[str, ...]) -> None:
    if not triggers:
        raise InputError("token_string is empty; give the word that is to call what is learned, such as TOK")
    for word in triggers:
        wrong = not word.strip() or word != word.strip() or not word.isprintable() or len(word) > LONGEST
        if wrong or set(word) & set(FORBIDDEN) or word.startswith(".") or not re.search(r"\w", word):
            raise InputError(f"token_string has {word[:40]!r}; give one word of letters and digits, such as TOK")
    if len({word.lower() for word in triggers}) < len(triggers):
        raise InputError(f"token_string names {', '.join(triggers)[:80]!r}: one word twice; give each once")
